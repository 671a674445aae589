"""How much is kept of each class: rare classes are hard to learn, and what is hard looks wrong."""

import warnings

import keras
import numpy as np
import tensorflow as tf

from prl_keras import loss_kinds


def count_classes(shape, loss):
    """How many classes predictions of a shape `(batch, outputs)` tell apart under a loss; None if it is none
    for one class label per example."""
    if not isinstance(shape, tuple) or len(shape) != 2:
        return None
    if loss_kinds.is_binary(loss):
        return 2 if shape[1] == 1 else None
    return shape[1] if loss_kinds.is_sparse(loss) or loss_kinds.is_one_hot(loss) else None


def class_labels(y, y_pred, loss):
    """The given class of each example, int32 `[batch]`, or None as in `count_classes`.

    Args:
        y: Class numbers `[batch]` or `[batch, 1]`, one-hot labels, or labels 0 and 1.
        y_pred: Predictions `[batch, ...]`.
        loss: A `keras.losses.Loss` or a function.
    """
    if count_classes(tuple(y_pred.shape), loss) is None:
        return None
    if loss_kinds.is_one_hot(loss):
        return tf.argmax(y, axis=-1, output_type=tf.int32)
    labels = tf.reshape(y, [-1])
    return tf.cast(tf.cast(labels, tf.float32) > 0.5 if loss_kinds.is_binary(loss) else labels, tf.int32)


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
