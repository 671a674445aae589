"""The small CNN that learns the landmarks of CelebA; its dense layer computes the features."""

import dataclasses
import sys
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from prl_keras.experiments.data import tfds
from prl_keras.experiments.data.batches import batches, shuffled_batches

#: The ten coordinates in the order of `prl_keras.corrupt`, x then y of each landmark.
COORDINATES = tuple(
    f"{landmark}_{axis}"
    for landmark in ("lefteye", "righteye", "nose", "leftmouth", "rightmouth")
    for axis in "xy"
)


@dataclasses.dataclass(frozen=True)
class FeatureNetwork:
    """The three-layer CNN and its training; the paper says nothing more about it.

    Attributes:
        height, width: Image size in pixels after reduction from 218 x 178 (grey, averaged over areas).
        filters: Filters of the 3x3 convolutions, each followed by LeakyReLU(0.01) and a 2x2 max pooling.
        features: Units of the dense layer after them, also with LeakyReLU(0.01): the features.
        dropout: Rate before and after that layer, in training only.
        learning_rate, batch_size: For Adam on the mean squared error; the rate is multiplied by 0.3 after
            `patience // 2` epochs without a lower validation loss.
        epochs: The most epochs; training ends after `patience` epochs without a lower validation loss, with
            the weights of the best epoch.
        patience: See `epochs`.
        seed: Seed of initial weights, dropout and the order of the batches.
    """

    height: int = 64
    width: int = 54
    filters: tuple[int, ...] = (16, 32, 64)
    features: int = 512
    dropout: float = 0.3
    learning_rate: float = 0.001
    batch_size: int = 64
    epochs: int = 40
    patience: int = 5
    seed: int = 0


def extract_features(
    builder: Any, network: FeatureNetwork, verbose: int | str = "auto"
) -> tuple[np.ndarray, np.ndarray]:
    """Trains on the train split, stops by the validation split, and computes features of the test split.

    All seeds come from `network`; the global random generators are not used.

    Args:
        builder: From `tfds.open_builder`.
        network: The CNN and its training.
        verbose: As in `keras.Model.fit`; "auto" is a progress bar on a terminal and a line per epoch
            elsewhere.

    Returns:
        Features `[n, features]` and `COORDINATES` in pixels `[n, 10]` of the test images, float32.
    """
    train_x, train_y = _read_faces(builder, "train", network)
    validation_x, validation_y = _read_faces(builder, "validation", network)
    if verbose:
        print("A CNN learns the landmarks of celeb_a, for its features; this is done once.", flush=True)
    mean, std = train_y.mean(axis=0), train_y.std(axis=0)
    train, steps = shuffled_batches(train_x, (train_y - mean) / std, network.batch_size, network.seed)
    cnn, dense = make_network(network)
    cnn.compile(keras.optimizers.Adam(network.learning_rate), keras.losses.MeanSquaredError())
    cnn.fit(
        train,
        epochs=network.epochs,
        steps_per_epoch=steps,
        validation_data=batches(validation_x, (validation_y - mean) / std, 256),
        callbacks=[
            keras.callbacks.ReduceLROnPlateau("val_loss", 0.3, max(1, network.patience // 2)),
            keras.callbacks.EarlyStopping("val_loss", 0, network.patience, restore_best_weights=True),
        ],
        shuffle=False,  # shuffled_batches does it
        verbose=(1 if sys.stdout.isatty() else 2) if verbose == "auto" else verbose,
    )
    test_x, test_y = _read_faces(builder, "test", network)
    return dense.predict(test_x, batch_size=256, verbose=0), test_y


def make_network(network: FeatureNetwork) -> tuple[keras.Model, keras.Model]:
    """`(cnn, dense)`: models from images in [0, 255] `[n, height, width, 1]` to coordinates and features."""
    seeds = iter(np.random.SeedSequence(network.seed).generate_state(len(network.filters) + 4).tolist())

    def weighted(x, layer, *arguments, **options):
        initializer = keras.initializers.HeNormal(next(seeds))
        x = layer(*arguments, kernel_initializer=initializer, **options)(x)
        return layers.LeakyReLU(negative_slope=0.01)(x)

    images = keras.Input((network.height, network.width, 1))
    x = layers.Rescaling(1 / 127.5, offset=-1)(images)
    for filters in network.filters:
        x = weighted(x, layers.Conv2D, filters, 3, padding="same")
        x = layers.MaxPooling2D(2)(x)
    x = layers.Dropout(network.dropout, seed=next(seeds))(layers.Flatten()(x))
    features = weighted(x, layers.Dense, network.features)
    x = layers.Dropout(network.dropout, seed=next(seeds))(features)
    x = layers.Dense(len(COORDINATES), kernel_initializer=keras.initializers.GlorotUniform(next(seeds)))(x)
    return keras.Model(images, x), keras.Model(images, features)


def _read_faces(builder, split, network):
    """Grey images uint8 `[n, height, width, 1]` and `COORDINATES` in pixels, float32 `[n, 10]`."""

    def reduce(example):
        image = tf.image.rgb_to_grayscale(tf.cast(example["image"], tf.float32))
        image = tf.image.resize(image, (network.height, network.width), method="area")
        landmarks = tf.stack([example["landmarks"][name] for name in COORDINATES])
        return tf.cast(tf.round(image), tf.uint8), tf.cast(landmarks, tf.float32)

    return tfds.read_split(builder, split, reduce)
