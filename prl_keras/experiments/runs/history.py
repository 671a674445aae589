"""The record of a run: one row per epoch in history.csv."""

import pathlib
import time
from collections.abc import Mapping
from typing import Any

import keras
import pandas as pd
import tensorflow as tf

from prl_keras import files
from prl_keras.experiments.runs import strategies


class WriteHistory(keras.callbacks.Callback):
    """Writes `epoch` (from 1), `seconds` of training and all the logs after each epoch, atomically.

    Keras's prefix for validation, `val_`, becomes `test_`: the experiments validate on clean test data, which
    decide nothing.

    Args:
        path: The CSV file.
        finished_epochs: If positive, the run is resumed: the file must have the rows of these epochs, and
            later rows are dropped.
        every_epoch: Whether to write the file after each epoch, or only in `write` and at the end.

    Raises:
        ValueError: if rows are missing or damaged, naming the file.
    """

    def __init__(self, path: pathlib.Path | str, finished_epochs: int = 0, every_epoch: bool = True) -> None:
        super().__init__()
        self.path, self.every_epoch = pathlib.Path(path), every_epoch
        self.rows: list[dict[str, Any]] = []
        if finished_epochs:
            self.rows = _read(self.path, finished_epochs)

    @property
    def table(self) -> pd.DataFrame:
        """A DataFrame with a row per epoch."""
        return pd.DataFrame(self.rows)

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        self._start, self._seconds = time.perf_counter(), None

    def on_test_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        self._stop_clock()

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        self._stop_clock()
        named = {name.replace("val_", "test_", 1): float(value) for name, value in (logs or {}).items()}
        self.rows.append({"epoch": epoch + 1, "seconds": self._seconds, **named})
        if self.every_epoch:
            self.write()

    def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
        self.write()

    def write(self) -> None:
        """Writes the rows so far; if several processes train one model, only the chief writes."""
        if not strategies.is_chief(self.model.distribute_strategy):
            return
        with files.replacing(self.path) as temporary:
            self.table.to_csv(temporary, index=False)

    def _stop_clock(self):
        if self._seconds is None:
            if strategies.is_alone(self.model.distribute_strategy):  # TensorFlow cannot do this in a cluster
                tf.test.experimental.sync_devices()  # a GPU may still be at work
            self._seconds = time.perf_counter() - self._start


def _read(path, epochs):
    """The rows of the first `epochs` epochs."""
    try:
        if len({line.count(",") for line in path.read_text().splitlines()}) != 1:
            raise ValueError("a row is cut")
        table = pd.read_csv(path, float_precision="round_trip")
        table = table[table["epoch"] <= epochs]
        if table["epoch"].tolist() != list(range(1, epochs + 1)) or table["seconds"].isna().any():
            raise ValueError(f"it lacks rows of the {epochs} finished epochs")
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{path} is damaged: {error}. Start anew with --overwrite.") from error
    return table.to_dict("records")
