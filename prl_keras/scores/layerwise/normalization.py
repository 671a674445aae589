"""Per-example gradients of group and layer normalization: see `layers`.

z = gamma * h + beta,      h = (inputs - means) / standard deviations
"""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from prl_keras.scores.layerwise.contribution import Contribution, direct, vector


def group_normalized(layer: Any, inputs: tf.Tensor, found: Callable[[], list[Contribution]]) -> tf.Tensor:
    """The layer's result without gamma and beta.

    Means are taken over the positions first, then over the channels of a group, because TensorFlow is slow to
    reduce axes that are not adjacent. In the backward pass, with d the gradient of gamma * h + beta, the
    contributions are the sums over the positions of h d and d. Times gamma they are the sums for the means.
    """
    groups = layer._reshape_into_groups(tf.cast(inputs, layer.compute_dtype))
    rank = len(groups.shape)
    channel = rank - 1 if layer.axis == -1 else layer.axis + 1
    positions = [axis for axis in range(1, rank) if axis not in (channel - 1, channel)]

    def mean(t):
        return tf.reduce_mean(tf.reduce_mean(t, positions, keepdims=True), channel, keepdims=True)

    def means_back(h, d):
        if layer.gamma is None or layer.beta is None:
            return mean(h * d), mean(d)
        shape, of_channels = tf.shape(groups), np.isin(range(rank), (0, channel - 1, channel))
        count = tf.cast(tf.reduce_prod(tf.where(of_channels, 1, shape)) * shape[channel], d.dtype)
        sums = [tf.cast(c.gradients[0], d.dtype) * tf.cast(layer.gamma, d.dtype) / count for c in found()]
        sums = [tf.reshape(each, tf.where(of_channels, shape, 1)) for each in sums]
        return [tf.reduce_sum(each, channel, keepdims=True) for each in sums]

    return tf.reshape(_normalized(groups, mean, means_back, layer.epsilon), tf.shape(inputs))


def layer_normalized(layer: Any, inputs: tf.Tensor, found: Callable[[], list[Contribution]]) -> tf.Tensor:
    """The layer's result without gamma and beta."""

    def mean(t):
        return tf.reduce_mean(t, layer.axis, keepdims=True)

    def means_back(h, d):
        return mean(h * d), mean(d)

    return _normalized(tf.cast(inputs, layer.compute_dtype), mean, means_back, layer.epsilon)


def _normalized(x, mean_of, means_back, epsilon):
    """`(x - mean) / sqrt(variance + epsilon)`; its gradient is computed from the result: x is not held.

    Args:
        x: The inputs.
        mean_of: Function that returns the means over each normalized group, with the same number of axes.
        means_back: Function of the result h and the gradient d with respect to it: the means of h d and d.
        epsilon: As above.

    Returns:
        A tensor with the shape and dtype of x.
    """
    precision = keras.backend.result_type(x.dtype, "float32")

    @tf.custom_gradient
    def normalize(x):
        centred = tf.cast(x, precision)
        centred -= mean_of(centred)
        factor = tf.math.rsqrt(mean_of(tf.square(centred)) + epsilon)
        result = tf.cast(centred * factor, x.dtype)

        def backward(upstream):
            h, d = tf.cast(result, precision), tf.cast(upstream, precision)
            mean_of_both, mean_of_d = means_back(h, d)
            rest = d - (h * mean_of_both + mean_of_d)  # one new tensor, not two
            return tf.cast(factor * rest, x.dtype)

        return result, backward

    return normalize(x)


def weights(layer: Any) -> list[Any]:
    """Gamma and beta, as far as the layer has them."""
    return [weight for weight in (layer.gamma, layer.beta) if weight is not None]


def _normalized_axes(layer, rank):
    return sorted(axis % rank for axis in keras.tree.flatten(layer.axis))


def linear(layer: Any, h: tf.Tensor, *gamma_and_beta: tf.Tensor) -> tf.Tensor:
    """z, as the layer computes it."""
    shape = np.ones(len(h.shape), int)
    for axis in _normalized_axes(layer, len(h.shape)):
        shape[axis] = h.shape[axis]
    left = iter([tf.reshape(weight, shape) for weight in gamma_and_beta])
    z = h if layer.gamma is None else h * next(left)
    return z if layer.beta is None else z + next(left)


def contributions(layer: Any, h: tf.Tensor, d: tf.Tensor) -> list[Contribution]:
    """The `Contribution` of each example to gamma and beta, as far as the layer has them."""
    kept = _normalized_axes(layer, len(h.shape))
    summed = [axis for axis in range(1, len(h.shape)) if axis not in kept]
    products = [t for t, weight in ((h * d, layer.gamma), (d, layer.beta)) if weight is not None]
    make = vector if len(kept) == 1 else lambda gradient: direct([gradient])
    return [make(tf.reduce_sum(t, axis=summed)) for t in products]


def accepts(node: Any) -> bool:
    """Whether the layer normalizes each example separately and its axes have known sizes."""
    layer, shape = node.operation, node.input_tensors[0].shape
    axes = _normalized_axes(layer, len(shape))
    if getattr(layer, "rms_scaling", False) or layer.axis in range(-len(shape), -1):
        return False  # for a negative axis other than -1 Keras groups a different axis
    return 0 not in axes and all(shape[axis] is not None for axis in axes)
