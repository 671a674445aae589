"""Which scores of a batch are lowest, without a sort.

TensorFlow turns `argsort` into TopK, which is slow on GPUs and under XLA. The functions here compare and
count instead. Their graphs have no sort, no TopK and no control flow. They accept static and unknown batch
sizes, eagerly, in a `tf.function` and under XLA.

Counts are float32, because TensorFlow sums int32 on the host: a batch must have fewer than 2**24 examples.
"""

from typing import Any

import numpy as np
import tensorflow as tf
from keras import ops

LARGEST_SCORE = float(np.finfo(np.float32).max)  # padding ranks after it
_SMALLEST_SCORE = float(np.finfo(np.float32).tiny)
_UNRANKED = 2**31  # above the key of every score
_LARGEST_TO_COUNT = 128  # examples up to which comparing all pairs is faster
_LARGEST_TO_COMPARE_CLASSES = 1024  # the same within classes: all pairs take 4 MB
_DIGIT_BITS = 8  # four digits make a key
_TIED_BITS = 8  # the last bits of a score's 24, ignored for ties: a relative difference of 3e-5


def prepare(scores: Any, is_ranked: Any) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """-> (float32 scores, non-finite ones made the largest; bool is_ranked; float32 number of ranked)."""
    scores = ops.stop_gradient(ops.cast(scores, "float32"))
    scores = ops.where(ops.isfinite(scores), scores, LARGEST_SCORE)
    # 0.0 instead of -0.0, whose bits differ, and of subnormal numbers, which some devices flush to 0.
    scores = ops.where(ops.abs(scores) < _SMALLEST_SCORE, 0.0, scores)
    if is_ranked is None:
        is_ranked = ops.ones_like(scores, dtype="bool")
    is_ranked = ops.cast(is_ranked, "bool")
    return scores, is_ranked, ops.sum(ops.cast(is_ranked, "float32"))


def mean_one(weights: tf.Tensor, counts: tf.Tensor) -> tf.Tensor:
    """Weights of at least 0, scaled to a mean of 1 over the examples that count; 0 if all are 0.

    Args:
        weights: float32 `[batch]`, 0 where an example does not count.
        counts: bool `[batch]`.
    """
    number = ops.sum(ops.cast(counts, "float32"))
    return weights * (number / ops.maximum(ops.sum(weights), 1e-30))


def keep_lowest(
    scores: tf.Tensor, is_ranked: tf.Tensor, count: Any, kept: Any, ties: Any = None
) -> tf.Tensor:
    """Weight `count / kept` for the `kept` lowest scores among the ranked, 0 for the others."""
    is_kept = is_among_lowest(scores, is_ranked, kept, ties)
    return ops.where(is_kept, ops.cast(count, "float32") / ops.cast(kept, "float32"), 0.0)


def is_among_lowest(scores: tf.Tensor, is_ranked: tf.Tensor, kept: Any, ties: Any = None) -> tf.Tensor:
    """Which examples have the `kept` lowest scores among the ranked; among equal scores the earlier ones.

    With `ties`, scores that differ by rounding count as equal, and the ones with the lower entry of `ties`
    win.

    A static batch of at most 128 is compared pair by pair. Any other batch uses a search for the threshold,
    which takes time and memory proportional to the batch.

    Args:
        scores: float32 `[batch]`.
        is_ranked: bool `[batch]`; False marks padding, which is never kept.
        kept: Number of examples to keep, at least 1; a number or an integer scalar tensor.
        ties: float32 `[batch]`, the order of equal scores; None for the order of the batch.

    Returns:
        bool `[batch]`, True for `min(kept, number of ranked)` examples.
    """
    if scores.shape[0] is not None and scores.shape[0] <= _LARGEST_TO_COUNT:
        return is_among_lowest_by_pairs(scores, is_ranked, kept, ties)
    return is_among_lowest_by_threshold(scores, is_ranked, kept, ties)


def is_among_lowest_by_pairs(
    scores: tf.Tensor, is_ranked: tf.Tensor, kept: Any, ties: Any = None
) -> tf.Tensor:
    """As `is_among_lowest`, in memory of `batch` squared: counts the lower scores for each example."""
    if ties is None:
        keys = _distinct_keys(scores, is_ranked)
        is_lower = keys[None, :] < keys[:, None]
    else:
        first, second = _rounded(_keys(scores, is_ranked)), _distinct_keys(prepare(ties, None)[0], is_ranked)
        is_lower = second[None, :] < second[:, None]
        is_lower = ops.logical_and(first[None, :] == first[:, None], is_lower)
        is_lower = ops.logical_or(first[None, :] < first[:, None], is_lower)
    lower = ops.sum(ops.cast(is_lower, "float32"), axis=1)
    return ops.logical_and(lower < ops.cast(kept, "float32"), is_ranked)


def is_among_lowest_by_threshold(
    scores: tf.Tensor, is_ranked: tf.Tensor, kept: Any, ties: Any = None
) -> tf.Tensor:
    """As `is_among_lowest`, in memory of `batch`: finds the `kept`-th lowest score digit by digit.

    A radix selection. Each round counts how many keys fall into each of 256 bins, and narrows the range
    of the `kept`-th lowest key to the bin where the running total reaches `kept`. Keys below the range go
    into its first bin and keys above into its last, so the totals remain those of the whole batch. After
    four rounds the range is one key, the threshold.
    """
    kept = ops.cast(kept, "float32")
    bins = 2**_DIGIT_BITS
    ones = ops.ones_like(scores)
    keys = _keys(scores, is_ranked)
    above = (keys if ties is None else _rounded(keys)) + 2**31  # distance from the start of the range
    for shift in range(32 - _DIGIT_BITS, -1, -_DIGIT_BITS):
        digits = ops.clip(ops.right_shift(above, shift) if shift else above, 0, bins - 1)
        totals = ops.cumsum(ops.segment_sum(ones, digits, bins))
        chosen = ops.cast(ops.sum(ops.cast(totals < kept, "float32")), "int64")
        above = above - chosen * 2**shift
    room = kept - ops.sum(ops.cast(above < 0, "float32"))  # left for scores at the threshold
    is_equal = ops.equal(above, 0)
    if ties is not None:
        is_low = is_among_lowest_by_threshold(
            prepare(ties, None)[0], ops.logical_and(is_equal, is_ranked), room
        )
        return ops.logical_and(ops.logical_or(above < 0, ops.logical_and(is_equal, is_low)), is_ranked)
    is_early = ops.cumsum(ops.cast(is_equal, "float32")) <= room
    return ops.logical_or(above < 0, ops.logical_and(is_equal, is_early))


