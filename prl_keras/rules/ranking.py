"""Which scores of a batch are lowest, without a sort.

TensorFlow turns `argsort` into TopK, which is slow on GPUs and which XLA handles badly. The functions
here compare and count instead. Their graphs hold no sort, no TopK and no control flow; they take
static and unknown batch sizes, eagerly, in a `tf.function` and under XLA.

Counts are held in float32, because TensorFlow sums int32 on the host: a batch has fewer than 2**24
examples.
"""

import numpy as np
import tensorflow as tf
from keras import ops

LARGEST_SCORE = float(np.finfo(np.float32).max)  # of real examples: padding comes after them
_SMALLEST_SCORE = float(np.finfo(np.float32).tiny)
_UNRANKED = 2**31  # above the key of every score
_LARGEST_TO_COUNT = 128  # examples, up to which the comparison of all pairs is the faster
_DIGIT_BITS = 8  # four digits make a key


def prepare(scores, is_ranked):
    """-> (float32 scores, not-a-number made the largest; bool is_ranked; float32 number of ranked)."""
    scores = ops.stop_gradient(ops.cast(scores, "float32"))
    scores = ops.where(ops.isfinite(scores), scores, LARGEST_SCORE)
    # One zero for -0.0, whose bits differ from 0.0's, and for numbers too small to be kept everywhere.
    scores = ops.where(ops.abs(scores) < _SMALLEST_SCORE, 0.0, scores)
    if is_ranked is None:
        is_ranked = ops.ones_like(scores, dtype="bool")
    is_ranked = ops.cast(is_ranked, "bool")
    return scores, is_ranked, ops.sum(ops.cast(is_ranked, "float32"))


def keep_lowest(scores, is_ranked, count, kept):
    """Weight `count / kept` for the `kept` lowest scores among the ranked, 0 for the others."""
    is_kept = is_among_lowest(scores, is_ranked, kept)
    return ops.where(is_kept, ops.cast(count, "float32") / ops.cast(kept, "float32"), 0.0)


def is_among_lowest(scores, is_ranked, kept):
    """Which examples have the `kept` lowest scores among the ranked; of equals, the earlier are in.

    A static batch of at most 128 is compared pair by pair. Every other batch goes through a search for
    the threshold, which takes time and memory proportional to the batch.

    Args:
        scores: float32 `[batch]`.
        is_ranked: bool `[batch]`; False marks padding, which is never kept.
        kept: Number of examples to keep, at least 1; a number or an integer scalar tensor.

    Returns:
        bool `[batch]`, True for `min(kept, number of ranked)` examples.
    """
    if scores.shape[0] is not None and scores.shape[0] <= _LARGEST_TO_COUNT:
        return is_among_lowest_by_pairs(scores, is_ranked, kept)
    return is_among_lowest_by_threshold(scores, is_ranked, kept)


def is_among_lowest_by_pairs(scores, is_ranked, kept):
    """As `is_among_lowest`, in memory of `batch` squared: counts for each example the lower ones."""
    keys = _distinct_keys(scores, is_ranked)
    lower = ops.sum(ops.cast(keys[None, :] < keys[:, None], "float32"), axis=1)
    return ops.logical_and(lower < ops.cast(kept, "float32"), is_ranked)


def is_among_lowest_by_threshold(scores, is_ranked, kept):
    """As `is_among_lowest`, in memory of `batch`: finds the `kept`-th lowest score digit by digit.

    A radix selection. Each round counts how many keys fall into each of 256 bins, and narrows the range
    of the `kept`-th lowest key to the bin where the running total reaches `kept`. Keys below the
    range go into its first bin and keys above into its last, so that the totals stay those of the
    whole batch. After four rounds the range is one key, the threshold.
    """
    kept = ops.cast(kept, "float32")
    bins = 2**_DIGIT_BITS
    ones = ops.ones_like(scores)
    above = _keys(scores, is_ranked) + 2**31  # how far each key is above the start of the range
    for shift in range(32 - _DIGIT_BITS, -1, -_DIGIT_BITS):
        digits = ops.clip(ops.right_shift(above, shift) if shift else above, 0, bins - 1)
        totals = ops.cumsum(ops.segment_sum(ones, digits, bins))
        chosen = ops.cast(ops.sum(ops.cast(totals < kept, "float32")), "int64")
        above = above - chosen * 2**shift
    room = kept - ops.sum(ops.cast(above < 0, "float32"))  # for those at the threshold
    is_equal = ops.equal(above, 0)
    is_early = ops.cumsum(ops.cast(is_equal, "float32")) <= room
    return ops.logical_or(above < 0, ops.logical_and(is_equal, is_early))


def lowest_of_each_class(scores, is_ranked, labels, number):
    """Whether fewer than `number` ranked examples of the same class are lower, equals in their order.

    It takes memory of `batch` squared.

    Args:
        scores: float32 `[batch]`.
        is_ranked: bool `[batch]`; False marks padding, which is neither counted nor chosen.
        labels: int `[batch]`, the class of each example.
        number: Number of examples to choose from each class; a number or an integer scalar tensor.

    Returns:
        bool `[batch]`.
    """
    keys = _distinct_keys(scores, is_ranked)
    is_lower = ops.logical_and(keys[None, :] < keys[:, None], labels[None, :] == labels[:, None])
    lower = ops.sum(ops.cast(is_lower, "float32"), axis=1)
    return ops.logical_and(lower < ops.cast(number, "float32"), is_ranked)


def _keys(scores, is_ranked):
    """int64 `[batch]` in the order of the scores, from -2**31 to 2**31; the unranked ones last."""
    # `ops.view` takes static shapes alone.
    bits = ops.cast(tf.bitcast(scores, tf.int32), "int64")
    # The bits of negative numbers grow as the numbers fall.
    return ops.where(is_ranked, ops.where(bits < 0, -(2**31) - bits, bits), _UNRANKED)


def _distinct_keys(scores, is_ranked):
    """int64 `[batch]` in the order of the scores, equal ones in the order of the batch."""
    return _keys(scores, is_ranked) * 2**31 + ops.arange(ops.shape(scores)[0], dtype="int64")
