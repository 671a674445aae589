"""Checkpoints from which a killed run resumes exactly.

Keras's BackupAndRestore writes weights and epoch into two files, one after the other: a kill in between
leaves an epoch that does not match the weights. Keras also saves no seed states, so dropout would start over.
Here a checkpoint is one file with all of it and the epoch in its name, moved into place when complete.
"""

import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import h5py
import keras
import numpy as np

from prl_keras.experiments.runs import strategies
from prl_keras.keras_gaps.seeds import seed_states_by_path
from prl_keras.keras_gaps.weights_files import weights_in_memory

_PATTERN = "epoch-*.weights.h5"
_KEPT = 2  # the newest, and one to fall back to


class SaveCheckpoints(keras.callbacks.Callback):
    """Saves weights, optimizer and seed states after an epoch, and keeps the two newest files.

    If several processes train one model (`tf.distribute`), only the chief writes.

    Args:
        directory: The folder; made if missing.
        seconds: The least time between two checkpoints; with 0, or with several processes, every epoch is
            saved.
        before: Function without arguments, called before each checkpoint.
    """

    def __init__(
        self,
        directory: pathlib.Path | str,
        seconds: float = 0,
        before: Callable[[], Any] = lambda: None,
    ) -> None:
        super().__init__()
        self.directory = pathlib.Path(directory)
        self.seconds, self.before = seconds, before

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        self._last = time.monotonic()

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        strategy = self.model.distribute_strategy
        is_early = time.monotonic() - self._last < self.seconds
        if is_early and strategies.is_alone(strategy):  # the clocks of several processes differ
            return
        self._last = time.monotonic()
        self.before()
        if strategies.is_chief(strategy):
            self.directory.mkdir(parents=True, exist_ok=True)
        path = self.directory / f"epoch-{epoch + 1:05d}.weights.h5"
        with strategies.written_by_chief(strategy, path) as temporary:
            memory = weights_in_memory(self.model)
            with h5py.File(memory, "a") as file:
                for i, state in enumerate(seed_states_by_path(self.model)):
                    file[f"seed_states/{i}"] = np.asarray(state)
            temporary.write_bytes(memory.getbuffer())
        if strategies.is_chief(strategy):
            for old in _newest_first(self.directory)[_KEPT:]:
                old.unlink()


def restore(model: keras.Model, directory: pathlib.Path | str) -> int:
    """Puts a compiled, built model into the state of the newest readable checkpoint.

    Returns:
        The number of finished epochs, `initial_epoch` of `fit`; 0 without a checkpoint.

    Raises:
        ValueError: if there are checkpoints and none can be read.
    """
    if not model.optimizer.built:  # a LossScaleOptimizer would make its variables again
        model.optimizer.build(model.trainable_variables)
    errors = []
    for path in _newest_first(pathlib.Path(directory)):
        try:
            model.load_weights(path)
            with h5py.File(path, "r") as file:
                for i, state in enumerate(seed_states_by_path(model)):
                    state.assign(file[f"seed_states/{i}"][()])
        except Exception as error:  # h5py and Keras raise many errors for a damaged file
            errors.append(f"{path.name}: {type(error).__name__}: {error}")
            continue
        return int(path.name.split("-")[1].split(".")[0])
    if errors:
        raise ValueError(f"No checkpoint in {directory} can be read. " + " ".join(errors))
    return 0


def _newest_first(directory):
    return sorted(directory.glob(_PATTERN), reverse=True)
