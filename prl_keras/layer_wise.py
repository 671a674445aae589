"""Per-example gradient norms of fully connected networks, from one ordinary forward and backward pass.

A layer `z = h W + b` with inputs h `[n, p]` and `d_i = d loss_i / d z_i`, d `[n, q]`, has for example i
the gradients `h_i d_i^T` and `d_i`. Neither norms nor weighted sums need them one by one:

    ||d loss_i / d W|| = ||h_i|| ||d_i||        sum_i w_i d loss_i / d W = h^T diag(w) d
    ||d loss_i / d b|| = ||d_i||                sum_i w_i d loss_i / d b = d^T w

(Goodfellow, "Efficient Per-Example Gradient Computations", 2015, arXiv:1510.01799). It takes the time
and the memory of a plain step; the gradients of all the examples take n times those of the weights.
"""

import inspect
import typing

import keras
import numpy as np
import tensorflow as tf
from keras import layers
from keras.src.models import functional  # keras.Model(inputs, outputs) makes a functional.Functional


def applies(network):
    """Whether the graph of `network` proves that the formulas give all of its gradients.

    It must be a Sequential or Functional model (not a subclass) of one output, whose every operation is
    in `_WEIGHTED` (used once, with weights of its own) or in `_WEIGHTLESS`. Subclassed layers, nested
    models, `keras.ops` on symbolic tensors, activity regularizers and activations from outside
    `keras.activations` are not looked into: False.
    """
    graph = _graph(network)
    if graph is None or len(graph.outputs) != 1 or isinstance(graph.output, dict) or "call" in vars(network):
        return False
    nodes = [node for depth in graph._nodes_by_depth.values() for node in depth]
    if not all(_is_known(node) for node in nodes):
        return False
    used = [id(w) for node in nodes for w in node.operation.weights]  # twice if the layer is used twice
    trained = {id(w) for w in network.trainable_weights}
    return len(set(used)) == len(used) and bool(trained) and trained <= set(used)


def gradients(output_gradients, network, x, training, loss_scale):
    """The norms of all the examples' gradients, and their weighted sum for any weights.

    Args:
        output_gradients: Function of the predictions `[batch, ...]` that gives `(tensors, gradients)`:
            what the losses depend on (the predictions, and their logits where Keras keeps them), and
            the gradient of each example's loss times `loss_scale` with respect to them, `[batch, ...]`.
        network: A Keras model that `applies` is true of.
        x: Inputs `[batch, ...]`, or a structure of them.
        training: Whether the network is called in training mode.
        loss_scale: Factor on each loss.

    Returns:
        `(y_pred, norms, weighted_sum)`: the predictions; float32 `[batch]`, L2 norms over all trainable
        weights, without `loss_scale`; a function of weights `[batch]` that gives
        `sum_i weights_i * gradient_i`, with `loss_scale`, for every trainable weight.
    """
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        y_pred, passed = _forward(network, x, training, tape)
    outputs, upstream = output_gradients(y_pred)
    linear = [z for _, _, z in passed]
    deltas = tape.gradient(outputs, linear, upstream, unconnected_gradients=tf.UnconnectedGradients.ZERO)
    passed = [(layer, h, d) for (layer, h, _), d in zip(passed, deltas)]

    trained = {id(weight) for weight in network.trainable_weights}
    norms = []
    for layer, h, d in passed:
        h, d = tf.cast(h, tf.float32), tf.cast(d, tf.float32) / loss_scale
        each = zip(_weights(layer), _WEIGHTED[type(layer)].norms(h, d))
        norms.extend(norm for weight, norm in each if id(weight) in trained)

    def weighted_sum(weights):
        sums = {}
        for layer, h, d in passed:
            # In the weights' own precision: float16 would round every product.
            h, d, w = (tf.cast(t, layer.variable_dtype) for t in (h, d, weights))
            each = zip(_weights(layer), _WEIGHTED[type(layer)].weighted_sums(h, d, w))
            sums.update((id(weight), total) for weight, total in each)
        return [sums[id(weight)] for weight in network.trainable_weights]

    return y_pred, _norm(tf.stack(norms, axis=1)), weighted_sum


