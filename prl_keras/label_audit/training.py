"""Trains a pair of small networks on the examples, and goes on where a killed training stopped."""

import contextlib
import math
import pathlib
import shutil
import time
import warnings
from typing import Any

import keras
from tqdm import tqdm

from prl_keras import files
from prl_keras.auditing.record import SelectionRecord
from prl_keras.label_audit.examples import Examples
from prl_keras.methods import build
from prl_keras.version import __version__

_STEPS, _EPOCHS = 1500, (20, 100)  # of the optimizer; the least and the most epochs that this may take
_RAMP = 10  # epochs, at most half of the training; "auto" has its own
_SECONDS = 20  # between backups, so that small data do not spend their time on them
_SETTINGS = "settings.json"
_OTHERS = {
    "data": "other data",
    "epochs": "another --epochs",
    "epsilon": "another --epsilon",
    "seed": "another --seed",
    "version": "another version of this library",
}
_REGULARIZED = 0.2  # the dropout rate


def epochs_for(examples: Examples) -> int:
    """How many epochs to train if nobody says: about 1500 steps, in 20 to 100 epochs."""
    return min(max(_EPOCHS[0], math.ceil(_STEPS / _steps(examples))), _EPOCHS[1])


def train(
    examples: Examples, folder: pathlib.Path, epochs: int, epsilon: float | str, seed: int
) -> tuple[keras.Model, SelectionRecord]:
    """Trains by Co-PRL(L).

    Args:
        folder: Keeps a backup of the training, about every 20 seconds. A backup of the same data, settings
            and version is continued, another one removed.
        epsilon: The share of wrong labels to drop in training, or "auto".
        seed: Of the initial weights, dropout and order.

    Returns:
        `(model, record)`: the pair, and what training suspected and dropped.
    """
    settings = {"data": examples.fingerprint, "epochs": epochs, "epsilon": epsilon, "seed": seed}
    settings["version"] = __version__
    before = _settings_in(folder)
    if before != settings:
        if before:
            print(f"Training starts anew, for it was begun with {_others(before, settings)}.")
        shutil.rmtree(folder, ignore_errors=True)
    print(f"Training: {epochs} epochs. --epochs=N, with fewer, makes a first look quicker.", flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    files.write_json(folder / _SETTINGS, settings)
    keras.utils.set_random_seed(seed)
    steps = _steps(examples)
    loss: Any = (
        keras.losses.SparseCategoricalCrossentropy(from_logits=True) if examples.class_names else "mse"
    )
    model = build(
        "co_prl_l",
        lambda: _network(examples),
        epsilon=epsilon,
        ramp_steps=0 if epsilon == "auto" else min(_RAMP, max(1, epochs // 2)) * steps,
        min_keep_per_class=1 if examples.class_names else 0,
        loss=loss,
        optimizer="adam",
    )
    given = examples.inputs, examples.targets
    path = folder / "selection.npz"
    record = SelectionRecord(given, path)
    backup = _Backup(str(folder / "backup"), epochs)
    with warnings.catch_warnings(), contextlib.closing(_Progress(epochs)) as progress:
        warnings.filterwarnings("ignore", message=".*recorded anew")  # the backup may be some epochs behind
        warnings.filterwarnings("ignore", message="An epsilon of 0.5 or more")
        callbacks = [backup, progress, record]
        model.fit(*given, batch_size=_batch_size(examples), epochs=epochs, callbacks=callbacks, verbose=0)
    return model, record.load()


def _settings_in(folder):
    """Those of the training that was begun in the folder; empty if there is none."""
    try:
        return files.read_json(folder / _SETTINGS)
    except (OSError, ValueError):
        return {}


def _others(before, settings):
    """What is not as it was before, in words."""
    return " and ".join(text for name, text in _OTHERS.items() if before.get(name) != settings[name])


def _batch_size(examples):
    return 32 if len(examples.ids) < 5000 else 128


def _steps(examples):
    return math.ceil(len(examples.ids) / _batch_size(examples))


def _network(examples):
    layers, shape = keras.layers, examples.inputs.shape[1:]
    outputs = layers.Dense(len(examples.class_names) or 1)
    if len(shape) == 1:
        hidden = [layers.Dense(128, "relu"), layers.Dropout(_REGULARIZED)]
        more = [layers.Dense(128, "relu"), layers.Dropout(_REGULARIZED)]
        return keras.Sequential([keras.Input(shape), *hidden, *more, outputs])
    parts, side, filters = [layers.Rescaling(1 / 255)], shape[0], 32
    while side >= 4 and filters <= 128:
        parts += [layers.Conv2D(filters, 3, padding="same", activation="relu") for _ in range(2)]
        parts.append(layers.MaxPooling2D())
        side, filters = side // 2, 2 * filters
    parts += [layers.Flatten(), layers.Dropout(_REGULARIZED), layers.Dense(128, "relu"), outputs]
    return keras.Sequential([keras.Input(shape), *parts])


class _Backup(keras.callbacks.BackupAndRestore):
    """Keras's backup, but not after every epoch, and kept until the report is written."""

    def __init__(self, folder, epochs):
        super().__init__(folder, double_checkpoint=True, delete_checkpoint=False)
        self._epochs, self._saved = epochs, time.monotonic()

    def on_epoch_end(self, epoch, logs=None):
        if epoch + 1 == self._epochs or time.monotonic() - self._saved > _SECONDS:
            super().on_epoch_end(epoch, logs)
            self._saved = time.monotonic()


class _Progress(keras.callbacks.Callback):
    """A bar that begins, and a line that says, where a stopped training goes on."""

    def __init__(self, epochs):
        super().__init__()
        self._epochs, self._bar = epochs, None

    def on_epoch_begin(self, epoch, logs=None):
        if self._bar is None:
            self._begin(epoch)

    def on_epoch_end(self, epoch, logs=None):
        self._bar.update()

    def on_train_end(self, logs=None):
        if self._bar is None:  # all epochs were done
            self._begin(self._epochs)

    def close(self):
        if self._bar is not None:
            self._bar.close()

    def _begin(self, epoch):
        if epoch:
            print(f"Going on after epoch {epoch} of {self._epochs}.", flush=True)
        self._bar = tqdm(initial=epoch, total=self._epochs, desc="Training", unit="epoch")
