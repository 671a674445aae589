"""The paper's landmark features: computed for test images by a small CNN trained on clean CelebA."""

import dataclasses
import pathlib
from typing import Any

import numpy as np

from prl_keras.experiments.data import feature_cache, tfds
from prl_keras.experiments.data.celeb_a_features import COORDINATES, FeatureNetwork, extract_features
from prl_keras.experiments.data.dataset import Dataset

_PIPELINE = 2  # raise it when the same parameters give other features
_TRAIN_FRACTION = 0.8


def celeb_a(
    data_dir: pathlib.Path | str | None = None,
    download: bool = False,
    cache_dir: pathlib.Path | str | None = None,
    network: FeatureNetwork | None = None,
    verbose: int | str = "auto",
    **_: Any,
) -> Dataset:
    """The paper's section 6.1: ten landmark coordinates from 512 CNN features, of the TFDS data set celeb_a.

        1  A CNN learns the ten landmark coordinates on the clean train split; the validation split
           stops it early.
        2  Its dense layer computes the features of each image of the test split.
        3  A fixed permutation splits these 80 : 20 into the train and test part. Each coordinate is shifted
           and scaled to mean 0 and standard deviation 1 over the train part.

    The features are neither shifted nor scaled. The paper does not give their scale, but the scale decides
    how far linadv moves its targets (W^T x has standard deviation |x|), and so how standard training fares.

    Steps 1 and 2 take minutes. `cache_dir` keeps their result in a file whose name depends on the data,
    `network` and the versions of Keras and TensorFlow. A damaged file is replaced, with a warning. The
    global random generators are not used.

    Arguments and errors are those of `load` and `extract_features`.
    """
    network = FeatureNetwork() if network is None else network
    builder = tfds.open_builder("celeb_a", data_dir, download)
    path = feature_cache.cache_path(builder, _depends_on(network), cache_dir)
    features, landmarks = feature_cache.cached(
        path, ("features", "landmarks"), lambda: extract_features(builder, network, verbose)
    )
    landmarks = landmarks.astype(np.float64)
    order = np.random.default_rng(0).permutation(len(features))
    train, test = np.split(order, [int(_TRAIN_FRACTION * len(order))])
    mean, std = landmarks[train].mean(axis=0), landmarks[train].std(axis=0)
    targets = ((landmarks - mean) / std).astype(np.float32)
    source = f"{tfds.describe(builder)}; {path.stem.removeprefix('celeb_a-')}"
    arrays = features[train], targets[train], features[test], targets[test]
    return Dataset("celeb_a", "regression", *arrays, len(COORDINATES), source)


def _depends_on(network):
    return {"pipeline": _PIPELINE, "network": dataclasses.asdict(network)}
