"""Ties each backup of `keras.callbacks.BackupAndRestore` to one training, so that no other resumes from it.

Keras restores weights and epoch without a check: a model with another epsilon would continue from them.
"""

import json
import pathlib
from typing import Any

import keras

from prl_keras.files import replacing
from prl_keras.validate import differences

_NAME = "training.json"


def check_backups(model: Any, callbacks: Any) -> None:
    """Records in each backup folder which training it belongs to; `callbacks` are those of `fit`.

    Raises:
        ValueError: if a folder holds a backup of a model of another kind, score, rule, exchange, recompute
            setting or shape.
    """
    for callback in listed(callbacks):
        if isinstance(callback, keras.callbacks.BackupAndRestore):
            _check(model, pathlib.Path(callback.backup_dir))


def listed(callbacks: Any) -> list[Any]:
    """The `callbacks` argument of `fit` as a list."""
    found = getattr(callbacks, "callbacks", callbacks) or []
    return list(found) if isinstance(found, (list, tuple)) else [found]


def _check(model, directory):
    training, path = _training(model), directory / _NAME
    if (directory / "latest.weights.h5").exists() and path.exists():
        saved = json.loads(path.read_text())
        different = differences(saved, training)
        if different:
            raise ValueError(
                f"The backup in {directory} is of another training: {different}. Give the model these "
                "settings to go on with it, or take another backup_dir, or remove this one."
            )
    directory.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(training))


def _training(model):
    config = model.get_config()
    settings = {name: config.get(name) for name in ("score", "rule", "exchange", "recompute")}
    # Older backups have neither.
    settings |= {name: config.get(name) or None for name in ("consistency", "warm_up_steps")}
    shapes = [[list(weight.shape) for weight in network.weights] for network in model.networks]
    # A JSON round trip, to compare with what was read.
    return json.loads(json.dumps({"kind": type(model).__name__, **settings, "weights": shapes}))
