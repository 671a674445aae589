"""What a network predicts, epoch by epoch: the wrong labels that it has memorized, and what has changed."""

from typing import Any

import keras
import numpy as np

#: The examples that are looked at, at most: the first ones.
MOST_MEMORIZED, MOST_CHANGED = 1000, 2000


class Memorized(keras.callbacks.Callback):
    """Logs `memorized` after each epoch: the share of wrong training labels that the network predicts.

    It is the accuracy on the wrong labels of at most `MOST_MEMORIZED` training examples.

    Args:
        x: Inputs `[n, ...]`.
        labels: int `[n]`, the labels that training uses.
        is_corrupted: bool `[n]`, which of them are wrong; at least one.
        batch_size: Examples that are predicted at a time.
    """

    def __init__(self, x: Any, labels: Any, is_corrupted: Any, batch_size: int = 1000) -> None:
        super().__init__()
        rows = np.flatnonzero(is_corrupted)[:MOST_MEMORIZED]
        self.x, self.labels, self.batch_size = x[rows], labels[rows], batch_size

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        predicted = _predicted_classes(self.model, self.x, self.batch_size)
        if logs is not None:
            logs["memorized"] = float(np.mean(predicted == self.labels))


class Changed(keras.callbacks.Callback):
    """Logs `changed` after each epoch: the share of training examples whose predicted class has changed.

    It compares with the epoch before, and for the first epoch with the initial weights.
    `prl_keras.stopping.first_minimum` of this column is the epoch at which `LabelWave` would stop.

    Args:
        x: Inputs `[n, ...]`; at most the first `MOST_CHANGED` are predicted.
        batch_size: Examples that are predicted at a time.
    """

    def __init__(self, x: Any, batch_size: int = 1000) -> None:
        super().__init__()
        self.x, self.batch_size = x[:MOST_CHANGED], batch_size

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._classes = self._predict()  # also of a resumed run: its weights are those of the last epoch

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        before, self._classes = self._classes, self._predict()
        if logs is not None:
            logs["changed"] = float(np.mean(self._classes != before))

    def _predict(self):
        return _predicted_classes(self.model, self.x, self.batch_size)


def _predicted_classes(model, x, batch_size):
    """int `[n]`, the predicted class of each input, in inference mode; of a pair that of its networks' mean.

    Not by `predict`, which would hand a process of a cluster only a part of the examples.
    """
    outputs = [model(x[i : i + batch_size], training=False) for i in range(0, len(x), batch_size)]
    return np.argmax(np.concatenate(outputs), axis=-1)