def lowest_of_each_class(
    scores: tf.Tensor, is_ranked: tf.Tensor, labels: tf.Tensor, number: Any, classes: int | None = None
) -> tf.Tensor:
    """Whether an example is among the `number` lowest ranked ones of its class; ties keep the earlier ones.

    A static batch of at most 1024, and any batch without `classes`, is compared pair by pair, in memory of
    `batch` squared. Other batches take memory of `batch` plus 256 times `classes`.

    Args:
        scores, is_ranked: As in `is_among_lowest`.
        labels: int `[batch]`, the class of each example. With `classes`, a label outside `[0, classes)` is
            not chosen.
        number: Number of examples to choose from each class; a number or an integer scalar tensor.
        classes: Number of classes, or None.

    Returns:
        bool `[batch]`.
    """
    is_small = scores.shape[0] is not None and scores.shape[0] <= _LARGEST_TO_COMPARE_CLASSES
    if classes is None or is_small:
        return _lowest_of_each_class_by_pairs(scores, is_ranked, labels, number)
    return _lowest_of_each_class_by_thresholds(scores, is_ranked, labels, number, classes)


def _lowest_of_each_class_by_pairs(scores, is_ranked, labels, number):
    keys = _distinct_keys(scores, is_ranked)
    is_lower = ops.logical_and(keys[None, :] < keys[:, None], labels[None, :] == labels[:, None])
    lower = ops.sum(ops.cast(is_lower, "float32"), axis=1)
    return ops.logical_and(lower < ops.cast(number, "float32"), is_ranked)


def _lowest_of_each_class_by_thresholds(scores, is_ranked, labels, number, classes):
    """A radix selection within each class, first of the scores, then of the places of equal scores."""
    labels = ops.cast(labels, "int32")
    is_ranked = ops.logical_and(is_ranked, ops.logical_and(labels >= 0, labels < classes))
    labels = ops.where(is_ranked, labels, 0)
    number = ops.broadcast_to(ops.cast(number, "float32"), [classes])
    above = _keys(scores, is_ranked) + 2**31
    is_lower, is_equal, room = _split_by_class(above, 32, is_ranked, labels, number, classes)
    places = ops.arange(ops.shape(scores)[0], dtype="int64")
    is_before, is_last, _ = _split_by_class(places, 24, is_equal, labels, room, classes)
    is_chosen = ops.logical_and(ops.logical_or(is_before, is_last), ops.take(room, labels) > 0)
    return ops.logical_or(is_lower, is_chosen)


def _split_by_class(above, bits, is_ranked, labels, number, classes):
    """Finds the `number`-th lowest key of each class.

    Args:
        above: int64 `[batch]`, keys of at most `bits` bits.
        bits: A multiple of 8.
        is_ranked: bool `[batch]`.
        labels: int32 `[batch]`, in `[0, classes)`.
        number: float32 `[classes]`.
        classes: Number of classes.

    Returns:
        Whether a key is lower, and whether it equals that key, both bool `[batch]`; how many of the equal
        ones are among the `number`, float32 `[classes]`.
    """
    bins, ones = 2**_DIGIT_BITS, ops.cast(is_ranked, "float32")
    for shift in range(bits - _DIGIT_BITS, -1, -_DIGIT_BITS):
        digits = ops.clip(ops.right_shift(above, shift), 0, bins - 1)
        counts = ops.segment_sum(ones, labels * bins + ops.cast(digits, "int32"), classes * bins)
        totals = ops.cumsum(ops.reshape(counts, [classes, bins]), axis=1)
        chosen = ops.minimum(ops.sum(ops.cast(totals < number[:, None], "float32"), axis=1), bins - 1)
        above = above - ops.take(ops.cast(chosen, "int64"), labels) * 2**shift
    is_lower, is_equal = (ops.logical_and(is_ranked, each) for each in (above < 0, ops.equal(above, 0)))
    lower = ops.segment_sum(ops.cast(is_lower, "float32"), labels, classes)
    return is_lower, is_equal, number - lower


def _keys(scores, is_ranked):
    """int64 `[batch]` in the order of the scores, from -2**31 to 2**31; the unranked ones last."""
    # `ops.view` takes only static shapes.
    bits = ops.cast(tf.bitcast(scores, tf.int32), "int64")
    # The bits of negative numbers grow as the numbers fall.
    return ops.where(is_ranked, ops.where(bits < 0, -(2**31) - bits, bits), _UNRANKED)


def _rounded(keys):
    """Rounded keys: those of scores that differ by rounding are mostly equal."""
    step = 2**_TIED_BITS
    return ops.right_shift(keys + step // 2, _TIED_BITS) * step


def _distinct_keys(scores, is_ranked):
    """int64 `[batch]` in the order of the scores, equal ones in the order of the batch."""
    return _keys(scores, is_ranked) * 2**31 + ops.arange(ops.shape(scores)[0], dtype="int64")
