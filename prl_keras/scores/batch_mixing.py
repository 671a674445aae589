"""Batch normalization, with which PRL(G) is undefined. Other layers that mix examples are not detected."""

import keras

from prl_keras.keras_gaps.internals import layers_of


class BatchMixingError(ValueError):
    """A layer mixes the examples of a batch, so that no example has a gradient of its own."""


def check_no_batch_mixing(network):
    """Refuses batch normalization in training mode: PRL(G) is undefined with it.

    A frozen one (`layer.trainable = False`) uses its moving statistics and mixes nothing.

    Raises:
        BatchMixingError: that names the layers and the way out.
    """
    mixing = [
        layer.name
        for layer in layers_of(network)
        if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable
    ]
    if mixing:
        raise BatchMixingError(
            "score='gradient' needs the gradient of each example by itself, but batch normalization "
            f"makes an example's output depend on the whole batch. Layers: {', '.join(mixing)}. "
            "Replace them by keras.layers.GroupNormalization, freeze them (layer.trainable = False), "
            "or use score='loss_layer_gradient', which allows batch normalization."
        )
