"""How many predictions an epoch changes."""

from typing import Any

import keras
import numpy as np

from prl_keras.experiments.runs.predicted import predicted_classes

#: The training examples that are looked at, at most: the first ones.
MOST = 2000


class Changed(keras.callbacks.Callback):
    """Logs `changed` after each epoch: the share of training examples whose predicted class has changed.

    It compares with the epoch before, and for the first epoch with the initial weights, in inference mode. A
    pair predicts by the mean of its networks. `prl_keras.stopping.first_minimum` of this column is the epoch
    at which `LabelWave` would stop.

    Args:
        x: Inputs `[n, ...]`; at most the first `MOST` are predicted.
        batch_size: Examples that are predicted at a time.
    """

    def __init__(self, x: Any, batch_size: int = 1000) -> None:
        super().__init__()
        self.x, self.batch_size = x[:MOST], batch_size

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._classes = self._predict()  # also of a resumed run: its weights are those of the last epoch

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        before, self._classes = self._classes, self._predict()
        if logs is not None:
            logs["changed"] = float(np.mean(self._classes != before))

    def _predict(self):
        return predicted_classes(self.model, self.x, self.batch_size)
