"""How many of the wrong training labels a network has memorized."""

from typing import Any

import keras
import numpy as np

from prl_keras.experiments.runs.predicted import predicted_classes

#: The wrong labels that are looked at, at most: the first ones of the training data.
MOST = 1000


class Memorized(keras.callbacks.Callback):
    """Logs `memorized` after each epoch: the share of wrong training labels that the network predicts.

    It is the accuracy on the wrong labels of at most `MOST` training examples, in inference mode. A pair
    predicts by the mean of its networks.

    Args:
        x: Inputs `[n, ...]`.
        labels: int `[n]`, the labels that training uses.
        is_corrupted: bool `[n]`, which of them are wrong; at least one.
        batch_size: Examples that are predicted at a time.
    """

    def __init__(self, x: Any, labels: Any, is_corrupted: Any, batch_size: int = 1000) -> None:
        super().__init__()
        rows = np.flatnonzero(is_corrupted)[:MOST]
        self.x, self.labels, self.batch_size = x[rows], labels[rows], batch_size

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        predicted = predicted_classes(self.model, self.x, self.batch_size)
        if logs is not None:
            logs["memorized"] = float(np.mean(predicted == self.labels))
