"""Backups of `keras.callbacks.BackupAndRestore`: they are of one training, and resume no other.

Keras restores weights and epoch whatever they are of; a model with another epsilon would go on with them.
"""

import json
import pathlib

import keras

from prl_keras.files import replacing

_NAME = "training.json"


def check_backups(model, callbacks):
    """Notes in each backup folder which training it is of.

    Args:
        model: A `WeightedModel`.
        callbacks: As for `fit`: a callback, a list of them, or None.

    Raises:
        ValueError: if a folder holds the backup of a model of another kind, score, rule, exchange or shape.
    """
    for callback in listed(callbacks):
        if isinstance(callback, keras.callbacks.BackupAndRestore):
            _check(model, pathlib.Path(callback.backup_dir))


def listed(callbacks):
    """What `fit` takes for callbacks, as a list."""
    found = getattr(callbacks, "callbacks", callbacks) or []
    return list(found) if isinstance(found, (list, tuple)) else [found]


def _check(model, directory):
    training, path = _training(model), directory / _NAME
    if (directory / "latest.weights.h5").exists() and path.exists():
        saved = json.loads(path.read_text())
        different = "; ".join(
            f"{name} was {saved.get(name)!r}, is now {value!r}"
            for name, value in training.items()
            if saved.get(name) != value
        )
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
    shapes = [[list(weight.shape) for weight in network.weights] for network in model.networks]
    # As JSON gives it back.
    return json.loads(json.dumps({"kind": type(model).__name__, **settings, "weights": shapes}))
