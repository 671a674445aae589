"""What a search refuses before its first trial: objectives, data, and folders that hold another search."""

import zlib

import keras_tuner
import numpy as np

from prl_keras import files


def resolve_objective(objective):
    """A `keras_tuner.Objective` of a name that says whether higher is better."""
    if isinstance(objective, keras_tuner.Objective):
        return objective
    if not isinstance(objective, str) or not objective.startswith("val_"):
        raise ValueError(
            f"objective={objective!r} must be val_trimmed_loss, val_loss, val_accuracy, val_r2_score, or a "
            "keras_tuner.Objective of a validation metric."
        )
    return keras_tuner.Objective(objective, direction_of(objective))


def direction_of(metric):
    """Which is better of a metric of a known name, "min" or "max"."""
    if metric.endswith("loss"):
        return "min"
    if metric.endswith(("accuracy", "r2_score")):
        return "max"
    raise ValueError(
        f"objective={metric!r} is none of val_trimmed_loss, val_loss, val_accuracy, val_r2_score. If it "
        f"is a metric of yours, say whether higher is better: keras_tuner.Objective({metric!r}, 'max')."
    )


def check_settings(
    path,
    settings,
    what="search",
    ways_out="overwrite=True (--overwrite) to replace it, or take another folder",
):
    """Refuses what is in a folder if it has other values for the same settings."""
    if not path.exists():
        return
    saved = files.read_json(path)
    different = [
        f"{name} was {saved.get(name)!r}, is now {value!r}"
        for name, value in settings.items()
        if saved.get(name) != value
    ]
    if different:
        raise ValueError(
            f"The {what} in {path.parent} is another: {'; '.join(different)}. Give the same values to go on "
            f"with it, {ways_out}."
        )


def describe(model):
    """The network of a built model, in a few words that tell it from another.

    They go by the layers' kinds, activations and weights; what else layers are told makes no difference.
    """
    network = getattr(model, "networks", [model])[0]
    layers = [(type(layer).__name__, _activation(layer), _shapes(layer)) for layer in _layers(network)]
    checksum = zlib.crc32(repr(layers).encode())
    return f"{len(layers)} layers, {network.count_params()} weights, checksum {checksum:08x}"


def _layers(network):
    for layer in network.layers:
        yield layer
        if hasattr(layer, "layers"):
            yield from _layers(layer)


def _activation(layer):
    activation = getattr(layer, "activation", None)
    return getattr(activation, "__name__", type(activation).__name__)


def _shapes(layer):
    return [tuple(weight.shape) for weight in layer.weights]


def make_folder(path):
    """Makes a folder, and those above it.

    Raises:
        OSError: naming it. (keras-tuner's own would be TensorFlow's.)
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"{path} cannot be made: {error}. Take another output_dir.") from error


def fingerprint(data):
    """A line that tells one search's data from another's."""
    arrays = [data["x"], data["y"], *(data["validation_data"] or ())]
    held_out = (
        f"{data['validation_split']:g} of them" if data["validation_data"] is None else "data of their own"
    )
    return f"{len(data['x'])} examples, validated on {held_out}, checksum {checksum(*arrays)}"


def checksum(*arrays):
    """Eight hexadecimal digits of the arrays' values."""
    value = 0
    for array in arrays:
        value = zlib.crc32(np.ascontiguousarray(array), value)
    return f"{value:08x}"


def check_pair(name, pair):
    """`(x, y)` as arrays."""
    if pair is None:
        return None
    x, y = pair
    if isinstance(x, (dict, list, tuple)) or not hasattr(x, "shape") or not hasattr(y, "shape"):
        raise ValueError(f"{name} must be two arrays; they are {type(x).__name__} and {type(y).__name__}.")
    x, y = np.asarray(x), np.asarray(y)
    if len(x) != len(y) or len(x) < 2:
        raise ValueError(
            f"{name} must be two arrays of the same length >= 2; they have {len(x)} and {len(y)}."
        )
    return x, y
