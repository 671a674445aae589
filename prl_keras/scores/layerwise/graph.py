"""Per-example gradient norms from one ordinary forward and backward pass, layer by layer.

The pass records the inputs h of every layer with weights, and the gradient d of each example's loss with
respect to the layer's linear part. `layers` computes the norms and the weighted sums from them. It takes
about the time and memory of a plain step; holding the gradients of all n examples takes n times the memory
of the weights.
"""

import inspect
import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers
from keras.src.models import functional  # keras.Model(inputs, outputs) makes a functional.Functional

from prl_keras.scores.layerwise.contribution import Vectors, norm_of_norms
from prl_keras.scores.layerwise.layers import LAYER_TYPES, weighted_sums


def applies(network: keras.Model) -> bool:
    """Whether the graph of `network` guarantees that the formulas give all its gradients."""
    return obstacle(network) is None


def obstacle(network: keras.Model) -> str | None:
    """Why the formulas may not give all the gradients of `network`, in words; None if they do.

    The network must be a Sequential or Functional model (not a subclass) with one output. Every operation
    must be of a type in `LAYER_TYPES` (used once, with its own weights) or in `_WEIGHTLESS`. Subclassed
    layers, nested models, `keras.ops` on symbolic tensors, activity regularizers and activations from outside
    `keras.activations` are obstacles.
    """
    graph = _graph(network)
    if graph is None or "call" in vars(network):
        return "it is not a plain Sequential or Functional model"
    if len(graph.outputs) != 1 or isinstance(graph.output, dict):
        return "it has more than one output"
    nodes = [node for depth in graph._nodes_by_depth.values() for node in depth]
    for node in nodes:
        if not _is_known(node):
            return f"{type(node.operation).__name__} {node.operation.name!r} is not known, or not in this use"
    used = [id(w) for node in nodes for w in node.operation.weights]  # twice if the layer is used twice
    trained = {id(w) for w in network.trainable_weights}
    if len(set(used)) < len(used):
        return "a layer is used twice"
    return None if trained and trained <= set(used) else "its graph does not hold all its weights"


def gradients(
    output_gradients: Callable[[tf.Tensor], tuple[list[tf.Tensor], list[tf.Tensor]]],
    network: keras.Model,
    x: Any,
    training: bool,
    loss_scale: float | tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor, Callable[[tf.Tensor], list[Any]]]:
    """The norms of all examples' gradients, and their weighted sum for any weights.

    Args:
        output_gradients: Function of the predictions `[batch, ...]` that returns `(tensors, gradients)`:
            what the losses depend on (the predictions, and their logits if Keras keeps them), and the
            gradient of each example's loss times `loss_scale` with respect to them, `[batch, ...]`.
        network: A Keras model for which `applies` is true.
        x: Inputs `[batch, ...]`, or a structure of them.
        training: Whether the network is called in training mode.
        loss_scale: Factor on each loss.

    Returns:
        `(y_pred, norms, weighted_sum)`: the predictions; float32 `[batch]`, L2 norms over all trainable
        weights, without `loss_scale`; a function of weights `[batch]` that returns
        `sum_i weights_i * gradient_i`, with `loss_scale`, for every trainable weight.
    """
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        y_pred, passed = _forward(network, x, training, tape)
    outputs, upstream = output_gradients(y_pred)
    upstream, size = _brought_to_1(upstream, loss_scale)
    linear = [part.z for part in passed]
    deltas = tape.gradient(outputs, linear, upstream, unconnected_gradients=tf.UnconnectedGradients.ZERO)
    for part, d in zip(passed, deltas):
        if part.contributions is None:  # no gradient reached it
            part.contribute(d)

    trained = {id(weight) for weight in network.trainable_weights}
    found = [(part, [pair for pair in part.pairs() if id(pair[0]) in trained]) for part in passed]
    pairs = [pair for _, of_part in found for pair in of_part]
    norms = [c.norms for _, c in pairs if c.norms is not None]
    vectors = [(weight, c) for weight, c in pairs if c.norms is None]
    joined: Any = Vectors(vectors) if vectors else None
    if vectors:
        norms.append(joined.norms())

    def weighted_sum(weights):
        weights = tf.math.multiply_no_nan(size, tf.cast(weights, tf.float32))
        sums = {}
        if vectors:
            sums.update(zip([id(weight) for weight, _ in vectors], joined.weighted_sums(weights)))
        for part, of_part in found:
            matrices = [(weight, c) for weight, c in of_part if id(weight) not in sums]
            totals = weighted_sums(part.layer, part.h, part.d, weights, matrices)
            sums.update((id(weight), total) for (weight, _), total in zip(matrices, totals))
        return [sums[id(weight)] for weight in network.trainable_weights]

    scale = size / tf.cast(loss_scale, tf.float32)
    norms = norm_of_norms([tf.cast(each, tf.float32) for each in norms])
    norms = tf.where(tf.math.is_finite(size), norms, 1.0)
    return y_pred, scale * norms, weighted_sum


def _brought_to_1(upstream, loss_scale):
    """-> (upstream gradients, each example's divided by its size, sizes float32 `[batch]`).

    The size is the largest absolute entry without `loss_scale`. The squares of gradients of 1e30 or 1e-25 do
    not fit float32. A gradient that is not finite becomes 0, and its size is not finite, so that a
    weight of 0 leaves it out.
    """
    rows = [tf.reshape(tf.cast(t, tf.float32), [tf.shape(t)[0], math.prod(t.shape[1:])]) for t in upstream]
    largest = tf.reduce_max(tf.abs(tf.concat(rows, axis=1)), axis=1) / tf.cast(loss_scale, tf.float32)
    is_finite = tf.math.is_finite(largest)
    size = tf.where(largest == 0, 1.0, largest)

    def of_size_1(t):
        shape = [-1] + [1] * (len(t.shape) - 1)
        return tf.where(tf.reshape(is_finite, shape), t / tf.reshape(tf.cast(size, t.dtype), shape), 0)

    return [of_size_1(t) for t in upstream], size


