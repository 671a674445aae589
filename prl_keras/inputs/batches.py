"""One pass over a user's data, in their order."""

from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf

from prl_keras.inputs.arrays import check_targets_given
from prl_keras.validate import check_integer

_ENDLESS = "The data set has no end; give it without repeat(), one pass over the examples."


def batches(dataset: Any, batch_size: int) -> Iterator[tuple[Any, Any]]:
    """Yields `(x, y)` of `weighted_batches`."""
    for x, y, _ in weighted_batches(dataset, batch_size):
        yield x, y


def weighted_batches(dataset: Any, batch_size: int) -> Iterator[tuple[Any, Any, Any]]:
    """Yields `(x, y, sample_weight)`, structures of tensors, batch by batch; sample_weight may be None.

    Args:
        dataset: A `tf.data.Dataset` or `keras.utils.PyDataset` of batches `(x, y)` or
            `(x, y, sample_weight)`, or a tuple of such arrays.
        batch_size: For a tuple of arrays.

    Raises:
        ValueError: for an empty or endless data set, missing targets, or an unsupported type.
    """
    is_empty = True
    for batch in _given(dataset, batch_size):
        is_empty = False
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(batch)
        check_targets_given(y)
        x, y = keras.tree.map_structure(tf.convert_to_tensor, (x, y))
        yield (
            x,
            y,
            keras.tree.map_structure(lambda t: None if t is None else tf.convert_to_tensor(t), sample_weight),
        )
    if is_empty:
        raise ValueError("The data set is empty; there is nothing to score.")


def _given(dataset, batch_size):
    if isinstance(dataset, keras.utils.PyDataset):
        if dataset.num_batches is None:
            raise ValueError(_ENDLESS)
        return (dataset[i] for i in range(dataset.num_batches))
    if isinstance(dataset, tuple):
        check_integer("batch_size", batch_size)
        x, *others = dataset
        # A list holds the inputs of a model; tf.data would stack it into one tensor.
        x = tuple(x) if isinstance(x, list) and all(hasattr(array, "shape") for array in x) else x
        return tf.data.Dataset.from_tensor_slices((x, *others)).batch(batch_size)
    if isinstance(dataset, tf.data.Dataset):
        if dataset.cardinality() == tf.data.INFINITE_CARDINALITY:
            raise ValueError(_ENDLESS)
        return dataset
    raise ValueError(
        f"dataset is a {type(dataset).__name__}; give a tf.data.Dataset of batches, a "
        "keras.utils.PyDataset, or a tuple of arrays (x, y)."
    )
