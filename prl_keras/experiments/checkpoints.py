"""Checkpoints from which a killed run goes on exactly.

Keras's BackupAndRestore writes weights and epoch into two files, one after the other, so that a kill
in between leaves an epoch that is not the weights'; and Keras saves no seed states, so that dropout
would start over. Here a checkpoint is one file with all of it, moved into place when it is whole, with
the epoch in its name.
"""

import pathlib
import time

import h5py
import keras
import numpy as np

from prl_keras.experiments import strategies
from prl_keras.keras_gaps.fresh_start import seed_states_by_path

_PATTERN = "epoch-*.weights.h5"
_KEPT = 2  # the newest, and one to fall back to


class SaveCheckpoints(keras.callbacks.Callback):
    """Saves weights, optimizer and seed states after an epoch; the two newest files are kept.

    Of several processes that train one model (`tf.distribute`) the chief alone writes.

    Args:
        directory: Where to; made if missing.
        seconds: The least time between two checkpoints; with 0, and with several processes, every epoch is
            saved.
        before: Function without arguments, called before a checkpoint is saved.
    """

    def __init__(self, directory, seconds=0, before=lambda: None):
        super().__init__()
        self.directory = pathlib.Path(directory)
        self.seconds, self.before = seconds, before

    def on_train_begin(self, logs=None):
        self._last = time.monotonic()

    def on_epoch_end(self, epoch, logs=None):
        strategy = self.model.distribute_strategy
        is_early = time.monotonic() - self._last < self.seconds
        if is_early and strategies.is_alone(strategy):  # other processes' clocks differ
            return
        self._last = time.monotonic()
        self.before()
        if strategies.is_chief(strategy):
            self.directory.mkdir(parents=True, exist_ok=True)
        path = self.directory / f"epoch-{epoch + 1:05d}.weights.h5"
        with strategies.written_by_chief(strategy, path) as temporary:
            self.model.save_weights(temporary)
            with h5py.File(temporary, "a") as file:
                for i, state in enumerate(seed_states_by_path(self.model)):
                    file[f"seed_states/{i}"] = np.asarray(state)
        if strategies.is_chief(strategy):
            for old in _newest_first(self.directory)[_KEPT:]:
                old.unlink()


def restore(model, directory):
    """Puts a compiled, built model into the state of the newest readable checkpoint.

    Returns:
        The number of finished epochs, 0 if there is no checkpoint: fit's `initial_epoch`.

    Raises:
        ValueError: if there are checkpoints and none can be read.
    """
    model.optimizer.build(model.trainable_variables)
    errors = []
    for path in _newest_first(pathlib.Path(directory)):
        try:
            model.load_weights(path)
            with h5py.File(path, "r") as file:
                for i, state in enumerate(seed_states_by_path(model)):
                    state.assign(file[f"seed_states/{i}"][()])
        except Exception as error:  # h5py and Keras raise many kinds for a damaged file
            errors.append(f"{path.name}: {type(error).__name__}: {error}")
            continue
        return int(path.name.split("-")[1].split(".")[0])
    if errors:
        raise ValueError(f"No checkpoint in {directory} can be read. " + " ".join(errors))
    return 0


def _newest_first(directory):
    return sorted(directory.glob(_PATTERN), reverse=True)
