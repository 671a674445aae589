"""The small CNN that learns the landmarks of CelebA, and whose dense layer gives the features."""

import dataclasses
import sys

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from prl_keras.experiments import tfds_datasets
from prl_keras.experiments.batches import batches, shuffled_batches

#: The ten coordinates in the order of `prl_keras.corrupt`, x then y of each landmark.
COORDINATES = tuple(
    f"{landmark}_{axis}"
    for landmark in ("lefteye", "righteye", "nose", "leftmouth", "rightmouth")
    for axis in "xy"
)
_MIRRORED = (2, 3, 0, 1, 4, 5, 8, 9, 6, 7)  # in a mirror, the left eye is the right one


@dataclasses.dataclass(frozen=True)
class FeatureNetwork:
    """The three-layer CNN and its training, of which the paper says no more than that.

    Attributes:
        height, width: Size in pixels to which the images, 218 x 178, are reduced (grey, averages over areas).
        filters: Of the 3x3 convolutions, each followed by LeakyReLU(0.01) and a 2x2 max pooling.
        features: Units of the dense layer after them, with LeakyReLU(0.01) too: the features.
        dropout: Rate before and after that layer, in training only.
        shift, zoom: Each training image is shifted by up to `shift` of its size, scaled by up to
            `1 +- zoom`, and mirrored or not, anew in each epoch. 3,300 faces are too few without that.
        learning_rate, batch_size: Of Adam on the mean squared error; the rate falls to 0.3 of itself after
            `patience // 2` epochs in which the validation loss has not fallen.
        epochs: At most so many; training ends after `patience` epochs in which the validation loss has
            not fallen, and the weights of the best epoch are kept.
        seed: Of initial weights, dropout, distortions and the order of the batches.
    """

    height: int = 64
    width: int = 54
    filters: tuple = (16, 32, 64)
    features: int = 512
    dropout: float = 0.3
    shift: float = 0.06
    zoom: float = 0.1
    learning_rate: float = 0.001
    batch_size: int = 64
    epochs: int = 60
    patience: int = 10
    seed: int = 0


def extract_features(builder, network, verbose="auto"):
    """Trains on the train split, stops by the validation split, and looks at the test split.

    The seeds are those of `network`: nothing is drawn from the global generators.

    Args:
        builder: Of celeb_a, from `tfds_datasets.open_builder`.
        network: A `FeatureNetwork`.
        verbose: As in `keras.Model.fit`; "auto" is a progress bar on a terminal and a line per epoch
            elsewhere.

    Returns:
        Features `[n, features]` and `COORDINATES` in pixels `[n, 10]` of the test images, float32.
    """
    train_x, train_y = _read_faces(builder, "train", network)
    validation_x, validation_y = _read_faces(builder, "validation", network)
    # Positions with the centre of the image at 0 and its edges at -1/2 and 1/2, then standardized.
    size = np.tile(builder.info.features["image"].shape[1::-1], 5).astype(np.float32)
    train_y, validation_y = train_y / size - 0.5, validation_y / size - 0.5
    mean, std = train_y.mean(axis=0), train_y.std(axis=0)
    train, set_epoch = shuffled_batches(train_x, train_y, network.batch_size, network.seed)
    cnn, dense = make_network(network)
    cnn.compile(keras.optimizers.Adam(network.learning_rate), keras.losses.MeanSquaredError())
    cnn.fit(
        train.map(_distorter(network)).map(lambda x, y: (x, (y - mean) / std)).prefetch(2),
        epochs=network.epochs,
        validation_data=batches(validation_x, (validation_y - mean) / std, 256),
        callbacks=[
            set_epoch,
            keras.callbacks.ReduceLROnPlateau("val_loss", 0.3, max(1, network.patience // 2)),
            keras.callbacks.EarlyStopping("val_loss", 0, network.patience, restore_best_weights=True),
        ],
        shuffle=False,  # the data set shuffles, by seed and epoch
        verbose=(1 if sys.stdout.isatty() else 2) if verbose == "auto" else verbose,
    )
    test_x, test_y = _read_faces(builder, "test", network)
    return dense.predict(test_x, batch_size=256, verbose=0), test_y


def make_network(network):
    """`(cnn, dense)`: from images in [0, 255] `[n, height, width, 1]` to coordinates, and to features."""
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


def distort(images, positions, zoom, shift, mirror):
    """Scales, shifts and mirrors images, and moves the landmarks along.

    With positions from -1/2 to 1/2 on each axis, the new image shows at u what the old one has at

        p = m (z u + d),   hence a landmark at p moves to   u = (m p - d) / z;

    m = -1 on the x axis of mirrored images, where left and right landmarks trade places, and 1 elsewhere.
    Brightness between two pixels is interpolated; outside the old image it is that of the edge.

    Args:
        images: `[batch, height, width, channels]`.
        positions: float32 `[batch, 10]`, `COORDINATES` in that scale.
        zoom: z, float32 `[batch]`, positive.
        shift: d for x and y, float32 `[batch, 2]`.
        mirror: bool `[batch]`.

    Returns:
        `(images, positions)`, float32, of the same shapes.
    """
    images = tf.cast(images, tf.float32)
    sign = tf.where(mirror[:, None], (-1.0, 1.0), (1.0, 1.0))  # [batch, 2]: x, y
    for axis, column in ((1, 1), (2, 0)):
        size = images.shape[axis]
        u = (tf.range(size, dtype=tf.float32) + 0.5) / size - 0.5
        old = sign[:, column, None] * (zoom[:, None] * u + shift[:, column, None])
        pixel = tf.clip_by_value((old + 0.5) * size - 0.5, 0, size - 1)  # centres are whole numbers
        below = tf.floor(pixel)
        part = tf.reshape(pixel - below, (-1, *(size if a == axis else 1 for a in (1, 2, 3))))
        first = tf.gather(images, tf.cast(below, tf.int32), axis=axis, batch_dims=1)
        second = tf.gather(images, tf.cast(tf.math.ceil(pixel), tf.int32), axis=axis, batch_dims=1)
        images = (1 - part) * first + part * second
    moved = (tf.tile(sign, (1, 5)) * positions - tf.tile(shift, (1, 5))) / zoom[:, None]
    return images, tf.where(mirror[:, None], tf.gather(moved, _MIRRORED, axis=1), moved)


def _distorter(network):
    """`distort` by noise that is a function of the seed and the number of batches before."""
    with tf.device("CPU"):  # where tf.data runs
        step = tf.Variable(0, dtype=tf.int64, trainable=False)

    def by_noise(images, positions):
        seed = [network.seed, step.assign_add(1)]
        noise = tf.random.stateless_uniform((tf.shape(images)[0], 4), seed, minval=-1)
        zoom, shift = 1 + network.zoom * noise[:, 0], network.shift * noise[:, 1:3]
        return distort(images, positions, zoom, shift, mirror=noise[:, 3] < 0)

    return by_noise


def _read_faces(builder, split, network):
    """Grey images uint8 `[n, height, width, 1]` and `COORDINATES` in pixels, float32 `[n, 10]`."""

    def reduce(example):
        image = tf.image.rgb_to_grayscale(tf.cast(example["image"], tf.float32))
        image = tf.image.resize(image, (network.height, network.width), method="area")
        landmarks = tf.stack([example["landmarks"][name] for name in COORDINATES])
        return tf.cast(tf.round(image), tf.uint8), tf.cast(landmarks, tf.float32)

    return tfds_datasets.read_split(builder, split, reduce)
