"""Places of examples in a batch, without a sort or a condition, for which a GPU would wait.

Counts are float32, as in `rules.ranking`: TensorFlow has no GPU kernel for the cumulative sum of integers.
"""

from typing import Any

import keras
import tensorflow as tf
from keras import ops

_LARGEST_TO_COMPARE = 128  # examples up to which comparing all pairs takes the fewest kernels


def batch_size(x: Any) -> tf.Tensor:
    """The number of rows of the first input that is given, an int32 scalar; optional inputs may be None."""
    return tf.shape(next(t for t in keras.tree.flatten(x) if t is not None))[0]


def first_positions(mask: tf.Tensor, count: int | tf.Tensor) -> tf.Tensor:
    """Positions of the first `count` True entries; if there are fewer, it cycles through them.

    Args:
        mask: bool `[batch]`.
        count: Number of positions, a number or an int32 scalar tensor.

    Returns:
        int32 `[count]`, all 0 if no entry is True.
    """
    so_far = ops.cumsum(ops.cast(mask, "float32"))
    number = ops.sum(ops.cast(mask, "float32"))
    wanted = ops.mod(ops.cast(ops.arange(count, dtype="int32"), "float32"), ops.maximum(number, 1.0))
    # `UpperBound` finds the entry that raises the total above `wanted`.
    positions = tf.raw_ops.UpperBound(sorted_inputs=so_far[None], values=wanted[None])[0]
    return ops.where(number > 0, positions, 0)


def nearest_before(mask: tf.Tensor) -> tf.Tensor:
    """The place of each True entry, and for a False one that of the nearest True entry before it, cyclically.

    Args:
        mask: bool `[batch]`.

    Returns:
        int32 `[batch]`, in `[0, batch)`; arbitrary if no entry is True.
    """
    size = mask.shape[0]
    if size is not None and 0 < size <= _LARGEST_TO_COMPARE:
        places = ops.arange(size, dtype="float32")
        # The largest True place up to the entry's own, else the largest of all.
        rounds = tf.where(places[None, :] <= places[:, None], float(size), 0.0)
        found = tf.reduce_max(tf.where(mask, places + rounds, -1.0), axis=1)
        return ops.cast(ops.mod(found, size), "int32")
    so_far = ops.cumsum(ops.cast(mask, "float32"))
    number = ops.sum(ops.cast(mask, "float32"))
    wanted = ops.where(so_far > 0, so_far, number)
    places = tf.raw_ops.LowerBound(sorted_inputs=so_far[None], values=wanted[None])[0]
    return ops.minimum(places, ops.maximum(ops.size(mask) - 1, 0))