class _Part:
    """The linear part z of a layer with inputs h, and after the backward pass its gradient d."""

    def __init__(self, layer, h, z):
        self.layer, self.h, self.z = layer, h, z
        self.d = self.contributions = None

    def passing_on(self):
        """z. Its backward pass computes the contributions before it returns d, so that d need not be kept."""

        @tf.custom_gradient
        def identity(z):
            return tf.identity(z), self._backward

        return identity(self.z)

    def contribute(self, d):
        precision = tf.float64 if self.layer.variable_dtype == "float64" else tf.float32
        h = tf.cast(self.h, precision) if self.h.dtype.is_floating else self.h
        self.d = tf.cast(d, precision)
        self.contributions = LAYER_TYPES[type(self.layer)].contributions(self.layer, h, self.d)

    def pairs(self):
        """Each weight with its `Contribution`, a list of pairs."""
        return list(zip(LAYER_TYPES[type(self.layer)].weights(self.layer), self.contributions))

    def _backward(self, d):
        self.contribute(d)
        with tf.control_dependencies([t for c in self.contributions for t in c.made]):
            return tf.identity(d)


def _forward(network, x, training, tape):
    """-> (predictions, a `_Part` for each layer in `LAYER_TYPES`); the tape watches every z.

    It runs the graph as Keras does, except that it splits those layers. The layers do not change: two
    replicas may trace them at the same time and alternate wherever a seed is assigned.
    """
    passed = []

    def taken_apart(layer, inputs):
        layer._assert_input_compatibility(inputs)
        kind = LAYER_TYPES[type(layer)]
        made = []
        h = kind.inputs(layer, inputs, lambda: made[0].contributions)
        weights = [keras.ops.cast(weight, layer.compute_dtype) for weight in kind.weights(layer)]
        z = kind.linear(layer, h, *weights)
        tape.watch(z)
        made.append(_Part(layer, h, z))
        passed.extend(made)
        return kind.activation(layer, made[0].passing_on())

    def called(operation):
        if type(operation) in LAYER_TYPES:
            return lambda inputs, **_: taken_apart(operation, inputs)
        return functional.operation_fn(operation, training=training)

    graph = _graph(network)
    network._assert_input_compatibility(x)
    y_pred = graph._run_through_graph(graph._standardize_inputs(x), called)
    return keras.tree.flatten(y_pred)[0], passed


def _graph(network):
    if type(network) is keras.Sequential:
        return network._functional
    return network if type(network) is functional.Functional else None


def _is_known(node):
    operation, kind = node.operation, type(node.operation)
    accepts = LAYER_TYPES[kind].accepts if kind in LAYER_TYPES else _WEIGHTLESS.get(kind)
    return (
        accepts is not None
        and operation.activity_regularizer is None
        and "call" not in vars(operation)  # replaced by hand
        and all(len(t.shape) > 1 and t.shape[0] is None for t in node.outputs)
        and not any(t.sparse or t.ragged for t in node.outputs)
        and accepts(node)
        and (not hasattr(operation, "activation") or _has_known_activation(node))
    )


def _has_known_activation(node):
    return any(node.operation.activation is known for known in _ACTIVATIONS)


def _spares_the_batch(node):
    axes = keras.tree.flatten(node.operation.axis)
    return all(axis is not None and axis % len(t.shape) for axis in axes for t in node.input_tensors)


def _is_frozen(node):
    return not node.operation.trainable


def _spares_the_batch_of_its_noise(node):
    return (node.operation.noise_shape or (None,))[0] is None


_ACTIVATIONS = [
    member
    for name, member in inspect.getmembers(keras.activations, inspect.isfunction)
    if name not in ("get", "serialize", "deserialize")
]

# Layers without trained weights that treat each example separately, with a condition on their node.
_WEIGHTLESS = {
    **dict.fromkeys(
        [
            *(layers.InputLayer, layers.Identity, layers.Flatten, layers.Reshape, layers.Permute),
            *(layers.ReLU, layers.LeakyReLU, layers.ELU, layers.GaussianDropout, layers.GaussianNoise),
            *(layers.Add, layers.Subtract, layers.Multiply, layers.Average, layers.Maximum, layers.Minimum),
            *(layers.SpatialDropout1D, layers.SpatialDropout2D, layers.SpatialDropout3D, layers.RepeatVector),
            *(layers.MaxPooling1D, layers.MaxPooling2D, layers.MaxPooling3D),
            *(layers.AveragePooling1D, layers.AveragePooling2D, layers.AveragePooling3D),
            *(layers.GlobalMaxPooling1D, layers.GlobalMaxPooling2D, layers.GlobalMaxPooling3D),
            *(layers.GlobalAveragePooling1D, layers.GlobalAveragePooling2D, layers.GlobalAveragePooling3D),
            *(layers.ZeroPadding1D, layers.ZeroPadding2D, layers.ZeroPadding3D),
            *(layers.Cropping1D, layers.Cropping2D, layers.Cropping3D),
            *(layers.UpSampling1D, layers.UpSampling2D, layers.UpSampling3D),
        ],
        lambda node: True,
    ),
    layers.Activation: _has_known_activation,
    layers.BatchNormalization: _is_frozen,
    layers.Concatenate: _spares_the_batch,
    layers.Softmax: _spares_the_batch,
    layers.Dropout: _spares_the_batch_of_its_noise,
    layers.Rescaling: lambda node: np.ndim(node.operation.scale) == 0 == np.ndim(node.operation.offset),
}
