"""The last part: runs of the paper's table 2, which keep every epoch.

A run that the time cuts off goes on with the next start. Without its result.json it is in no table.
"""

import functools
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import keras

from prl_keras.experiments.data.load import load
from prl_keras.experiments.gpu_check.items import Items, OutOfTime
from prl_keras.experiments.gpu_check.job import Job, label
from prl_keras.experiments.runs import results, sweep
from prl_keras.experiments.runs.run import run as run_one


def run(job: Job) -> None:
    """Trains the runs that have no result, the most telling first, until the next epoch does not fit."""
    contents, problems = results.read_all(job.runs)
    for problem in problems:
        job.say(f"To be done again: {problem}")
    done = {content["config"] for content in contents if content.get("scale") == job.size.name}
    left = {label(config): config for config in job.size.cells if config not in done}
    trainer = _Trainer(job, left, contents)
    items = Items(job.path("cells"), job.attempt)
    items.measure(left, trainer.train, math.inf, job.say)


class StopInTime(keras.callbacks.Callback):
    """Ends `fit` by `OutOfTime` after an epoch, if another one as long does not fit in the time left.

    It must come after the callback that writes the checkpoint.

    Args:
        until: A time of `time.monotonic()`.
        tell: Function of the epoch (from 1), its seconds and its logs.
    """

    def __init__(self, until: float, tell: Callable[[int, float, Mapping[str, Any]], Any]) -> None:
        super().__init__()
        self.until, self.tell = until, tell

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        self._start = time.monotonic()

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        now = time.monotonic()
        self.tell(epoch + 1, now - self._start, logs or {})
        if epoch + 1 < self.params["epochs"] and now + (now - self._start) > self.until:
            raise OutOfTime


class _Trainer:
    """Trains runs by their labels."""

    def __init__(self, job, configs, contents):
        self.job, self.configs, self.contents = job, configs, contents
        self.models = {}
        self.first = 0.0  # seconds until the last run had its first epoch

    def train(self, name):
        job, config = self.job, self.configs[name]
        start = time.monotonic()
        if start + self.first > job.until:
            raise OutOfTime
        path = results.path_of(job.runs, config)
        dataset = self.load(config.dataset)
        sweep.check_source(job.runs, self.contents, config.dataset, dataset.source)
        is_first = True

        def tell(epoch, seconds, logs):
            nonlocal is_first
            if is_first:
                self.first, is_first = time.monotonic() - start, False
            shown = ", ".join(
                f"{key} {float(value):.4f}" for key, value in logs.items() if key.startswith("val_")
            )
            job.say(f"{name}: epoch {epoch} of {config.epochs}, {seconds:.2f} s, {shown}")

        train = functools.partial(
            run_one, config, path, verbose=0, callbacks=[StopInTime(job.until, tell)], dataset=dataset,
            models=self.models, with_model=False, about={"scale": job.size.name},
        )  # fmt: skip
        try:
            train(resume=True, overwrite=results.is_finished(path))  # a result that cannot be read
        except ValueError as error:
            if is_first and path.exists():
                raise ValueError(f"{error} Here: remove {path} to train it anew.") from error
            raise

    @functools.cache  # noqa: B019
    def load(self, name):
        return load(name, **self.job.data_options)
