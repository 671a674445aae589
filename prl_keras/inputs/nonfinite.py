"""Non-finite examples. A weight of 0 is not enough: 0 * NaN is NaN in the backward pass.

So before the forward pass they are replaced by a finite example of the batch, with weight 0. (Zeros would
change the statistics of batch normalization, and may be invalid targets.)
"""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from prl_keras.inputs.rows import nearest_before
from prl_keras.inputs.tensors import all_by_row, map_values, rows
from prl_keras.keras_gaps import xla
from prl_keras.keras_gaps.guarded_updates import choose

_LARGE = 2**14  # entries of a gradient from which on sums of its rows are cheaper than a flag for each
_LARGE_FOR_XLA = 2**20  # XLA fuses the flags of smaller ones, and on a CPU stores them
_TINY = 2.0**-64  # times the largest float32, more entries than fit into memory have a finite sum


def find(data: Any, inputs: Any = None, number: Any = None) -> tf.Tensor:
    """Which examples hold NaN or infinity.

    Args:
        data: Tensors `[batch, ...]` of any kind, in any structure; None is skipped.
        inputs: The inputs among the data. Several may have numbers of rows of their own, such as the nodes
            of a batch of graphs. Such inputs are skipped; an example shows by its loss.
        number: The number of examples, an int or a scalar tensor; None for the rows of the first tensor.

    Returns:
        bool `[batch]`.
    """
    tensors, may_differ = _flat(data), _several(inputs)
    number = rows(tensors[0]) if number is None else number
    is_bad = tf.zeros([number], tf.bool)
    for tensor in filter(_is_checked, tensors):
        found = ~_rows_are_finite(tensor)
        common = _common_rows(tensor, number) if id(tensor) in may_differ else None
        found = found if common is None else tf.pad(found[:common], [[0, number - common]])
        is_bad = tf.logical_or(is_bad, found)
    return is_bad


def replace(data: Any, is_bad: tf.Tensor, inputs: Any = None) -> Any:
    """The data with the nearest good example in place of each bad one.

    Args:
        data, inputs: As in `find`. Sparse and ragged tensors get 0 in place of non-finite values. Inputs with
            another number of rows stay as they are.
        is_bad: bool `[batch]`. If all are bad, dense tensors of floats become 0.
    """
    good, may_differ = nearest_before(~is_bad), _several(inputs)
    is_any_good = tf.reduce_any(~is_bad)

    def replaced(tensor):
        if not _is_dense(tensor):
            return with_zeros(tensor)
        common = _common_rows(tensor, rows(is_bad)) if id(tensor) in may_differ else None
        if common is None and not xla.is_off():
            return _take(with_zeros(tensor), good)  # XLA looks at each entry while it gathers
        taken, is_finite = good, is_any_good
        if common is not None:
            taken = tf.concat([good[:common], tf.range(common, rows(tensor))], 0)
            is_finite |= common < rows(is_bad)
        found = _take(tensor, taken)
        return choose(is_finite, found, tf.zeros_like(found)) if _is_checked(found) else found

    return keras.tree.map_structure(replaced, data)


def with_zeros(data: Any) -> Any:
    """The data with 0 in place of NaN and infinity."""

    def finite(values):
        return tf.where(tf.math.is_finite(values), values, tf.zeros_like(values))

    def of_any_kind(tensor):
        tensor = tf.convert_to_tensor(tensor) if _is_dense(tensor) else tensor
        return map_values(finite, tensor) if _is_checked(tensor) else tensor

    return keras.tree.map_structure(of_any_kind, data)


def are_finite(gradients: Sequence[Any]) -> tf.Tensor:
    """Whether all gradients are finite, bool scalar; None entries are skipped.

    Vectors (biases and the like) are concatenated, as a device starts a kernel for each tensor.
    """
    values = [g.values if isinstance(g, tf.IndexedSlices) else g for g in gradients if g is not None]
    values = [_sums_of_rows(value, axes=-1) if _is_large(value) else value for value in values]
    vectors = [value for value in values if len(value.shape) == 1]
    together = [value for value in values if len(value.shape) != 1]
    for dtype in {vector.dtype for vector in vectors}:
        together.append(tf.concat([vector for vector in vectors if vector.dtype == dtype], axis=0))
    return tf.reduce_all([tf.reduce_all(tf.math.is_finite(value)) for value in together])


def count(flags: tf.Tensor) -> tf.Tensor:
    """The number of True entries: float32 scalar, since TensorFlow sums integers on the host."""
    return tf.reduce_sum(tf.cast(flags, tf.float32))


def _take(tensor, taken):
    return tf.ensure_shape(tf.gather(tensor, taken), tensor.shape)


def _rows_are_finite(tensor):
    """bool `[rows]` of a tensor of any kind."""
    if xla.is_off() and _is_dense(tensor) and tensor.dtype == tf.float32 and len(tensor.shape) > 1:
        return tf.math.is_finite(_sums_of_rows(tensor, axes=1))
    return all_by_row(tf.math.is_finite, tensor)


def _is_large(tensor):
    """Whether the sums of a gradient's rows are cheaper than a flag for each entry."""
    if tensor.dtype != tf.float32 or len(tensor.shape) < 2:
        return False
    return (tensor.shape.num_elements() or 0) >= (_LARGE if xla.is_off() else _LARGE_FOR_XLA)


def _sums_of_rows(tensor, axes):
    """Sums over all but the first `axes` axes, which are finite if the entries are.

    A matrix product computes them without extra memory. Each entry is scaled down, so that the largest do not
    overflow.
    """
    width = tf.TensorShape(tensor.shape)[axes:].num_elements() or tf.reduce_prod(tf.shape(tensor)[axes:])
    number = -1 if isinstance(width, int) else tf.reduce_prod(tf.shape(tensor)[:axes])
    return tf.linalg.matvec(tf.reshape(tensor, [number, width]), tf.fill([width], _TINY))


def _flat(data):
    return [tensor for tensor in keras.tree.flatten(data) if tensor is not None]


def _several(inputs):
    """The ids of the inputs if there are several."""
    flat = _flat(inputs)
    return {id(tensor) for tensor in flat} if len(flat) > 1 else set()


def _common_rows(tensor, number):
    """How many of the first rows of a tensor are examples: all or none; Python None if it is known to be all.

    It takes no condition, for which a device would wait.
    """
    size = rows(tensor)
    if isinstance(size, int) and isinstance(number, int):
        return None if size == number else 0
    return tf.where(tf.cast(size, tf.int32) == number, number, 0)


def _is_dense(tensor):
    is_tensor = isinstance(tensor, (tf.Tensor, np.ndarray))  # arrays if Keras runs eagerly
    return is_tensor and len(tensor.shape) > 0  # a scalar is no batch: the network rejects it


def _is_checked(tensor):
    is_tensor = _is_dense(tensor) or isinstance(tensor, (tf.SparseTensor, tf.RaggedTensor))
    return is_tensor and tf.as_dtype(tensor.dtype).is_floating