def _forward(network, x, training, tape):
    """-> (predictions, (layer, inputs h, linear part z) of each layer in `_WEIGHTED`), every z watched.

    Keras's own walk through the graph, but that those layers are taken apart. The layers stay as they
    are: two replicas may trace them at the same time, taking turns wherever a seed is assigned.
    """
    passed = []

    def taken_apart(layer, h):
        layer._assert_input_compatibility(h)
        h = tf.cast(h, layer.compute_dtype)
        z = _WEIGHTED[type(layer)].linear(h, *(keras.ops.cast(w, h.dtype) for w in _weights(layer)))
        tape.watch(z)
        passed.append((layer, h, z))
        return layer.activation(z)

    def called(operation):
        if type(operation) in _WEIGHTED:
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


def _weights(layer):
    return [layer.kernel, layer.bias] if layer.use_bias else [layer.kernel]


def _norm(t):
    """L2 norms of the rows, scaled by their largest entries: targets of 1e30 have squares beyond float32."""
    largest = tf.reduce_max(tf.abs(t), axis=1, keepdims=True)
    scale = tf.where(largest > 0, largest, 1.0)
    return scale[:, 0] * tf.norm(t / scale, axis=1)


def _is_known(node):
    operation, kind = node.operation, type(node.operation)
    accepts = _WEIGHTED[kind].accepts if kind in _WEIGHTED else _WEIGHTLESS.get(kind)
    return (
        accepts is not None
        and operation.activity_regularizer is None
        and "call" not in vars(operation)  # replaced by hand
        and all(len(t.shape) > 1 and t.shape[0] is None for t in node.outputs)
        and not any(t.sparse or t.ragged for t in node.outputs)
        and accepts(node)
    )


def _has_known_activation(node):
    return any(node.operation.activation is known for known in _ACTIVATIONS)


def _spares_the_batch(node):
    axes = keras.tree.flatten(node.operation.axis)
    return all(axis is not None and axis % len(t.shape) for axis in axes for t in node.input_tensors)


def _accepts_dense(node):
    layer = node.operation
    plain = layer.quantization_mode is None and not layer.lora_enabled and layer.autocast
    return plain and len(node.input_tensors[0].shape) == 2 and _has_known_activation(node)


class _Rule(typing.NamedTuple):
    """A layer type with weights: `accepts(node)`, `linear(h, *weights)` and, for each of its weights,
    `norms(h, d)`, float32 `[batch]`, and `weighted_sums(h, d, w)`."""

    accepts: typing.Callable
    linear: typing.Callable
    norms: typing.Callable
    weighted_sums: typing.Callable


_WEIGHTED = {
    layers.Dense: _Rule(
        _accepts_dense,
        lambda h, kernel, bias=0: tf.matmul(h, kernel) + bias,
        lambda h, d: [tf.norm(h, axis=1) * _norm(d), _norm(d)],
        lambda h, d, w: [tf.matmul(h, w[:, None] * d, transpose_a=True), tf.tensordot(w, d, 1)],
    ),
}

_ACTIVATIONS = [
    member
    for name, member in inspect.getmembers(keras.activations, inspect.isfunction)
    if name not in ("get", "serialize", "deserialize")
]

# Layers that have no weights and treat each example by itself, and on what condition on their node.
_WEIGHTLESS = {
    **dict.fromkeys(
        [
            *(layers.InputLayer, layers.Identity, layers.Flatten, layers.Reshape, layers.Permute),
            *(layers.ReLU, layers.LeakyReLU, layers.ELU, layers.GaussianDropout, layers.GaussianNoise),
            *(layers.Add, layers.Subtract, layers.Multiply, layers.Average, layers.Maximum, layers.Minimum),
        ],
        lambda node: True,
    ),
    layers.Activation: _has_known_activation,
    layers.Concatenate: _spares_the_batch,
    layers.Softmax: _spares_the_batch,
    layers.Dropout: lambda node: (node.operation.noise_shape or (None,))[0] is None,
    layers.Rescaling: lambda node: np.ndim(node.operation.scale) == 0 == np.ndim(node.operation.offset),
}
