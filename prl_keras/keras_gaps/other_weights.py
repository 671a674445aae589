"""Calls a network with other weights than its own.

Keras's `stateless_call` passes `training` to networks that do not take it, and both it and a call in a
`StatelessScope` clear the losses that the layers added in the call before.
"""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from prl_keras.keras_gaps.internals import layers_of


def call_with(network: keras.Model, weights: Sequence[tf.Tensor], x: Any, training: bool) -> Any:
    """A built network's predictions on `x` with other `trainable_weights`.

    Its variables and the losses of its layers do not change.

    Raises:
        ValueError: for a layer whose `call` is a `tf.function`, whose trace would use other weights.
    """
    layers = layers_of(network)
    for layer in layers:
        if hasattr(layer.call, "get_concrete_function"):
            raise ValueError(
                f"The call of layer {layer.name!r} is a tf.function, which uses the weights it was traced "
                "with and not their averages. Remove the decorator; the whole step is compiled anyway."
            )
    losses = [(layer, list(layer._losses)) for layer in layers]
    with keras.StatelessScope(state_mapping=zip(network.trainable_weights, weights)):
        predictions = network(x, training=training)
    for layer, added in losses:
        layer._losses[:] = added
    return predictions
