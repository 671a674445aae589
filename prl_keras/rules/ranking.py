"""Which examples have the lowest scores, with ties broken by their place in the batch."""

import math

import numpy as np
from keras import ops

LARGEST_SCORE = float(np.finfo(np.float32).max)  # of real examples: padding is put at infinity
_SMALLEST_SCORE = float(np.finfo(np.float32).tiny)


def prepare(scores, is_ranked):
    """-> (float32 scores, not-a-number made the largest; bool is_ranked; int32 number of ranked)."""
    scores = ops.stop_gradient(ops.cast(scores, "float32"))
    scores = ops.where(ops.isfinite(scores), scores, LARGEST_SCORE)
    # One zero for -0.0, which XLA sorts before 0.0, and for numbers too small to be kept everywhere.
    scores = ops.where(ops.abs(scores) < _SMALLEST_SCORE, 0.0, scores)
    if is_ranked is None:
        is_ranked = ops.ones_like(scores, dtype="bool")
    is_ranked = ops.cast(is_ranked, "bool")
    return scores, is_ranked, ops.sum(ops.cast(is_ranked, "int32"))


def keep_lowest(scores, is_ranked, count, kept):
    """Weight `count / kept` for the `kept` lowest scores among the ranked, 0 for the others."""
    # The inverse of the sorting permutation is each example's rank; argsort keeps the order of ties.
    order = ops.argsort(ops.where(is_ranked, scores, math.inf))
    is_kept = ops.logical_and(ops.argsort(order) < kept, is_ranked)
    return ops.where(is_kept, ops.cast(count, "float32") / ops.cast(kept, "float32"), 0.0)


def lowest_of_each_class(scores, is_ranked, labels, number):
    """bool `[batch]`: whether fewer than `number` examples of the same class have a lower score."""
    rank = ops.argsort(ops.argsort(ops.where(is_ranked, scores, math.inf)))  # all different
    is_lower = ops.logical_and(rank[None, :] < rank[:, None], labels[None, :] == labels[:, None])
    lower = ops.sum(ops.cast(ops.logical_and(is_lower, is_ranked[None, :]), "int32"), axis=1)
    return ops.logical_and(lower < number, is_ranked)
