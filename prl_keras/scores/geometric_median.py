"""How far an example's gradient is from the geometric median of the batch's gradients."""

from typing import Any

import tensorflow as tf

from prl_keras.scores.loss_layer import loss_layer_gradients

ITERATIONS = 16
SMALLEST = 1e-6  # smaller distances count as this one


def distance_to_median(
    y_true: Any, y_pred: Any, loss: Any, sample_weight: Any = None, is_rescaled: bool = False
) -> tf.Tensor:
    """The distance of each gradient at the logits to the geometric median of all of them.

    `score_i = ||g_i - m||`, where `g_i` is the gradient of the loss of example i with respect to the logits
    (as in `loss_layer_gradient_norm`), and `m` minimizes `sum_i ||g_i - m||`. Fewer than half of the
    gradients, however large, cannot carry `m` away. `m` comes from `ITERATIONS` iterations of Weiszfeld's
    algorithm `m <- sum_i g_i / d_i / sum_i 1 / d_i` with `d_i = max(||g_i - m||, SMALLEST)` (Pillutla,
    Kakade & Harchaoui 2022, "Robust aggregation for federated learning"; Chen, Su & Xu 2017, "Distributed
    statistical machine learning in adversarial settings", average gradients by it). They start from
    the mean with the weights `1 / (1 + ||g_i||)`. With one logit `m` is the median.

    Unlike other scores, an example's score depends on the batch it is in. On several replicas `m` is that of
    the replica's share; the rule gets all the distances.

    Args:
        y_true, y_pred, loss, sample_weight: As in `loss_layer_gradient_norm`. Padding, and gradients that
            are not finite, have no part in `m`.
        is_rescaled: Whether the gradients are those of `loss_layer_score`.

    Returns:
        float32 `[batch]`; infinity where a gradient is not finite or its square overflows.

    Raises:
        ValueError: as in `loss_layer_gradient_norm`.
    """
    gradients, counts, is_finite = loss_layer_gradients(y_true, y_pred, loss, sample_weight, is_rescaled)
    counted = tf.cast(counts, tf.float32)
    median = _mean(gradients, counted / (1.0 + tf.norm(gradients, axis=1)))
    for _ in range(ITERATIONS):
        distances = tf.norm(gradients - median, axis=1)
        median = _mean(gradients, counted / tf.maximum(distances, SMALLEST))
    return tf.where(is_finite, tf.norm(gradients - median, axis=1), float("inf"))


def _mean(rows, weights):
    """The weighted mean of rows `[n, q]`, `[q]`; 0 if all weights `[n]` are 0."""
    return tf.linalg.matvec(rows, weights, transpose_a=True) / tf.maximum(tf.reduce_sum(weights), 1e-30)
