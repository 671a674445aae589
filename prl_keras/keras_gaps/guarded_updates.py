"""An optimizer step that takes effect or not, without a condition and without a second copy of the weights.

Keras's optimizers end in assignments to native TensorFlow variables: `assign_add(m, delta)`. So during
`apply_gradients` the variables' assignment methods are replaced: each assigns the new value or the old one.
`tf.cond` around the step would do the same, but a GPU waits for the host at a condition, and XLA fuses
nothing across it. Saved copies of weights and moments would double the memory.
"""

import contextlib
import functools
import operator
from collections.abc import Iterable, Iterator
from typing import Any

import keras
import tensorflow as tf

_ADDING = {"assign_add": operator.add, "assign_sub": operator.sub}
_SCATTERING = ("scatter_add", "scatter_sub", "scatter_update")


@contextlib.contextmanager
def updates_only_if(condition: tf.Tensor, variables: Iterable[Any]) -> Iterator[None]:
    """In the block the variables, and each replica's copy of them, change only if `condition` is true."""
    guarded = [v for variable in variables for v in _on_each_replica(variable) if "assign" not in vars(v)]
    for variable in guarded:
        variable.assign = functools.partial(_assign, condition, variable, variable.assign)
        for name, combine in _ADDING.items():
            setattr(variable, name, functools.partial(_add, variable, combine))
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
    return assign(choose(condition, value, variable), *args, **kwargs)


def _add(variable, combine, delta, *args, **kwargs):
    return variable.assign(combine(variable, tf.convert_to_tensor(delta, variable.dtype)), *args, **kwargs)


def _scatter(condition, variable, scatter, slices, *args, **kwargs):
    if scatter.__name__ == "scatter_update":
        values = choose(condition, slices.values, tf.gather(variable, slices.indices))
    else:
        values = choose(condition, slices.values, tf.zeros_like(slices.values))
    return scatter(tf.IndexedSlices(values, slices.indices, slices.dense_shape), *args, **kwargs)


def choose(condition: tf.Tensor, chosen: tf.Tensor, other: tf.Tensor) -> tf.Tensor:
    """`chosen` if a bool scalar is true, else `other`. A CPU copies neither, as it would in `tf.where`."""
    return tf.raw_ops.Select(condition=condition, x=chosen, y=other)
