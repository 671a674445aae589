"""Layers that make PRL(G) undefined: batch normalization, and recurrent layers with a state per batch row.

Other layers that mix examples are not detected.
"""

from typing import Any

import keras
import tensorflow as tf

from prl_keras.inputs.outputs import symbolic_inputs
from prl_keras.keras_gaps.internals import layers_of


class BatchMixingError(ValueError):
    """A layer mixes the examples of a batch, so an example has no gradient of its own."""


def check_no_batch_mixing(network: keras.Model, x: Any = None) -> None:
    """Rejects batch normalization that uses the batch's statistics, which makes PRL(G) undefined.

    A layer that is frozen (`layer.trainable = False`), or that a network's own `call` calls with
    `training=False`, uses its moving statistics and mixes nothing.

    Args:
        network: A Keras model. Without `x`, the check of a subclassed one waits for its first batch.
        x: Inputs `[batch, ...]`, or a structure of them; None for the network's symbolic inputs.

    Raises:
        BatchMixingError: names the layers and the alternatives.
    """
    kind = keras.layers.BatchNormalization
    trained = [layer for layer in layers_of(network) if isinstance(layer, kind) and layer.trainable]
    x = symbolic_inputs(network) if x is None else x
    if not trained or x is None:
        return
    mixing = [layer.name for layer in _moved(network, trained, x)]
    if mixing:
        raise BatchMixingError(
            "score='gradient' needs the gradient of each example by itself, but batch normalization "
            f"makes an example's output depend on the whole batch. Layers: {', '.join(mixing)}. "
            "Replace them by keras.layers.GroupNormalization, freeze them (layer.trainable = False; Keras's "
            "fit overrides a training=False in the call of a functional network), "
            "or use score='loss_layer_gradient', which allows batch normalization."
        )


def check_no_state_of_rows(network: keras.Model, what: str) -> None:
    """Rejects recurrent layers with `stateful=True` (ValueError): they keep a state for each row of a batch.

    `what` would call the network with other rows.
    """
    kind = keras.layers.RNN
    found = [layer.name for layer in layers_of(network) if isinstance(layer, kind) and layer.stateful]
    if found:
        raise ValueError(
            f"{what} calls the network with single rows of a batch, but a recurrent layer with stateful=True "
            f"keeps a state for every row. Layers: {', '.join(found)}. Make them with stateful=False, or use "
            "score='loss_layer_gradient' and recompute=False."
        )


def _moved(network, layers, x):
    """Those of the batch normalizations whose moving mean a forward pass in training mode changes."""
    scope = keras.StatelessScope()

    @tf.function(autograph=False)
    def run(x):
        with scope:
            network(x, training=True)

    run.get_concrete_function(keras.tree.map_structure(lambda t: tf.TensorSpec(t.shape, t.dtype), x))
    return [layer for layer in layers if scope.get_current_value(layer.moving_mean) is not None]
