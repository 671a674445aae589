"""One pass over a user's data, in their order."""

import functools
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from prl_keras.inputs import tensors
from prl_keras.inputs.arrays import check_batched, check_targets_given
from prl_keras.validate import check_integer

_ENDLESS = "The data set has no end; give it without repeat(), one pass over the examples."
_SINGLE = " If the data set gives single examples, write dataset.batch(32)."
_RECORD = tensors.NeedsRows("SelectionRecord knows an example by its rows of x and y", "Train without it.")
_ARRAYS = tensors.NeedsRows("Arrays are cut into batches by their rows", "Give a tf.data.Dataset of batches.")


def batches(dataset: Any, batch_size: int) -> Iterator[tuple[Any, Any]]:
    """Yields `(x, y)` of `weighted_batches`; each row of every input must be an example."""
    for x, y, _ in weighted_batches(dataset, batch_size):
        tensors.check_rows(x, y, None, _RECORD)
        yield x, y


def weighted_batches(dataset: Any, batch_size: int) -> Iterator[tuple[Any, Any, Any]]:
    """Yields `(x, y, sample_weight)`, structures of tensors, batch by batch; sample_weight may be None.

    Sparse and ragged tensors stay what they are; SciPy's sparse arrays become sparse tensors.

    Args:
        dataset: A `tf.data.Dataset` or `keras.utils.PyDataset` of batches `(x, y)` or
            `(x, y, sample_weight)`, or a tuple of such arrays.
        batch_size: For a tuple of arrays.

    Raises:
        ValueError: for an empty or endless data set, missing targets, single examples in place of batches,
            different numbers of rows, or an unsupported type.
    """
    is_empty = True
    for batch in _given(dataset, batch_size):
        is_empty = False
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(batch)
        check_targets_given(y)
        check_batched(y)
        x, y, sample_weight = keras.tree.map_structure(tensors.as_tensor, (x, y, sample_weight))
        try:
            tensors.check_rows(x, y, sample_weight)
        except ValueError as error:
            raise ValueError(f"{error}{_SINGLE if isinstance(dataset, tf.data.Dataset) else ''}") from None
        yield x, y, sample_weight
    if is_empty:
        raise ValueError("The data set is empty; there is nothing to score.")


def _given(dataset, batch_size):
    if isinstance(dataset, keras.utils.PyDataset):
        if dataset.num_batches is None:
            raise ValueError(_ENDLESS)
        return (dataset[i] for i in range(dataset.num_batches))
    if isinstance(dataset, tuple):
        check_integer("batch_size", batch_size)
        return _slices(dataset, batch_size)
    if isinstance(dataset, tf.data.Dataset):
        if dataset.cardinality() == tf.data.INFINITE_CARDINALITY:
            raise ValueError(_ENDLESS)
        return dataset
    raise ValueError(
        f"dataset is a {type(dataset).__name__}; give a tf.data.Dataset of batches, a "
        "keras.utils.PyDataset, or a tuple of arrays (x, y)."
    )


def _slices(arrays, batch_size):
    """The batches of a tuple of arrays, or of structures of arrays."""
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(arrays)
    check_targets_given(y)
    x = _arrays(x)
    n = max(map(tensors.rows, filter(tensors.is_batch, keras.tree.flatten(x))), default=0)
    parts = (x, *(_arrays(part, n) for part in (y, sample_weight)))
    check_batched(parts[1])
    tensors.check_rows(*parts)
    tensors.check_rows(*parts, _ARRAYS)
    for start in range(0, int(n), batch_size):
        take = functools.partial(tensors.take_rows, start=start, stop=start + batch_size)
        yield keras.tree.map_structure(take, parts)


def _arrays(part, number=None):
    """Arrays in place of lists of numbers, and of lists of `number` arrays, one per example."""
    if isinstance(part, dict):
        return {name: _arrays(value, number) for name, value in part.items()}
    leaves = keras.tree.flatten(part)
    are_batches = all(leaf is None or tensors.is_batch(leaf) for leaf in leaves)
    is_stack = isinstance(part, list) and len(part) == number and any(len(t) != number for t in leaves)
    if isinstance(part, (list, tuple)) and (is_stack or not are_batches):
        return np.asarray(part)
    return keras.tree.map_structure(_sliceable, part)


def _sliceable(array):
    is_as_it_is = array is None or tf.is_tensor(array) or hasattr(array, "tocoo")
    return tensors.as_tensor(array) if is_as_it_is else np.asarray(array)
