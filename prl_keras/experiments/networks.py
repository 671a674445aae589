"""The networks of the experiments, by name; every head is linear (logits or raw values).

cnn9        the 9-layer CNN of Han et al. 2018, for 28x28 images and larger
small_cnn   three convolutions, for small images on a machine without accelerator
strided_cnn three convolutions that halve the image at once, for 32x32 images there
mlp         the paper's fully connected network for landmarks
"""

import numbers
import types

import keras
import numpy as np
from keras import layers

NORMS = ("none", "batch", "group")


def make_network(name, input_shape, num_outputs, norm="none", seed=0):
    """A fresh network whose initial weights are a function of the arguments alone.

    Each layer with random weights and each dropout has its own seed, spawned from `seed`; no
    global seed is read or moved. Kernels before a LeakyReLU are He normal (std sqrt(2 / fan_in)),
    that of the head is Glorot uniform, biases are 0.

    Args:
        name: a key of `NETWORKS`.
        input_shape: shape of one example: `(height, width, channels)` for the CNNs, any for mlp.
        num_outputs: q >= 1, the number of classes or of target coordinates.
        norm: what follows each convolution. "none"; "batch" (BatchNormalization, mixes the
            examples of a batch, so per-example gradients are undefined); "group"
            (GroupNormalization, does not).
        seed: int >= 0.

    Returns:
        A functional `keras.Model`, `[batch, *input_shape]` -> `[batch, num_outputs]`.

    Raises:
        ValueError: an argument outside the above, images too small for the network, or a norm
            other than "none" for mlp.
    """
    if name not in NETWORKS:
        raise ValueError(f"name={name!r} is unknown; use one of {tuple(NETWORKS)}.")
    shape = tuple(input_shape) if isinstance(input_shape, (tuple, list)) else ()
    if not shape or not all(_is_integer(size, 1) for size in shape):
        raise ValueError(
            f"input_shape={input_shape!r} must be a tuple of integers >= 1, the shape of one "
            "example without the batch: write x.shape[1:]."
        )
    if not _is_integer(num_outputs, 1):
        raise ValueError(f"num_outputs={num_outputs!r} must be an integer >= 1.")
    if norm not in NORMS:
        raise ValueError(f"norm={norm!r} is unknown; use one of {NORMS}.")
    if not _is_integer(seed, 0):
        raise ValueError(f"seed={seed!r} must be an integer >= 0, so that weights can be repeated.")
    return NETWORKS[name](shape, num_outputs, norm, seed)


def cnn9(input_shape, num_outputs, norm, seed=0):
    """Table 2 of Han et al. 2018: nine 3x3 convolutions, two poolings, a mean over the image.

        128 128 128 same | max pool 2, dropout .25 | 256 256 256 same | max pool 2, dropout .25 |
        512 256 128 valid | global mean | dense

    Norm and LeakyReLU(0.01) follow each convolution; the dropout takes whole channels. Batch
    norm has PyTorch's constants (momentum 0.1 there is 0.9 here, epsilon 1e-5).
    """
    # Two poolings leave floor(size / 4) pixels; three valid 3x3 convolutions need 7 of them.
    _check_image("cnn9", input_shape, smallest=28)
    seeds = _spawn_seeds(seed)
    x = inputs = keras.Input(input_shape)
    for filters in (128, 256):
        for _ in range(3):
            x = _convolution(x, filters, "same", norm, 32, seeds)
        x = layers.MaxPooling2D(2)(x)
        x = layers.SpatialDropout2D(0.25, seed=next(seeds))(x)
    for filters in (512, 256, 128):
        x = _convolution(x, filters, "valid", norm, 32, seeds)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, _head(x, num_outputs, seeds))


def small_cnn(input_shape, num_outputs, norm, seed=0):
    """cnn9 made small: 3x3 convolutions 32, 64 same | max pool 2 | 64 same | global mean | dense.

    Norm and LeakyReLU as in cnn9. No dropout: so small a network forgets wrong labels by itself with
    it, and hides what the methods do.
    """
    _check_image("small_cnn", input_shape, smallest=2)
    seeds = _spawn_seeds(seed)
    x = inputs = keras.Input(input_shape)
    for filters in (32, 64):
        x = _convolution(x, filters, "same", norm, 8, seeds)
    x = layers.MaxPooling2D(2)(x)
    x = _convolution(x, 64, "same", norm, 8, seeds)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, _head(x, num_outputs, seeds))


def strided_cnn(input_shape, num_outputs, norm, seed=0):
    """24 filters 5x5 stride 2 | 48 filters 3x3 stride 2 | 96 filters 3x3 | global mean | dense.

    Norm and LeakyReLU as in cnn9, no dropout as in small_cnn, a sixth of its time on 32x32 images.
    """
    _check_image("strided_cnn", input_shape, smallest=8)
    seeds = _spawn_seeds(seed)
    x = inputs = keras.Input(input_shape)
    for filters, size, strides in ((24, 5, 2), (48, 3, 2), (96, 3, 1)):
        x = _convolution(x, filters, "same", norm, 8, seeds, size, strides)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, _head(x, num_outputs, seeds))


def mlp(input_shape, num_outputs, norm, seed=0):
    """Dense 256, Dense 256, Dense q, LeakyReLU(0.01) between (the paper, appendix A.3)."""
    if norm != "none":
        raise ValueError(f"norm={norm!r}: mlp has no normalization; write norm='none'.")
    seeds = _spawn_seeds(seed)
    inputs = keras.Input(input_shape)
    x = layers.Flatten()(inputs)
    for _ in range(2):
        x = layers.Dense(256, kernel_initializer=keras.initializers.HeNormal(next(seeds)))(x)
        x = layers.LeakyReLU(negative_slope=0.01)(x)
    return keras.Model(inputs, _head(x, num_outputs, seeds))


#: name -> builder `(input_shape, num_outputs, norm, seed=0) -> keras.Model`. `make_network` is
#: the way in that checks its arguments.
NETWORKS = types.MappingProxyType(
    {"cnn9": cnn9, "small_cnn": small_cnn, "strided_cnn": strided_cnn, "mlp": mlp}
)


def _convolution(x, filters, padding, norm, groups, seeds, size=3, strides=1):
    """Convolution, norm, LeakyReLU(0.01)."""
    initializer = keras.initializers.HeNormal(next(seeds))
    x = layers.Conv2D(filters, size, strides, padding=padding, kernel_initializer=initializer)(x)
    if norm == "batch":
        x = layers.BatchNormalization(momentum=0.9, epsilon=1e-5)(x)
    elif norm == "group":
        x = layers.GroupNormalization(groups=groups)(x)
    return layers.LeakyReLU(negative_slope=0.01)(x)


def _head(x, num_outputs, seeds):
    initializer = keras.initializers.GlorotUniform(next(seeds))
    return layers.Dense(num_outputs, kernel_initializer=initializer)(x)


def _spawn_seeds(seed):
    """Independent 32-bit seeds, one for each layer that needs one (cnn9, the largest, needs 12)."""
    return iter(np.random.SeedSequence(seed).generate_state(16).tolist())


def _check_image(name, input_shape, smallest):
    if len(input_shape) != 3 or min(input_shape[:2]) < smallest:
        raise ValueError(
            f"input_shape={input_shape!r}: {name} needs images (height, width, channels) of at "
            f"least {smallest} x {smallest} pixels. Write x[..., None] where the channel is "
            "missing, or take small_cnn (from 2 x 2) or mlp (any shape)."
        )


def _is_integer(value, smallest):
    is_integer = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    return is_integer and value >= smallest
