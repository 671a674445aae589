"""Arrays and tensors of any kind: NumPy, pandas, SciPy; dense, sparse and ragged ones of TensorFlow."""

import typing
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf


def as_tensor(array: Any) -> Any:
    """The array as a tensor. Sparse and ragged ones stay so, SciPy's become sparse; None stays None."""
    if array is None or isinstance(array, (tf.SparseTensor, tf.RaggedTensor)):
        return array
    if not hasattr(array, "tocoo"):
        return tf.convert_to_tensor(array)
    array = array.tocsr()
    array.sum_duplicates()
    array = array.tocoo()
    indices = np.stack([array.row, array.col], axis=1).astype(np.int64)
    return tf.sparse.reorder(tf.SparseTensor(indices, array.data, array.shape))


def rows(tensor: Any) -> Any:
    """The number of rows: an int if it is known, else an integer scalar tensor."""
    if tensor.shape[0] is not None:
        return tensor.shape[0]
    if isinstance(tensor, tf.SparseTensor):
        return tf.cast(tensor.dense_shape[0], tf.int32)
    return tf.cast(tensor.nrows(), tf.int32) if isinstance(tensor, tf.RaggedTensor) else tf.shape(tensor)[0]


def number_of_examples(y: Any) -> Any:
    """The rows of the first of the targets, a structure of tensors; None is skipped."""
    return rows(next(leaf for leaf in keras.tree.flatten(y) if leaf is not None))


def is_batch(leaf: Any) -> bool:
    """Whether this has rows: a tensor or an array with an axis."""
    shape = getattr(leaf, "shape", ())
    return getattr(shape, "rank", 0) is None or len(shape) > 0


def take_rows(tensor: Any, start: int, stop: int) -> Any:
    """`tensor[start:stop]` for an array or a tensor of any kind; None stays None.

    The indices of a sparse tensor must be sorted, as those of `as_tensor` are.
    """
    if not isinstance(tensor, tf.SparseTensor):
        return None if tensor is None else tensor[start:stop]
    stop = min(stop, int(rows(tensor)))
    first, last = tf.searchsorted(tensor.indices[:, 0], tf.constant([start, stop], tf.int64))
    shape = tf.concat([[stop - start], tensor.dense_shape[1:]], axis=0)
    moved = tensor.indices[first:last] - tf.one_hot(0, len(tensor.shape), start, 0, dtype=tf.int64)
    return tf.SparseTensor(moved, tensor.values[first:last], shape)


def map_values(function: Callable[[Any], Any], tensor: Any) -> Any:
    """Applies an elementwise function, which must give 0 for 0, to a tensor of any kind."""
    if isinstance(tensor, tf.SparseTensor):
        return tf.SparseTensor(tensor.indices, function(tensor.values), tensor.dense_shape)
    if isinstance(tensor, tf.RaggedTensor):
        return tensor.with_flat_values(function(tensor.flat_values))
    return function(tensor)


def all_by_row(function: Callable[[Any], Any], tensor: Any) -> tf.Tensor:
    """bool `[rows]`: whether an elementwise bool function is true for all the entries of a row.

    Args:
        function: It must be true for 0.
        tensor: A tensor of any kind.
    """
    if isinstance(tensor, tf.SparseTensor):
        missed = tf.cast(~function(tensor.values), tf.float32)
        return tf.math.unsorted_segment_sum(missed, tensor.indices[:, 0], tensor.dense_shape[0]) == 0
    flags = map_values(function, tensor)
    return tf.reduce_all(flags, axis=list(range(1, len(tensor.shape)))) if len(tensor.shape) > 1 else flags


class NeedsRows(typing.NamedTuple):
    """What needs inputs of which each row is an example, and what to write instead: parts of a message."""

    what: str
    remedy: str


def check_rows(x: Any, y: Any, sample_weight: Any, needs: NeedsRows | None = None) -> None:
    """Rejects a batch whose parts have different numbers of rows, which Keras might broadcast.

    Several inputs may have numbers of their own, such as the nodes and the edges of a batch of graphs.

    Args:
        x, y, sample_weight: Structures of arrays and tensors.
        needs: What needs each row of every input to be an example, or None.

    Raises:
        ValueError: with the numbers of rows. Nothing is checked if a number is not known yet.
    """
    numbers = numbers_of_rows(x, y, sample_weight)
    found = [number for part in numbers.values() for number in part]
    if all(isinstance(number, int) for number in found) and rows_differ(numbers, needs):
        raise ValueError(message_of_rows(numbers, needs).format(*found))


def numbers_of_rows(x: Any, y: Any, sample_weight: Any) -> dict[str, list[Any]]:
    """The rows (see `rows`) of all the arrays and tensors of each part of a batch."""
    parts = {"x": x, "y": y, "sample_weight": sample_weight}
    return {name: [rows(t) for t in keras.tree.flatten(part) if is_batch(t)] for name, part in parts.items()}


def rows_differ(numbers: dict[str, list[Any]], needs: NeedsRows | None) -> Any:
    """Whether `check_rows` rejects these numbers of rows: a bool, or a scalar tensor if not all are known."""
    x, others = numbers["x"], [*numbers["y"], *numbers["sample_weight"]]
    others += x if len(x) == 1 or needs is not None else []
    if all(isinstance(number, int) for number in others):
        return len(set(others)) > 1
    return tf.reduce_any([number != others[0] for number in others])


def message_of_rows(numbers: dict[str, list[Any]], needs: NeedsRows | None) -> str:
    """The error message for different numbers of rows, with `{}` for each of them."""
    shown = ", ".join(
        f"{name} has {' and '.join(['{}'] * len(found))}" for name, found in numbers.items() if found
    )
    if needs is None:
        return f"x, y and sample_weight must have the same number of rows: {shown} rows."
    return f"{needs.what}, so each row of x must be one example: {shown} rows. {needs.remedy}"
