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
from prl_keras.keras_gaps.guarded_updates import zero_unless

_LARGE = 2**20  # entries of a gradient; above, one flag each would add to a step's memory


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
        found = ~all_by_row(tf.math.is_finite, tensor)
        common = _common_rows(tensor, number) if id(tensor) in may_differ else None
        found = found if common is None else tf.pad(found[:common], [[0, number - common]])
        is_bad = tf.logical_or(is_bad, found)
    return is_bad


def replace(data: Any, is_bad: tf.Tensor, inputs: Any = None, keeps_nan: bool = False) -> Any:
    """The data with the nearest good example in place of each bad one.

    Args:
        data, inputs: As in `find`. Sparse and ragged tensors get 0 in place of non-finite values; so do all
            tensors if no example is good. Inputs with another number of rows stay as they are.
        is_bad: bool `[batch]`.
        keeps_nan: Whether NaN stays in the good examples, as in targets that a loss skips.
    """
    good, may_differ = nearest_before(~is_bad), _several(inputs)
    is_any_good = tf.reduce_any(~is_bad) if keeps_nan else None

    def replaced(tensor):
        common = _common_rows(tensor, rows(is_bad)) if id(tensor) in may_differ else None
        finite = with_zeros(tensor, None if common is None else common < rows(is_bad))
        if not _is_dense(tensor):
            return finite
        source = tf.where(is_any_good, tensor, finite) if keeps_nan else finite
        taken = good if common is None else tf.concat([good[:common], tf.range(common, rows(tensor))], 0)
        return tf.ensure_shape(tf.gather(source, taken), tensor.shape)

    return keras.tree.map_structure(replaced, data)


def with_zeros(data: Any, is_kept: Any = None) -> Any:
    """The data with 0 in place of NaN and infinity; unchanged where `is_kept`, a bool scalar or None."""

    def finite(values):
        is_finite = tf.math.is_finite(values)
        is_finite = is_finite if is_kept is None else tf.logical_or(is_finite, is_kept)
        return zero_unless(is_finite, values)

    def of_any_kind(tensor):
        tensor = tf.convert_to_tensor(tensor) if _is_dense(tensor) else tensor
        return map_values(finite, tensor) if _is_checked(tensor) else tensor

    return keras.tree.map_structure(of_any_kind, data)


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
