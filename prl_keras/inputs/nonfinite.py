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

_LARGE = 2**20  # entries of a gradient; above, one flag each would add to a step's memory


def find(data: Any) -> tf.Tensor:
    """Which examples hold NaN or infinity.

    Args:
        data: Tensors `[batch, ...]`, in any structure; None and tensors that are not dense are skipped.

    Returns:
        bool `[batch]`.
    """
    tensors = [tensor for tensor in keras.tree.flatten(data) if tensor is not None]
    is_bad = tf.zeros([_rows(tensors[0])], tf.bool)
    for tensor in filter(_is_checked, tensors):
        axes = range(1, len(tensor.shape))
        is_bad = tf.logical_or(is_bad, ~tf.reduce_all(tf.math.is_finite(tensor), axis=axes))
    return is_bad


def replace(data: Any, is_bad: tf.Tensor) -> Any:
    """The data with the nearest good example in place of each bad one.

    Args:
        data: As in `find`. Non-finite values become 0 if no example is good.
        is_bad: bool `[batch]`.
    """
    rows = nearest_before(~is_bad)
    return _map_dense(lambda tensor: tf.ensure_shape(tf.gather(tensor, rows), tensor.shape), with_zeros(data))


def with_zeros(data: Any) -> Any:
    """The data with 0 in place of NaN and infinity."""

    def finite(tensor):
        if not _is_checked(tensor):
            return tensor
        is_finite = tf.math.is_finite(tensor)
        if tensor.dtype in (tf.float32, tf.float64):  # faster, and 0 for NaN too
            return tf.math.multiply_no_nan(tensor, tf.cast(is_finite, tensor.dtype))
        return tf.where(is_finite, tensor, tf.zeros_like(tensor))

    return _map_dense(finite, data)


def are_finite(gradients: Sequence[Any]) -> tf.Tensor:
    """Whether all gradients are finite, bool scalar; None entries are skipped.

    Vectors (biases and the like) are concatenated, as a device starts a kernel for each tensor. For a large
    matrix only the sums of its rows are checked; a matrix product computes them without extra memory. (XLA on
    a CPU would store a flag for each entry.) Such a sum is also infinite if finite entries reach 1e34.
    """
    values = [g.values if isinstance(g, tf.IndexedSlices) else g for g in gradients if g is not None]
    values = [_sums_of_rows(value) if _is_large(value) else value for value in values]
    vectors = [value for value in values if len(value.shape) == 1]
    together = [value for value in values if len(value.shape) != 1]
    for dtype in {vector.dtype for vector in vectors}:
        together.append(tf.concat([vector for vector in vectors if vector.dtype == dtype], axis=0))
    return tf.reduce_all([tf.reduce_all(tf.math.is_finite(value)) for value in together])


def count(flags: tf.Tensor) -> tf.Tensor:
    """The number of True entries: float32 scalar, since TensorFlow sums integers on the host."""
    return tf.reduce_sum(tf.cast(flags, tf.float32))


def _is_large(tensor):
    entries = tensor.shape.num_elements()
    return tensor.dtype == tf.float32 and len(tensor.shape) > 1 and (entries or 0) >= _LARGE


def _sums_of_rows(tensor):
    width = tensor.shape[-1]
    return tf.linalg.matvec(tf.reshape(tensor, [-1, width]), tf.ones([width]))


def _map_dense(function, data):
    """Applies `function` to each dense tensor; other values stay as they are."""
    tensors = keras.tree.flatten(data)
    tensors = [function(tf.convert_to_tensor(t)) if _is_dense(t) else t for t in tensors]
    return keras.tree.pack_sequence_as(data, tensors)


def _rows(tensor):
    return tensor.shape[0] if isinstance(tensor, np.ndarray) else tf.shape(tensor)[0]


def _is_dense(tensor):
    is_tensor = isinstance(tensor, (tf.Tensor, np.ndarray))  # arrays if Keras runs eagerly
    return is_tensor and len(tensor.shape) > 0  # a scalar is no batch: the network rejects it


def _is_checked(tensor):
    return _is_dense(tensor) and tf.as_dtype(tensor.dtype).is_floating
