"""The contribution of each example to the gradients of a layer's weights, for each layer type.

A layer is written as `activation(z)` with z linear in its weights: `z = linear(h, *weights)` for inputs h.
From h and `d = d loss_i / d z_i` follow, for every weight W, the norm of each example's gradient and the
weighted sum of the gradients. With the positions t (pixels, time steps) of an example,

    d loss_i / d W = sum_t h_t d_t^T                                       for each example    (direct)
    ||d loss_i / d W||^2 = sum_{t,s} (h_t . h_s) (d_t . d_s)               two matrices        (Gram)

For one position the second is ||h||^2 ||d||^2 (Goodfellow 2015, arXiv:1510.01799; with positions Rochette
et al. 2019, arXiv:1912.06015, and Bu et al. 2022, arXiv:2205.10683). The direct way costs as much as the
layer's plain gradient and also yields the weighted sum, but it holds a gradient for every example. It is
used if those gradients are no larger than the layer's inputs and outputs, which are held anyway, or than the
Gram matrices. Otherwise the Gram way is used; the weighted sum is the plain gradient for upstream `w_i d_i`.
"""

import math
import typing
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf
from keras import layers

from prl_keras.scores.layerwise import conv, normalization
from prl_keras.scores.layerwise.contribution import (
    Contribution,
    direct,
    direct_is_small,
    from_gram,
    row_norms,
    to_bias,
    weighted_sum,
)


class LayerType(typing.NamedTuple):
    """How to split the layers of one type.

    Attributes:
        weights: Function of the layer that returns its weights, in the order of the results below.
        inputs: Function of (layer, inputs, found) that returns h; in the backward pass `found()` returns the
            contributions below.
        linear: Function of (layer, h, *weights) that returns z.
        contributions: Function of (layer, h, d), in float32 or float64, that returns a `Contribution` for
            each weight, and possibly one more for a bias that the layer lacks.
        accepts: Function of a Keras node that returns whether the layer has this form at this node.
        activation: Function of (layer, z) that returns the outputs.
    """

    weights: Callable[..., list[Any]]
    inputs: Callable[..., tf.Tensor]
    linear: Callable[..., tf.Tensor]
    contributions: Callable[..., list[Contribution]]
    accepts: Callable[..., bool]
    activation: Callable[..., tf.Tensor] = lambda layer, z: z


def weighted_sums(
    layer: Any, h: tf.Tensor, d: tf.Tensor, w: tf.Tensor, pairs: Sequence[tuple[Any, Contribution]]
) -> list[Any]:
    """`sum_i w_i * gradient_i` for some weights of the layer, in the weight's dtype.

    Args:
        layer: A layer of a type in `LAYER_TYPES`.
        h: As in `LayerType`.
        d: `[batch, ...]`, the gradient of each example's loss with respect to z.
        w: `[batch]`.
        pairs: `(weight, its Contribution)` each, from `LayerType.contributions`.

    Returns:
        A list of tensors; for an embedding `tf.IndexedSlices`, as in a plain step.
    """
    kind, dtype = LAYER_TYPES[type(layer)], layer.variable_dtype
    weights = {id(weight): tf.convert_to_tensor(weight) for weight in kind.weights(layer)}
    # In the weights' own precision: float16 would round every product.
    h, d, w = (tf.cast(t, dtype) if t.dtype.is_floating else t for t in (h, d, w))
    plain = [weights[id(weight)] for weight, contribution in pairs if contribution.gradients is None]
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(plain)
        z = kind.linear(layer, h, *weights.values()) if plain else None  # pruned from the graph
    upstream = d * tf.reshape(w, [-1] + [1] * (len(d.shape) - 1))
    pulled = iter(tape.gradient(z, plain, upstream) if plain else ())
    return [next(pulled) if c.gradients is None else weighted_sum(c, w, weight) for weight, c in pairs]


# Dense: z_t = h_t W + b.


def _cast(layer, inputs, found):
    return tf.cast(inputs, layer.compute_dtype)


def _kernel_and_bias(layer):
    return [layer.kernel, layer.bias] if layer.use_bias else [layer.kernel]


def _dense_linear(layer, h, kernel, bias=None):
    z = tf.matmul(h, kernel) if len(h.shape) == 2 else tf.tensordot(h, kernel, 1)
    return z if bias is None else z + bias


def _dense_contributions(layer, h, d):
    p, q = layer.kernel.shape
    positions = math.prod(h.shape[1:-1])
    h, d = tf.reshape(h, [-1, positions, p]), tf.reshape(d, [-1, positions, q])
    if positions == 1:
        kernel = Contribution(row_norms(h[:, 0]) * row_norms(d[:, 0]))
    elif direct_is_small(p * q, positions * (p + q), 2 * positions**2):
        kernel = direct([tf.matmul(h, d, transpose_a=True)])
    else:
        kernel = from_gram(tf.matmul(h, h, transpose_b=True), tf.matmul(d, d, transpose_b=True))
    return [kernel, to_bias(d)]


def _is_plain(layer):
    return layer.quantization_mode is None and not layer.lora_enabled


def _has_known_sizes(node):
    layer = node.operation
    return _is_plain(layer) and layer.autocast and None not in node.input_tensors[0].shape[1:]


# Embedding: z_t = W[h_t].


def _embedding_inputs(layer, ids, found):
    ids = ids if ids.dtype in (tf.int32, tf.int64) else tf.cast(ids, tf.int32)
    return tf.where(ids < 0, ids + layer.input_dim, ids)  # -1 is the last row, as in `keras.ops.take`


def _embedding_contributions(layer, ids, d):
    """A row's gradient is the sum of d over the positions with its id: h_t . h_s is 1 for equal ids, or 0."""
    positions = tf.reduce_prod(tf.shape(ids)[1:])
    ids = tf.reshape(ids, [-1, positions])
    d = tf.reshape(d, [-1, positions, layer.output_dim])
    same = tf.cast(ids[:, :, None] == ids[:, None, :], d.dtype)
    return [from_gram(same, tf.matmul(d, d, transpose_b=True))]


def _accepts_embedding(node):
    return _is_plain(node.operation) and not node.operation.mask_zero


_DENSE = LayerType(
    _kernel_and_bias,
    _cast,
    _dense_linear,
    _dense_contributions,
    _has_known_sizes,
    lambda layer, z: layer.activation(z),
)
_CONV = _DENSE._replace(linear=conv.linear, contributions=conv.contributions)
_EMBEDDING = LayerType(
    lambda layer: [layer.embeddings],
    _embedding_inputs,
    lambda layer, ids, table: tf.gather(table, ids),
    _embedding_contributions,
    _accepts_embedding,
)
_GROUP_NORMALIZATION = LayerType(
    normalization.weights,
    normalization.group_normalized,
    normalization.linear,
    normalization.contributions,
    normalization.accepts,
)
_LAYER_NORMALIZATION = _GROUP_NORMALIZATION._replace(inputs=normalization.layer_normalized)

#: Exact type of a layer -> `LayerType`.
LAYER_TYPES: dict[type, LayerType] = {
    layers.Dense: _DENSE,
    **dict.fromkeys([layers.Conv1D, layers.Conv2D, layers.Conv3D], _CONV),
    layers.Embedding: _EMBEDDING,
    layers.GroupNormalization: _GROUP_NORMALIZATION,
    layers.LayerNormalization: _LAYER_NORMALIZATION,
}
