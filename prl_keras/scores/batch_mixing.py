"""Batch normalization, which makes PRL(G) undefined. Other layers that mix examples are not detected."""

import keras

from prl_keras.keras_gaps.internals import layers_of


class BatchMixingError(ValueError):
    """A layer mixes the examples of a batch, so an example has no gradient of its own."""


def check_no_batch_mixing(network: keras.Model) -> None:
    """Rejects batch normalization in training mode, which makes PRL(G) undefined.

    A frozen layer (`layer.trainable = False`) uses its moving statistics and mixes nothing.

    Raises:
        BatchMixingError: names the layers and the alternatives.
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
