"""An optimizer step that takes effect or not, without a condition and without a second copy of the weights.

Keras's optimizers end in assignments to native TensorFlow variables: `assign_add(m, delta)`. If delta is 0,
nothing changes. So during `apply_gradients` the variables' assignment methods are replaced. `tf.cond`
around the step would do the same, but a GPU waits for the host at a condition, and XLA fuses nothing across
it. Saved copies of weights and moments would double the memory.
"""

import contextlib
import functools
from collections.abc import Iterable, Iterator
from typing import Any

import keras
import tensorflow as tf

_ADDING = ("assign_add", "assign_sub")
_SCATTERING = ("scatter_add", "scatter_sub", "scatter_update")


@contextlib.contextmanager
def updates_only_if(condition: tf.Tensor, variables: Iterable[Any]) -> Iterator[None]:
    """Within the block, the variables change only if `condition` is true.

    Args:
        condition: bool scalar tensor.
        variables: Keras variables. With several replicas, each replica's copy is guarded.
    """
    guarded = [v for variable in variables for v in _on_each_replica(variable) if "assign" not in vars(v)]
    for variable in guarded:
        variable.assign = functools.partial(_assign, condition, variable, variable.assign)
        for name in _ADDING:
            setattr(variable, name, functools.partial(_add, condition, getattr(variable, name)))
        for name in _SCATTERING:
            setattr(variable, name, functools.partial(_scatter, condition, variable, getattr(variable, name)))
    try:
        yield
    finally:
        for variable in guarded:
            for name in ("assign", *_ADDING, *_SCATTERING):
                delattr(variable, name)


def _on_each_replica(variable):
    """The native variables behind a Keras variable."""
    native = variable.value if isinstance(variable, keras.Variable) else variable
    return native.values if isinstance(native, tf.distribute.DistributedValues) else (native,)


def _assign(condition, variable, assign, value, *args, **kwargs):
    value = tf.convert_to_tensor(value, variable.dtype)
    return assign(tf.where(condition, value, variable), *args, **kwargs)


def _add(condition, add, delta, *args, **kwargs):
    return add(zero_unless(condition, tf.convert_to_tensor(delta)), *args, **kwargs)


def _scatter(condition, variable, scatter, slices, *args, **kwargs):
    if scatter.__name__ == "scatter_update":
        values = tf.where(condition, slices.values, tf.gather(variable, slices.indices))
    else:
        values = zero_unless(condition, slices.values)
    return scatter(tf.IndexedSlices(values, slices.indices, slices.dense_shape), *args, **kwargs)


def zero_unless(condition: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
    """The values where the condition is true, else 0: one kernel, even if a value is NaN.

    Args:
        condition: bool, a scalar or of the shape of the values.
        values: A dense tensor of numbers.
    """
    if values.dtype in (tf.float32, tf.float64):
        return tf.math.multiply_no_nan(values, tf.cast(condition, values.dtype))
    return tf.where(condition, values, tf.zeros_like(values))
