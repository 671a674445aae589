"""Keras metrics of a step that cost few kernels: related counts share one variable."""

import typing
import warnings
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from prl_keras.inputs import class_labels

# Classes: comparing each label with all of them is one kernel, but needs n * classes comparisons.
_MOST_TO_COMPARE = 64


class _OfOneEpoch(keras.metrics.Metric):
    """A metric whose state is not saved: Keras resets it at the start of an epoch."""

    def save_own_variables(self, store: typing.Any) -> None:
        del store

    def load_own_variables(self, store: typing.Any) -> None:
        del store


class Ratio(_OfOneEpoch):
    """One sum over batches divided by another, or the first sum alone if the other is 0: see `ratios`.

    Args:
        name: The name of the metric.
        place: The index of this ratio.
        first: The `Ratio` that holds the common variable; None for the first one.
        number: The number of ratios.
    """

    def __init__(self, name: str, place: int, first: "Ratio | None", number: int) -> None:
        super().__init__(name=name)
        self._place = place
        if first is None:
            self.sums = self.add_variable((2 * number,), keras.initializers.Zeros(), name="sums")
            self._sums_of_all = lambda: self.sums
        else:
            self._sums_of_all = lambda: first.sums

    def add(self, sums: Sequence[Sequence[tuple[typing.Any, typing.Any]]]) -> None:
        """Adds a batch to all the ratios.

        Args:
            sums: Per network a list of `(numerator, denominator)`, float32 scalars, in the order of `ratios`.
        """
        rows = [sum(numbers) for ratio in zip(*sums) for numbers in zip(*ratio)]
        self._sums_of_all().assign_add(tf.stack(rows))

    def result(self) -> tf.Tensor:
        sums = tf.convert_to_tensor(self._sums_of_all().value)
        numerator, denominator = sums[2 * self._place], sums[2 * self._place + 1]
        return numerator / tf.where(denominator > 0, denominator, 1.0)


def ratios(names: Sequence[str]) -> list[Ratio]:
    """One `Ratio` per name, all in one variable, so that one kernel updates them."""
    first = Ratio(names[0], 0, None, len(names))
    others = [Ratio(name, place, first, len(names)) for place, name in enumerate(names[1:], start=1)]
    return [first, *others]


class KeptByClass(_OfOneEpoch):
    """The lowest kept fraction among the classes that were seen.

    Args:
        classes: The number of classes.
        name: The name of the metric.
    """

    def __init__(self, classes: int, name: str = "kept_fraction_min_class") -> None:
        super().__init__(name=name)
        self.counts = self.add_variable((2, classes), keras.initializers.Zeros(), name="kept_and_seen")
        self._warned: frozenset[int] = frozenset()

    def update_state(self, labels: tf.Tensor, is_kept: tf.Tensor, is_ranked: tf.Tensor) -> None:
        """Counts a batch; labels outside `[0, classes)` are ignored.

        Args:
            labels: int `[batch]`, the given classes.
            is_kept, is_ranked: bool `[batch]`.
        """
        classes = self.counts.shape[1]
        if classes > _MOST_TO_COMPARE:
            labels = tf.where(class_labels.is_class(labels, classes), labels, -1)
            flags = [tf.cast(each, tf.float32) for each in (is_kept, is_ranked)]
            counts = tf.stack([tf.math.unsorted_segment_sum(each, labels, classes) for each in flags])
        else:
            is_counted = tf.stack([is_kept, is_ranked])[:, :, None] & (labels[:, None] == tf.range(classes))
            counts = tf.reduce_sum(tf.cast(is_counted, tf.float32), axis=1)
        self.counts.assign_add(counts)

    def result(self) -> tf.Tensor:
        kept, seen = tf.unstack(tf.convert_to_tensor(self.counts.value))
        return tf.reduce_min(tf.where(seen > 0, tf.math.divide_no_nan(kept, seen), 1.0))

    def fractions(self) -> np.ndarray | None:
        """The kept fraction per class, float `[classes]`, NaN for unseen classes; None if none was seen."""
        kept, seen = tf.convert_to_tensor(self.counts.value).numpy()
        return np.where(seen > 0, kept / np.maximum(seen, 1), np.nan) if seen.any() else None

    def warn_of_dropped(self) -> None:
        """Warns about classes without a kept example, once per class."""
        fractions = self.fractions()
        dropped = [] if fractions is None else np.flatnonzero(fractions == 0).tolist()
        new = [label for label in dropped if label not in self._warned]
        if new:
            warnings.warn(
                f"Nothing was kept of the given classes {', '.join(map(str, new))} in a whole epoch: rare or "
                "hard examples look wrong. Trim(epsilon, min_keep_per_class=1) keeps the lowest score of "
                "each class in each batch; a ramp (prl_keras.linear_ramp) gives time to learn them.",
                stacklevel=4,
            )
        self._warned |= frozenset(new)
