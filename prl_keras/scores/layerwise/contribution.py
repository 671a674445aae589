"""What each example contributes to the gradient of one weight, and the arithmetic that all layers share."""

import functools
import typing

import tensorflow as tf


class Contribution(typing.NamedTuple):
    """Of each example to the gradient of one weight.

    Attributes:
        norms: `[batch]`; None of a vector, whose norm `Vectors` takes together with others.
        gradients: The gradients themselves, a list of tensors `[batch, ...]` that joined along their axis 1
            hold the weight's entries in their order; None if they were not made.
    """

    norms: tf.Tensor | None
    gradients: list | None = None

    @property
    def made(self):
        """The tensors of both, a list."""
        return [*([] if self.norms is None else [self.norms]), *(self.gradients or ())]


class Vectors:
    """The contributions to all weights of one axis, in one matrix `[batch, entries]`.

    One norm and one product do for all of them.
    """

    def __init__(self, pairs):
        """Joins them.

        Args:
            pairs: `(weight, its Contribution)` each, a list of at least one.
        """
        self._weights = [weight for weight, _ in pairs]
        parts = [contribution.gradients[0] for _, contribution in pairs]
        precision = tf.float64 if tf.float64 in [part.dtype for part in parts] else tf.float32
        self._matrix = tf.concat([tf.cast(part, precision) for part in parts], axis=1)

    def norms(self):
        """`[batch]`, over all entries."""
        return row_norms(self._matrix)

    def weighted_sums(self, w):
        """For each weight `sum_i w_i * gradient_i`, in its dtype.

        Args:
            w: `[batch]`.
        """
        total = tf.tensordot(tf.cast(w, self._matrix.dtype), self._matrix, 1)
        parts = tf.split(total, [weight.shape[0] for weight in self._weights])
        return [tf.cast(part, weight.dtype) for part, weight in zip(parts, self._weights)]


def direct(gradients):
    """The `Contribution` of gradients that are there, a list as above."""
    squares = [tf.reduce_sum(g * g, axis=list(range(1, len(g.shape)))) for g in gradients]
    return Contribution(tf.sqrt(tf.add_n(squares)), gradients)


def from_gram(a, b):
    """The `Contribution` whose squared norms are the sums of `a * b` over all axes but the first."""
    squares = tf.reduce_sum(a * b, axis=list(range(1, len(a.shape))))
    return Contribution(tf.sqrt(tf.maximum(squares, 0.0)))  # rounding can leave a hair below 0


def vector(gradient):
    """The `Contribution` of gradients `[batch, q]` to a weight of one axis."""
    return Contribution(None, [gradient])


def to_bias(d):
    """Of d `[batch, positions, q]` to a bias `[q]`."""
    return vector(tf.reduce_sum(d, axis=1))


def direct_is_small(gradient, held, matrices):
    """Whether an example's gradient has no more numbers than what is held anyway, or than the matrices."""
    return gradient <= max(held, matrices)


def weighted_sum(contribution, w, weight):
    """`sum_i w_i * gradient_i` from gradients that are there, in the shape of `weight` and the dtype of w."""
    sums = [tf.tensordot(w, tf.cast(g, w.dtype), 1) for g in contribution.gradients]
    return tf.reshape(tf.concat(sums, axis=0) if len(sums) > 1 else sums[0], tf.shape(weight))


def row_norms(t):
    """L2 norms of the rows, scaled by their largest entries: targets of 1e30 have squares beyond float32."""
    largest = tf.reduce_max(tf.abs(t), axis=1, keepdims=True)
    scale = tf.where(largest > 0, largest, 1.0)
    return scale[:, 0] * tf.norm(t / scale, axis=1)


def norm_of_norms(norms):
    """The L2 norms `[batch]` of what has the parts with these norms, a list of `[batch]`; scaled likewise.

    Entry by entry: XLA makes one kernel of all that.
    """
    largest = functools.reduce(tf.maximum, norms)
    scale = tf.where(largest > 0, largest, 1.0)
    return scale * tf.sqrt(tf.add_n([tf.square(norm / scale) for norm in norms]))
