"""Checks before a search's first trial: the objective, the data, and a folder that holds another search."""

import pathlib
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, overload

import numpy as np
import tensorflow as tf

from prl_keras import files
from prl_keras.inputs.valid_labels import labels_for
from prl_keras.validate import differences

_NO_SETTINGS = ("name", "dtype", "module", "registered_name", "build_config", "shared_object_id")


def check_settings(
    path: pathlib.Path,
    settings: Mapping[str, Any],
    what: str = "search",
    ways_out: str = "overwrite=True (--overwrite) to replace it, or take another folder",
) -> None:
    """Raises a ValueError if the file `path` exists and has other values for these settings."""
    if not path.exists():
        return
    saved = files.read_json(path)
    different = differences(saved, settings)
    if different:
        raise ValueError(
            f"The {what} in {path.parent} is another: {different}. Give the same values to go on "
            f"with it, {ways_out}."
        )


def describe(model: Any) -> str:
    """A short description of a built model's network, to recognise it later.

    It depends on the network's precision, on each layer's class, weight shapes and configuration (see
    `settings_of`), and on whether the layer is trained.
    """
    network = getattr(model, "networks", [model])[0]
    layers = []
    for layer in _layers(network):
        settings = None if hasattr(layer, "layers") else settings_of(layer)
        shapes = [tuple(weight.shape) for weight in layer.weights]
        layers.append((type(layer).__name__, settings, shapes, layer.trainable))
    checksum = zlib.crc32(repr(layers).encode())
    policy = network.dtype_policy.name
    precision = "" if policy == "float32" else f", {policy}"
    return f"{len(layers)} layers, {network.count_params()} weights, checksum {checksum:08x}{precision}"


def _layers(network):
    for layer in network.layers:
        yield layer
        if hasattr(layer, "layers"):
            yield from _layers(layer)


def settings_of(configured: Any) -> Any:
    """What the configuration of a layer, a loss or an optimizer says, apart from its name and its seeds.

    It is the same after it was written as JSON. Functions are known by their names alone. None if there is no
    configuration.
    """
    try:
        return _plain(configured.get_config())
    except (AttributeError, NotImplementedError, TypeError, ValueError):
        return None  # Keras cannot serialize it


def _plain(value):
    if isinstance(value, Mapping):
        if value.get("class_name") == "__lambda__":
            return "lambda"  # the rest is its code
        found = {str(key): _plain(each) for key, each in value.items() if key not in _NO_SETTINGS}
        return {key: found[key] for key in sorted(found) if "seed" not in key}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if isinstance(value, (bool, int, float, str, type(None))):
        return value
    return getattr(value, "__name__", None) or [type(value).__name__, settings_of(value)]


def make_folder(path: pathlib.Path) -> None:
    """Makes a folder and its parents.

    Raises:
        OSError: naming the folder. (keras-tuner would raise TensorFlow's error.)
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"{path} cannot be made: {error}. Take another output_dir.") from error


def fingerprint(data: Mapping[str, Any]) -> str:
    """One line that identifies the data of a search: sizes, validation data and a checksum."""
    arrays = [data["x"], data["y"], *(data["validation_data"] or ())]
    held_out = (
        f"{data['validation_split']:g} of them" if data["validation_data"] is None else "data of their own"
    )
    return f"{len(data['x'])} examples, validated on {held_out}, checksum {checksum(*arrays)}"


def checksum(*arrays: np.ndarray) -> str:
    """A checksum of the arrays' values, eight hexadecimal digits."""
    value = 0
    for array in arrays:
        contiguous: Any = np.ascontiguousarray(array)  # NumPy's types declare no buffer for Python 3.11
        value = zlib.crc32(contiguous, value)
    return f"{value:08x}"


@overload
def check_pair(name: str, pair: None) -> None: ...


@overload
def check_pair(name: str, pair: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]: ...


def check_pair(name: str, pair: Sequence[Any] | None) -> tuple[np.ndarray, np.ndarray] | None:
    """`(x, y)` as NumPy arrays, or None for None.

    Raises:
        ValueError: if they are not two arrays of the same length >= 2.
    """
    if pair is None:
        return None
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        found = f"{len(pair)} values" if isinstance(pair, (tuple, list)) else f"a {type(pair).__name__}"
        raise ValueError(f"{name} must be two arrays, (x, y), not {found}.{_way_out(pair)}")
    x, y = pair
    if isinstance(x, (dict, list, tuple)) or not hasattr(x, "shape") or not hasattr(y, "shape"):
        raise ValueError(
            f"{name} must be two arrays; they are {type(x).__name__} and {type(y).__name__}.{_way_out(x)}"
        )
    x, y = np.asarray(x), np.asarray(y)
    if len(x) != len(y) or len(x) < 2:
        raise ValueError(
            f"{name} must be two arrays of the same length >= 2; they have {len(x)} and {len(y)}."
        )
    return x, y


def _way_out(data):
    if not isinstance(data, tf.data.Dataset):
        return ""
    return (
        " From a tf.data.Dataset of batches they come by "
        "x, y = map(np.concatenate, zip(*dataset.as_numpy_iterator()))."
    )


def check_labels(model: Any, loss: Any, data: Mapping[str, Sequence[np.ndarray] | None]) -> None:
    """Checks the class labels of data before anything is trained, as `RobustModel.fit` does.

    Args:
        model: A model with one output; a network that is not built yet is built.
        loss: The task's loss. If it takes no class labels, there is nothing to check.
        data: `{name: (x, y) or None}`; an error begins with a name that is not empty.

    Raises:
        ValueError: with the first invalid index and value.
    """
    network = getattr(model, "networks", [model])[0]
    for name, pair in data.items():
        if pair is None:
            continue
        predicted = network(pair[0][:1])
        labels = labels_for(loss, pair[1], predicted.shape[-1], len(predicted.shape))
        try:
            if labels is not None:
                labels.check()
        except ValueError as error:
            raise ValueError(f"{name}: {error}" if name else str(error)) from None
