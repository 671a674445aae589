"""The record of a run: one row per epoch in history.csv."""

import pathlib
import time

import keras
import pandas as pd

from prl_keras.experiments import files


class WriteHistory(keras.callbacks.Callback):
    """Writes `epoch` (from 1), `seconds` of training and all the logs after each epoch, atomically.

    Keras's names for validation (`val_`) become `test_`: the experiments validate on clean test data
    and choose nothing by it.

    Args:
        path: The CSV file.
        finished_epochs: Rows after this many epochs are dropped from an existing file.
    """

    def __init__(self, path, finished_epochs=0):
        super().__init__()
        self.path = pathlib.Path(path)
        self.rows = []
        if finished_epochs and self.path.exists():
            old = pd.read_csv(self.path)
            self.rows = old[old["epoch"] <= finished_epochs].to_dict("records")

    @property
    def table(self):
        """A DataFrame with a row per epoch."""
        return pd.DataFrame(self.rows)

    def on_epoch_begin(self, epoch, logs=None):
        self._start, self._seconds = time.perf_counter(), None

    def on_test_begin(self, logs=None):
        self._stop_clock()

    def on_epoch_end(self, epoch, logs=None):
        self._stop_clock()
        named = {name.replace("val_", "test_", 1): float(value) for name, value in (logs or {}).items()}
        self.rows.append({"epoch": epoch + 1, "seconds": self._seconds, **named})
        with files.replacing(self.path) as temporary:
            self.table.to_csv(temporary, index=False)

    def _stop_clock(self):
        if self._seconds is None:
            self._seconds = time.perf_counter() - self._start
