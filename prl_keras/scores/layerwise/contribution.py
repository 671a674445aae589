"""What each example contributes to the gradient of one weight, and the arithmetic that all layers share."""

import typing

import tensorflow as tf


class Contribution(typing.NamedTuple):
    """Of each example to the gradient of one weight.

    Attributes:
        norms: `[batch]`.
        gradients: The gradients themselves, a list of tensors `[batch, ...]` that stacked (or, a single
            one, as it is) hold the weight's entries in their order; None if they were not made.
    """

    norms: tf.Tensor
    gradients: list | None = None


def direct(gradients):
    """The `Contribution` of gradients that are there, a list as above."""
    squares = [tf.reduce_sum(g * g, axis=list(range(1, len(g.shape)))) for g in gradients]
    return Contribution(tf.sqrt(tf.add_n(squares)), gradients)


def from_gram(a, b):
    """The `Contribution` whose squared norms are the sums of `a * b` over all axes but the first."""
    squares = tf.reduce_sum(a * b, axis=list(range(1, len(a.shape))))
    return Contribution(tf.sqrt(tf.maximum(squares, 0.0)))  # rounding can leave a hair below 0


def to_bias(d):
    """Of d `[batch, positions, q]` to a bias `[q]`."""
    total = tf.reduce_sum(d, axis=1)
    return Contribution(row_norms(total), [total])


def direct_is_small(gradient, held, matrices):
    """Whether an example's gradient has no more numbers than what is held anyway, or than the matrices."""
    return gradient <= max(held, matrices)


def weighted_sum(contribution, w, weight):
    """`sum_i w_i * gradient_i` from gradients that are there, in the shape of `weight` and the dtype of w."""
    sums = [tf.tensordot(w, tf.cast(g, w.dtype), 1) for g in contribution.gradients]
    return tf.reshape(tf.stack(sums) if len(sums) > 1 else sums[0], tf.shape(weight))


def row_norms(t):
    """L2 norms of the rows, scaled by their largest entries: targets of 1e30 have squares beyond float32."""
    largest = tf.reduce_max(tf.abs(t), axis=1, keepdims=True)
    scale = tf.where(largest > 0, largest, 1.0)
    return scale[:, 0] * tf.norm(t / scale, axis=1)
