"""How much is kept of each class: rare classes are hard to learn, and what is hard looks wrong."""

import warnings

import keras
import numpy as np
import tensorflow as tf


class KeptByClass(keras.metrics.Metric):
    """The lowest fraction that was kept of a class, among the classes that were seen.

    Args:
        classes: Their number.
        name: Of the metric.
    """

    def __init__(self, classes, name="kept_fraction_min_class"):
        super().__init__(name=name)
        self.kept, self.seen = (
            self.add_variable((classes,), keras.initializers.Zeros(), name=name) for name in ("kept", "seen")
        )
        self._warned = frozenset()

    def update_state(self, labels, is_kept, is_ranked):
        """Labels int `[batch]`, the others bool `[batch]`; labels of no class are passed over."""
        counts = tf.one_hot(labels, self.seen.shape[0])
        for variable, counted in ((self.kept, is_kept), (self.seen, is_ranked)):
            variable.assign_add(tf.linalg.matvec(counts, tf.cast(counted, tf.float32), transpose_a=True))

    def result(self):
        return tf.reduce_min(tf.where(self.seen > 0, tf.math.divide_no_nan(self.kept, self.seen), 1.0))

    def fractions(self):
        """float `[classes]`, NaN for a class that was not seen; None if nothing was."""
        kept, seen = np.array(self.kept), np.array(self.seen)
        return np.where(seen > 0, kept / np.maximum(seen, 1), np.nan) if seen.any() else None

    def warn_of_dropped(self):
        """Warns of classes of which nothing was kept, once of each."""
        fractions = self.fractions()
        dropped = [] if fractions is None else np.flatnonzero(fractions == 0).tolist()
        new = [label for label in dropped if label not in self._warned]
        if new:
            warnings.warn(
                f"Nothing was kept of the given classes {', '.join(map(str, new))} in a whole epoch: what is "
                "rare or hard looks wrong. Trim(epsilon, min_keep_per_class=1) keeps the best one of each "
                "batch; a ramp (prl_keras.linear_ramp) gives time to learn them.",
                stacklevel=4,
            )
        self._warned |= frozenset(new)
