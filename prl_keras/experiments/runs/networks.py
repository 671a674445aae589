"""The networks of the experiments, by name; every head is linear (logits or raw values).

cnn9        the 9-layer CNN of Han et al. 2018, for 28x28 images and larger
small_cnn   three convolutions, for small images on a machine without accelerator
strided_cnn three convolutions that halve the image at once, for 32x32 images without accelerator
mlp         the paper's fully connected network for landmarks
"""

import types
from collections.abc import Sequence

import keras
import numpy as np
from keras import layers

from prl_keras.validate import check_integer, is_integer

NORMS = ("none", "batch", "group")
#: Name -> Keras's dtype policy.
PRECISIONS = types.MappingProxyType(
    {"float32": "float32", "bfloat16": "mixed_bfloat16", "float16": "mixed_float16"}
)


def make_network(
    name: str,
    input_shape: Sequence[int],
    num_outputs: int,
    norm: str = "none",
    seed: int = 0,
    precision: str = "float32",
) -> keras.Model:
    """A fresh network whose initial weights depend on the arguments alone.

    Each layer with random weights and each dropout has its own seed, spawned from `seed`; the global
    random generators are not used. Kernels before a LeakyReLU are He normal (std sqrt(2 / fan_in)), the
    head's kernel is Glorot uniform, biases are 0.

    Args:
        name: a key of `NETWORKS`.
        input_shape: shape of one example: `(height, width, channels)` for the CNNs, any for mlp.
        num_outputs: q >= 1, the number of classes or of target coordinates.
        norm: the normalization after each convolution: "none"; "batch" (BatchNormalization, which mixes the
            examples of a batch, so per-example gradients are undefined); "group" (GroupNormalization, which
            does not).
        seed: int >= 0.
        precision: a key of `PRECISIONS`, what the layers compute in. Weights and the head are float32.

    Returns:
        A functional `keras.Model`, `[batch, *input_shape]` -> float32 `[batch, num_outputs]`.

    Raises:
        ValueError: for an invalid argument, images too small for the network, or a norm other than "none"
            for mlp.
    """
    if name not in NETWORKS:
        raise ValueError(f"name={name!r} is unknown; use one of {tuple(NETWORKS)}.")
    shape = tuple(input_shape) if isinstance(input_shape, (tuple, list)) else ()
    if not shape or not all(is_integer(size) and size > 0 for size in shape):
        raise ValueError(
            f"input_shape={input_shape!r} must be a tuple of integers >= 1, the shape of one "
            "example without the batch: write x.shape[1:]."
        )
    check_integer("num_outputs", num_outputs)
    if norm not in NORMS:
        raise ValueError(f"norm={norm!r} is unknown; use one of {NORMS}.")
    check_integer("seed", seed, 0)
    if precision not in PRECISIONS:
        raise ValueError(f"precision={precision!r} is unknown; use one of {tuple(PRECISIONS)}.")
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy(PRECISIONS[precision])  # of the layers that are made now
    try:
        return NETWORKS[name](shape, num_outputs, norm, seed)
    finally:
        keras.config.set_dtype_policy(policy)


def cnn9(input_shape: Sequence[int], num_outputs: int, norm: str, seed: int = 0) -> keras.Model:
    """Table 2 of Han et al. 2018: nine 3x3 convolutions, two poolings, a mean over the image.

        128 128 128 same | max pool 2, dropout .25 | 256 256 256 same | max pool 2, dropout .25 |
        512 256 128 valid | global mean | dense

    Norm and LeakyReLU(0.01) follow each convolution; the dropout drops whole channels. Batch norm has
    PyTorch's constants (momentum 0.1 there is 0.9 here, epsilon 1e-5).
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


def small_cnn(input_shape: Sequence[int], num_outputs: int, norm: str, seed: int = 0) -> keras.Model:
    """cnn9 made small: 3x3 convolutions 32, 64 same | max pool 2 | 64 same | global mean | dense.

    Norm and LeakyReLU as in cnn9. No dropout: with it a network this small forgets wrong labels by itself,
    which hides the methods' effect.
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


def strided_cnn(input_shape: Sequence[int], num_outputs: int, norm: str, seed: int = 0) -> keras.Model:
    """24 filters 5x5 stride 2 | 48 filters 3x3 stride 2 | 96 filters 3x3 | global mean | dense.

    Norm and LeakyReLU as in cnn9. No dropout, as in small_cnn, and a sixth of its time on 32x32 images.
    """
    _check_image("strided_cnn", input_shape, smallest=8)
    seeds = _spawn_seeds(seed)
    x = inputs = keras.Input(input_shape)
    for filters, size, strides in ((24, 5, 2), (48, 3, 2), (96, 3, 1)):
        x = _convolution(x, filters, "same", norm, 8, seeds, size, strides)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, _head(x, num_outputs, seeds))


def mlp(input_shape: Sequence[int], num_outputs: int, norm: str, seed: int = 0) -> keras.Model:
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


#: name -> builder `(input_shape, num_outputs, norm, seed=0) -> keras.Model`. `make_network` checks the
#: arguments and calls it.
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
    return layers.Dense(num_outputs, kernel_initializer=initializer, dtype="float32")(x)


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
