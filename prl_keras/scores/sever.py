"""The score of SEVER: how far an example's gradient lies along the direction in which gradients vary most."""

from typing import Any

import tensorflow as tf

from prl_keras.scores.loss_layer import loss_layer_gradients

ITERATIONS = 16


def sever(y_true: Any, y_pred: Any, loss: Any, sample_weight: Any = None) -> tf.Tensor:
    """The squared part of each centered gradient along the top singular vector of all of them.

    `score_i = ((g_i - mean g) . v)^2`, where `g_i` is the gradient of the loss of example i with respect to
    the logits (as in `loss_layer_gradient_norm`) and `v` the top right singular vector of the matrix with the
    rows `g_i - mean g` (Diakonikolas et al. 2019, "Sever: a robust meta-algorithm for stochastic
    optimization"). The authors take gradients of all weights, train to the end, drop the highest scores, and
    start again; here each batch drops its own. `v` comes from `ITERATIONS` power iterations.

    Gradient norms only tell how large a gradient is. This score tells directions apart: many wrong labels
    that pull the same way, such as those of a pairflip, make `v` their direction. The other examples' scores
    are small even if their gradients are as large.

    It fails if the gradients of good examples vary most in another direction: a class that is hard, rare, or
    not learned yet is then dropped, and wrong labels in many directions are not found. A batch of few
    examples makes `v` random. Unlike other scores, an example's score depends on the batch it is in.

    On several replicas the mean and `v` are those of the replica's share; the rule compares all the scores.

    Args:
        y_true, y_pred, loss, sample_weight: As in `loss_layer_gradient_norm`. Padding, and gradients that
            are not finite, have no part in the mean and in `v`.

    Returns:
        float32 `[batch]`; infinity where a gradient is not finite, and 0 for padding.

    Raises:
        ValueError: as in `loss_layer_gradient_norm`.
    """
    gradients, counts, is_finite = loss_layer_gradients(y_true, y_pred, loss, sample_weight, True)
    # Entries in [-1, 1]: the squares of 1e30 overflow float32.
    largest = tf.reduce_max(tf.abs(gradients))
    scale = tf.where(largest > 0, largest, 1.0)
    number = tf.maximum(tf.reduce_sum(tf.cast(counts, tf.float32)), 1.0)
    mean = tf.reduce_sum(gradients / scale, axis=0) / number
    centered = tf.where(counts[:, None], gradients / scale - mean, 0.0)
    along = tf.linalg.matvec(centered, _top_direction(centered))
    return tf.where(is_finite, tf.square(scale * along), float("inf"))


def _top_direction(rows):
    """The top right singular vector of `rows` `[n, q]` by power iterations, `[q]`; 0 if all rows are 0.

    The first vector is fixed and has no pattern. Structured ones can be orthogonal to the answer: that of
    ones to all gradients of a softmax, the longest row to the direction of many shorter ones.
    """
    place = tf.cast(tf.range(tf.shape(rows)[1]) % 1009 + 1, tf.float32)
    v = tf.sin(place * place)
    for _ in range(ITERATIONS):
        v = tf.linalg.matvec(rows, tf.linalg.matvec(rows, v), transpose_a=True)
        v /= tf.maximum(tf.norm(v), 1e-30)
    return v
