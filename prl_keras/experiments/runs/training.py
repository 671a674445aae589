"""The training of one run: corrupt the targets, build the model, fit it, measure on clean test data."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import prl_keras as prl
from prl_keras.experiments.data import on_device
from prl_keras.experiments.data.batches import batches, shuffled_batches
from prl_keras.experiments.runs import checkpoints, history, strategies, threshold_examples
from prl_keras.experiments.runs.metrics import METRICS
from prl_keras.experiments.runs.models import shared_model
from prl_keras.experiments.runs.predicted import Changed, Memorized

CHECKPOINTS = "checkpoints"  # the folder in a run's folder for those of `Training.fit`
LAST_EPOCHS = 10  # the paper averages the test metric over the last ten epochs
_PROBE_SIZE = 1000  # examples that measure how clean the kept set is
_TEST_BATCH = 1024


class Training:
    """A run that is ready to start: all checks are made here.

    If it is made in the scope of a `tf.distribute` strategy, it trains on that strategy.

    Attributes:
        config: The `RunConfig`.
        dataset: The `Dataset`, cut to the config's sizes, and to what `aum_cut` leaves.
        targets: Its training targets, corrupted.
        is_corrupted: Which of the targets are corrupted.
        corruption_rate: The actual share of corrupted targets, before the cut.
        model: The compiled model with its initial weights.

    Args:
        config: As above.
        dataset: The `Dataset` from `load(config.dataset)`.
        models: A dict that keeps models from run to run. Building and tracing take as long as training a
            small run, so runs that differ only in corruption and seeds share one model, which is reset to
            the state of a fresh one. None builds a fresh one.

    Raises:
        ValueError: for a method, corruption or size that does not suit the data.
    """

    def __init__(self, config: Any, dataset: Any, models: dict[Any, keras.Model] | None = None) -> None:
        config.check_task(dataset.task)
        self.config = config
        self.dataset = dataset.subset(config.train_size, config.test_size)
        self.targets, self.is_corrupted = corrupt(config, self.dataset)
        self.corruption_rate = float(np.mean(self.is_corrupted))
        self._corrupted = self.dataset.train_x, self.targets, self.is_corrupted
        if config.aum_cut:
            self._cut()
            models = None  # its epoch has a number of steps of its own
        self.model = shared_model(config, self.dataset, models)
        self._is_on_one_device = not tf.distribute.has_strategy()

    def _cut(self):
        below = threshold_examples.below_threshold(self.config, self.dataset, self.targets)["all epochs"]
        kept = np.flatnonzero(below <= 0)
        if not len(kept):
            raise ValueError("aum_cut=True leaves no example to train on: leave aum_cut=False.")
        data = self.dataset
        self.dataset = dataclasses.replace(data, train_x=data.train_x[kept], train_y=data.train_y[kept])
        self.targets, self.is_corrupted = self.targets[kept], self.is_corrupted[kept]

    def fit(
        self,
        directory: pathlib.Path | str,
        checkpoint_seconds: float = 0,
        verbose: int | str = 0,
        callbacks: Sequence[keras.callbacks.Callback] = (),
        selection: pathlib.Path | str | None = None,
        device: str | None = None,
    ) -> Any:
        """Trains, from the last checkpoint in `directory` if there is one.

        Args:
            directory: The folder for history.csv and checkpoints; made if missing.
            checkpoint_seconds: The least time between two checkpoints, and between two writes of history.csv.
            verbose: As in `keras.Model.fit`.
            callbacks: Further Keras callbacks.
            selection: The file of the `SelectionRecord`, for methods that have one; None records nothing.
            device: Where the examples are: "host", or a device such as "GPU:0", which gathers its own batches
                if they fit in its memory. None for the GPU if there is one. With a `tf.distribute` strategy
                they are on the host. The batches are the same.

        Returns:
            The history, a DataFrame with a row per epoch.

        Raises:
            ValueError: if there are checkpoints or a history and they are damaged.
        """
        directory, config, data = pathlib.Path(directory), self.config, self.dataset
        directory.mkdir(parents=True, exist_ok=True)
        strategy = self.model.distribute_strategy
        with strategy.scope():
            finished = checkpoints.restore(self.model, directory / CHECKPOINTS)
        strategies.check_same(strategy, finished, "how many epochs are finished")
        record = history.WriteHistory(directory / "history.csv", finished, not checkpoint_seconds)
        saver = checkpoints.SaveCheckpoints(directory / CHECKPOINTS, checkpoint_seconds, record.write)
        train, steps, test = self._batches(finished, device)
        callbacks = [record, saver, *callbacks]
        if selection is not None and hasattr(self.model, "record_selection"):
            # Before the checkpoint of the same epoch, so that the record never lags behind it.
            callbacks.insert(0, prl.SelectionRecord((data.train_x, self.targets), selection))
        method = prl.METHODS[config.method]
        if method.score or method.exchange:
            probe = slice(0, _PROBE_SIZE)
            callbacks.insert(0, prl.SelectionQuality(
                data.train_x[probe], self.targets[probe], self.is_corrupted[probe], config.batch_size
            ))  # fmt: skip
        if data.task == "classification":
            callbacks.insert(0, Changed(data.train_x))
            if self.corruption_rate:
                callbacks.insert(0, Memorized(*self._corrupted))
        if config.ema:
            callbacks.append(keras.callbacks.SwapEMAWeights())  # the average is tested
        self.model.fit(
            strategies.sharded_by_data(train),
            epochs=config.epochs,
            initial_epoch=finished,
            steps_per_epoch=steps,
            validation_data=strategies.sharded_by_data(test),
            callbacks=callbacks,
            shuffle=False,  # shuffled_batches does it
            verbose=verbose,
        )
        return record.table

    def _batches(self, first_epoch, device):
        """-> (training batches without end, their number in an epoch, test batches)."""
        config, data = self.config, self.dataset
        order = (self.targets, config.batch_size, config.seed, first_epoch)
        if device is None:
            device = "GPU:0" if tf.config.list_physical_devices("GPU") else "host"
        if device != "host" and self._is_on_one_device:
            placed = on_device.place([data.train_x, data.test_x], device)
            if placed is not None:
                on_device.gather_in_steps(self.model, *placed)
                return *on_device.shuffled_rows(*order), on_device.rows(data.test_y, _TEST_BATCH)
        return *shuffled_batches(data.train_x, *order), batches(data.test_x, data.test_y, _TEST_BATCH)


def summarize(table: Any, task: str) -> dict[str, Any]:
    """The summary of a run, computed from its history; `run.run` returns it."""
    metric = METRICS[task].name
    last = table.tail(LAST_EPOCHS)
    test = last[f"test_{metric}"]
    selection = {
        name: float(last[name].mean()) if name in last else None
        for name in ("kept_clean", "drop_precision", "drop_recall")
    }
    return {
        "test_metric": metric,
        "test_mean": float(test.mean()),
        "test_std": float(test.std(ddof=0)),
        "test_final": float(test.iloc[-1]),
        **selection,
        "seconds_per_epoch": float(table["seconds"].median()),
        "epochs": len(table),
    }


def corrupt(config: Any, dataset: Any) -> tuple[np.ndarray, np.ndarray]:
    """The training targets, corrupted as `config` says, and which of them are corrupted."""
    if config.corruption == "none":
        return dataset.train_y, np.zeros(len(dataset.train_y), bool)
    num_classes = dataset.num_outputs if dataset.task == "classification" else None
    return prl.corrupt(
        config.corruption,
        dataset.train_y,
        config.epsilon,
        np.random.default_rng(config.noise_seed),
        features=dataset.train_x,
        num_classes=num_classes,
    )
