"""Features of CIFAR images: computed for images by a CNN that learned other images with clean labels.

A small network that is trained on these features memorizes wrong labels within seconds. A deep network does
so on the images, within hours. The features are for a machine without an accelerator.
"""

import dataclasses
import pathlib
import sys
from typing import Any

import keras
import numpy as np
from keras import layers

from prl_keras.experiments.data import feature_cache, tfds
from prl_keras.experiments.data.batches import batches, shuffled_batches
from prl_keras.experiments.data.dataset import Dataset

_PIPELINE = 1  # raise it when the same parameters give other features
_PARTS = 5  # one part of the training images is for experiments, the CNN learns the other four


@dataclasses.dataclass(frozen=True)
class FeatureNetwork:
    """The CNN and its training.

    Attributes:
        filters: Filters of the 3x3 convolutions, each with batch norm and LeakyReLU(0.01); all but the first
            halve the image.
        units: Units of the dense layer after them, also with LeakyReLU(0.01).
        components: The features are so many principal components of that layer's output.
        dropout: Rate before and after that layer, in training only.
        learning_rate, batch_size, epochs: For AdamW; the rate falls to 0 along a cosine.
        weight_decay: Of AdamW.
        seed: Seed of initial weights, dropout, flips and the order of the batches.
    """

    filters: tuple[int, ...] = (32, 64, 128, 128)
    units: int = 512
    components: int = 64
    dropout: float = 0.4
    learning_rate: float = 0.003
    weight_decay: float = 0.01
    batch_size: int = 128
    epochs: int = 10
    seed: int = 0


def cifar10_features(
    data_dir: pathlib.Path | str | None = None,
    download: bool = False,
    cache_dir: pathlib.Path | str | None = None,
    **_: Any,
) -> Dataset:
    """Features of CIFAR-10, float32 `[n, 64]`, for 10,000 training images and all test images.

        1  A CNN learns the clean labels of the other 40,000 training images.
        2  Its dense layer is computed for the 10,000 and for the test images, each unit shifted and scaled to
           mean 0 and standard deviation 1 over the 10,000.
        3  The features are the first 64 principal components of these, all divided by one number, so that
           their mean square is 1.

    So the CNN has not seen the images whose labels an experiment corrupts. `feature_cache` keeps the
    features. The global random generators are not used.

    Why the leading components: they tell the classes apart, so that a network first learns the right labels,
    as a deep network does. On all 512 units, or on patches of the images (Coates & Ng 2011), it memorizes
    pairflip labels from the first epoch on (results/README.md).

    Arguments and errors are those of `load`.
    """
    return _features("cifar10", data_dir, download, cache_dir)


def cifar100_features(
    data_dir: pathlib.Path | str | None = None,
    download: bool = False,
    cache_dir: pathlib.Path | str | None = None,
    **_: Any,
) -> Dataset:
    """Features of CIFAR-100, like `cifar10_features`, with its 100 fine classes."""
    return _features("cifar100", data_dir, download, cache_dir)


def _features(name, data_dir, download, cache_dir):
    network = FeatureNetwork()
    builder = tfds.open_builder(name, data_dir, download)
    depends_on = {"pipeline": _PIPELINE, "network": dataclasses.asdict(network)}
    path = feature_cache.cache_path(builder, depends_on, cache_dir)
    arrays = feature_cache.cached(
        path,
        ("train_x", "train_y", "test_x", "test_y"),
        lambda: _compute(network, tfds.read_images(name, data_dir, download)),
    )
    names = tuple(builder.info.features["label"].names)
    source = f"{tfds.describe(builder)}; {path.stem.removeprefix(f'{name}-')}"
    return Dataset(f"{name}_features", "classification", *arrays, len(names), source, names)


def _compute(network, images, verbose="auto"):
    """`(train_x, train_y, test_x, test_y)` of the features."""
    verbose = (1 if sys.stdout.isatty() else 2) if verbose == "auto" else verbose
    order = np.random.default_rng(0).permutation(len(images.train_x))
    train, others = np.split(order, [len(order) // _PARTS])
    if verbose:
        print("A CNN learns CIFAR's images, for their features; this is done once.", flush=True)
    cnn, dense = make_network(network, images.train_x.shape[1:], len(images.class_names))
    data, steps = shuffled_batches(
        images.train_x[others], images.train_y[others], network.batch_size, network.seed
    )
    rate = keras.optimizers.schedules.CosineDecay(network.learning_rate, network.epochs * steps)
    cnn.compile(
        keras.optimizers.AdamW(rate, weight_decay=network.weight_decay),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    cnn.fit(
        data,
        epochs=network.epochs,
        steps_per_epoch=steps,
        validation_data=batches(images.test_x, images.test_y, 500),
        shuffle=False,  # shuffled_batches does it
        verbose=verbose,
    )
    outputs = [
        dense.predict(x, batch_size=500, verbose=0).astype(np.float64)
        for x in (images.train_x[train], images.test_x)
    ]
    train_x, test_x = principal_components(*outputs, network.components)
    return train_x, images.train_y[train], test_x, images.test_y


def principal_components(train: np.ndarray, test: np.ndarray, count: int) -> list[np.ndarray]:
    """The first principal components of standardized features, with mean square 1 over the train part.

    Train and test `[n, units]` become float32 `[n, count]`.
    """
    mean, std = train.mean(axis=0), train.std(axis=0) + 0.01  # a unit that is always 0 stays 0
    train, test = (train - mean) / std, (test - mean) / std
    _, directions = np.linalg.eigh(train.T @ train)  # in ascending order of variance
    found = [x @ directions[:, : -count - 1 : -1] for x in (train, test)]
    scale = np.sqrt(np.mean(found[0] ** 2))
    return [(x / scale).astype(np.float32) for x in found]


def make_network(
    network: FeatureNetwork, input_shape: Any, num_classes: int
) -> tuple[keras.Model, keras.Model]:
    """`(cnn, dense)`: models from images in [0, 255] to logits and to the dense layer's output."""
    seeds = iter(np.random.SeedSequence(network.seed).generate_state(2 * len(network.filters) + 5).tolist())

    def he_normal():
        return keras.initializers.HeNormal(next(seeds))

    images = keras.Input(input_shape)
    x = layers.Rescaling(1 / 255)(images)
    x = layers.RandomFlip("horizontal", seed=next(seeds))(x)
    for i, filters in enumerate(network.filters):
        strides = 2 if i else 1
        x = layers.Conv2D(
            filters, 3, strides, padding="same", use_bias=False, kernel_initializer=he_normal()
        )(x)
        x = layers.BatchNormalization(momentum=0.9)(x)
        x = layers.LeakyReLU(negative_slope=0.01)(x)
    x = layers.Dropout(network.dropout, seed=next(seeds))(layers.Flatten()(x))
    x = layers.Dense(network.units, kernel_initializer=he_normal())(x)
    features = layers.LeakyReLU(negative_slope=0.01)(x)
    x = layers.Dropout(network.dropout, seed=next(seeds))(features)
    x = layers.Dense(num_classes, kernel_initializer=keras.initializers.GlorotUniform(next(seeds)))(x)
    return keras.Model(images, x), keras.Model(images, features)
