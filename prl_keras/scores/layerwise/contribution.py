"""The contribution of each example to the gradient of one weight, and arithmetic that all layers share."""

import functools
import typing
from collections.abc import Sequence
from typing import Any

import tensorflow as tf


class Contribution(typing.NamedTuple):
    """The contribution of each example to the gradient of one weight.

    Attributes:
        norms: `[batch]`, the L2 norms. None for a vector: `Vectors` computes one norm of all vectors.
        gradients: The gradients, a list of tensors `[batch, ...]` that, concatenated along axis 1, hold the
            weight's entries in their order; None if they were not computed.
    """

    norms: tf.Tensor | None
    gradients: Any = None

    @property
    def made(self) -> list[tf.Tensor]:
        """The tensors that were computed: norms and gradients."""
        return [*([] if self.norms is None else [self.norms]), *(self.gradients or ())]


class Vectors:
    """The contributions to all weights with one axis, in one matrix `[batch, entries]`.

    One norm and one product are enough for all of them.

    Args:
        pairs: `(weight, its Contribution)` each, at least one.
    """

    def __init__(self, pairs: Sequence[tuple[Any, Contribution]]) -> None:
        self._weights = [weight for weight, _ in pairs]
        parts = [contribution.gradients[0] for _, contribution in pairs]
        precision = tf.float64 if tf.float64 in [part.dtype for part in parts] else tf.float32
        self._matrix = tf.concat([tf.cast(part, precision) for part in parts], axis=1)

    def norms(self) -> tf.Tensor:
        """The L2 norms over all entries, `[batch]`."""
        return row_norms(self._matrix)

    def weighted_sums(self, w: tf.Tensor) -> list[tf.Tensor]:
        """`sum_i w_i * gradient_i` for each weight, in the weight's dtype; `w` is `[batch]`."""
        total = tf.tensordot(tf.cast(w, self._matrix.dtype), self._matrix, 1)
        parts = tf.split(total, [weight.shape[0] for weight in self._weights])
        return [tf.cast(part, weight.dtype) for part, weight in zip(parts, self._weights)]


def direct(gradients: list[tf.Tensor]) -> Contribution:
    """The `Contribution` of computed gradients, a list as in `Contribution.gradients`."""
    squares = [tf.reduce_sum(g * g, axis=list(range(1, len(g.shape)))) for g in gradients]
    return Contribution(tf.sqrt(tf.add_n(squares)), gradients)


def from_gram(a: tf.Tensor, b: tf.Tensor) -> Contribution:
    """The `Contribution` whose squared norms are the sums of `a * b` over all axes but the first."""
    squares = tf.reduce_sum(a * b, axis=list(range(1, len(a.shape))))
    return Contribution(tf.sqrt(tf.maximum(squares, 0.0)))  # rounding can make a sum negative


def vector(gradient: tf.Tensor) -> Contribution:
    """The `Contribution` of gradients `[batch, q]` to a weight with one axis."""
    return Contribution(None, [gradient])


def to_bias(d: tf.Tensor) -> Contribution:
    """The `Contribution` of `d`, `[batch, positions, q]`, to a bias `[q]`."""
    return vector(tf.reduce_sum(d, axis=1))


def direct_is_small(gradient: int, held: int, matrices: int) -> bool:
    """Whether an example's gradient has no more entries than what is held anyway, or the Gram matrices."""
    return gradient <= max(held, matrices)


def weighted_sum(contribution: Contribution, w: tf.Tensor, weight: tf.Tensor) -> tf.Tensor:
    """`sum_i w_i * gradient_i` from computed gradients, in the shape of `weight` and the dtype of `w`."""
    sums = [tf.tensordot(w, tf.cast(g, w.dtype), 1) for g in contribution.gradients]
    return tf.reshape(tf.concat(sums, axis=0) if len(sums) > 1 else sums[0], tf.shape(weight))


def row_norms(t: tf.Tensor) -> tf.Tensor:
    """L2 norms of the rows, each scaled by its largest entry: the squares of 1e30 overflow float32."""
    largest = tf.reduce_max(tf.abs(t), axis=1, keepdims=True)
    scale = tf.where(largest > 0, largest, 1.0)
    return scale[:, 0] * tf.norm(t / scale, axis=1)


def norm_of_norms(norms: Sequence[tf.Tensor]) -> tf.Tensor:
    """The L2 norms `[batch]` of vectors from their parts' norms, `[batch]` each; scaled as in `row_norms`.

    All operations are elementwise, so XLA fuses them into one kernel.
    """
    largest = functools.reduce(tf.maximum, norms)
    scale = tf.where(largest > 0, largest, 1.0)
    return scale * tf.sqrt(tf.add_n([tf.square(norm / scale) for norm in norms]))
