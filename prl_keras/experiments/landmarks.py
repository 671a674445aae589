"""The paper's landmark features: what a small CNN, trained on clean CelebA, sees in its test images."""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import warnings
import zipfile
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from prl_keras import files
from prl_keras.experiments import tfds_datasets
from prl_keras.experiments.landmark_network import FeatureNetwork, extract_features

_PIPELINE = 2  # raise it when the same parameters come to mean other features
_TRAIN_FRACTION = 0.8


class LandmarkFeatures(NamedTuple):
    """Features and landmarks of the test images, split in two.

    Attributes:
        train_x, test_x: float32 `[n, features]`, as the CNN gives them.
        train_y, test_y: float32 `[n, 10]`, the coordinates shifted and scaled so that each has mean 0 and
            standard deviation 1 over the train part.
        source: What was read, as `tfds_datasets.describe` says it, and the key of the features.
    """

    train_x: np.ndarray
    train_y: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray
    source: str


def landmark_features(data_dir=None, download=False, cache_dir=None, network=None, verbose="auto"):
    """The regression data of the paper's section 6.1, from the TFDS data set celeb_a.

        1  a CNN learns the ten landmark coordinates on the train split, clean; early stopping
           on the validation split
        2  its dense layer gives the features of each image of the test split
        3  these are split 80 : 20, by a fixed permutation, into the train and test part returned

    The features are neither shifted nor scaled. The paper says nothing of their scale, but it decides how
    far linadv throws its targets, W^T x of standard deviation |x|, and by that what becomes of standard
    training.

    Steps 1 and 2 take minutes. Their result is kept in `cache_dir`, in a file whose name tells apart all
    that it depends on: the data, `network`, the versions of Keras and TensorFlow. A damaged file is made
    anew, with a warning. Nothing is drawn from the global random generators.

    Args:
        data_dir, download: As for `tfds_datasets.open_builder`.
        cache_dir: Folder; None for `$XDG_CACHE_HOME/prl_keras` or `~/.cache/prl_keras`.
        network: A `FeatureNetwork`; None for its defaults.
        verbose: As in `keras.Model.fit`; "auto" is a progress bar on a terminal and a line per epoch
            elsewhere.

    Returns:
        `LandmarkFeatures`.

    Raises:
        ImportError, OSError, ValueError: as `tfds_datasets.open_builder` and `read_split`.
    """
    network = FeatureNetwork() if network is None else network
    builder = tfds_datasets.open_builder("celeb_a", data_dir, download)
    path = cache_path(builder, network, cache_dir)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _one_process_at_a_time(path):
        saved = _read(path)
        if saved is None:
            saved = extract_features(builder, network, verbose)
            with files.replacing(path) as temporary:
                np.savez(temporary, features=saved[0], landmarks=saved[1])
    features, landmarks = saved[0], saved[1].astype(np.float64)
    order = np.random.default_rng(0).permutation(len(features))
    train, test = np.split(order, [int(_TRAIN_FRACTION * len(order))])
    mean, std = landmarks[train].mean(axis=0), landmarks[train].std(axis=0)
    targets = ((landmarks - mean) / std).astype(np.float32)
    source = f"{tfds_datasets.describe(builder)}; {path.stem.removeprefix('celeb_a-')}"
    return LandmarkFeatures(features[train], targets[train], features[test], targets[test], source)


def cache_path(builder, network, cache_dir=None):
    """The file in which `landmark_features` keeps its features: one for each set of circumstances."""
    if cache_dir is None:
        cache_dir = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "prl_keras"
    depends_on = {
        "pipeline": _PIPELINE,
        "source": tfds_datasets.describe(builder),
        "splits": {name: (info.num_examples, info.num_bytes) for name, info in builder.info.splits.items()},
        "network": dataclasses.asdict(network),
        "versions": (keras.__version__, tf.__version__),
    }
    key = hashlib.sha256(json.dumps(depends_on, sort_keys=True).encode()).hexdigest()[:16]
    return pathlib.Path(cache_dir).expanduser() / f"celeb_a-features-{key}.npz"


def _read(path):
    """The arrays of a cache file; None if there is none that can be read."""
    if not path.exists():
        return None
    try:
        with np.load(path) as arrays:
            return arrays["features"], arrays["landmarks"]
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
        warnings.warn(f"{path} is damaged and is made anew: {error}", stacklevel=3)
        return None


@contextlib.contextmanager
def _one_process_at_a_time(path):
    """Lets a second process wait for the file that the first one makes, instead of making it too."""
    import fcntl

    with open(path.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # freed by the system if the process is killed
        yield
