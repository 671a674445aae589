"""When to stop training, without clean labels."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from prl_keras.validate import check_bool, check_integer


class LabelWave(keras.callbacks.Callback):
    """Stops training when a classifier begins to memorize wrong labels, judged by its changing predictions.

    After each epoch the training inputs are predicted, and the share whose class differs from that after the
    epoch before is logged as `changed`. While a network learns, ever fewer predictions change. When it begins
    to memorize wrong labels, more change again. The shares are averaged over the last `window` epochs.
    Training stops at the first minimum: once the average was not below its lowest for `patience` epochs. The
    weights of the epoch of the minimum are restored (Yuan et al. 2024, "Early stopping against label noise
    without validation data").

    It needs neither epsilon nor clean labels, and goes with every Keras classifier. It costs a forward pass
    over `x` after each epoch; a part of the inputs will do. With pairflip noise near 50% there may be no such
    minimum, and training goes on (results/README.md).

    Args:
        x: Training inputs, as `predict` takes them, in an order that does not change.
        window: Number of epochs to average over, at least 1.
        patience: Number of epochs without a lower average, at least 1.
        restore_best_weights: Whether to restore the weights of the minimum when training stops there. If
            training ends before, the last weights stay.
        batch_size: The batch size of the predictions.

    Attributes:
        changed: The shares so far, floats in [0, 1], from the second epoch on.
        best_epoch: The epoch of the minimum so far, counted from 0; None before there is one.
        stopped_epoch: The epoch after which training was stopped, counted from 0; None if it was not.

    Raises:
        ValueError: for an invalid number; in training, if the predictions are not those of a classifier.
    """

    def __init__(
        self,
        x: Any,
        window: int = 3,
        patience: int = 3,
        restore_best_weights: bool = True,
        batch_size: int = 1024,
    ) -> None:
        super().__init__()
        self.x = x
        self.window, self.patience = check_integer("window", window), check_integer("patience", patience)
        self.batch_size = check_integer("batch_size", batch_size)
        check_bool("restore_best_weights", restore_best_weights)
        self.restore_best_weights = restore_best_weights
        self._forget()

    def _forget(self):
        self.changed: list[float] = []
        self.best_epoch: int | None = None
        self.stopped_epoch: int | None = None
        self._classes: np.ndarray | None = None
        self._weights = None

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._forget()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        classes = self._predict()
        before, self._classes = self._classes, classes
        if before is None:
            return
        self.changed.append(float(np.mean(classes != before)))
        if logs is not None:
            logs["changed"] = self.changed[-1]
        lowest, is_over = first_minimum(self.changed, self.window, self.patience)
        if lowest == len(self.changed) - 1:
            self.best_epoch = epoch
            if self.restore_best_weights:
                self._weights = self.model.get_weights()
        elif is_over:
            self.model.stop_training, self.stopped_epoch = True, epoch

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        if self.stopped_epoch is not None and self._weights is not None:
            self.model.set_weights(self._weights)
        self._weights = None

    def _predict(self):
        """The predicted classes, int `[n, ...]`."""
        found = self.model.predict(self.x, batch_size=self.batch_size, verbose=0)
        if not isinstance(found, np.ndarray) or found.ndim < 2 or found.shape[-1] < 2:
            shape = getattr(found, "shape", type(found).__name__)
            raise ValueError(
                f"LabelWave compares predicted classes, and the model predicts {shape}: it needs one output "
                "[n, classes] with at least two classes."
            )
        return found.argmax(axis=-1)


def first_minimum(values: Sequence[float], window: int = 3, patience: int = 3) -> tuple[int, bool]:
    """Where the average of the last `window` values has its first minimum.

    Args:
        values: At least one number.
        window: Number of values to average over, at least 1; fewer at the start.
        patience: Number of averages that must not be below the lowest one, at least 1.

    Returns:
        (index of the minimum so far, whether `patience` averages after it were not lower).
    """
    lowest, best = np.inf, 0
    for i in range(len(values)):
        average = float(np.mean(values[max(0, i + 1 - window) : i + 1]))
        if average < lowest:
            lowest, best = average, i
        elif i - best >= patience:
            return best, True
    return best, False
