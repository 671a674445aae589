"""Accessors for Keras's private attributes, as in Keras 3.15, for values without a public name.

`models/weighted_model.py` has the private methods that a model must override, and
`scores/layerwise/graph.py` those of Keras's graph of layers.
"""

from collections.abc import Iterator
from typing import Any

import keras
from keras.src.export import export_utils
from keras.src.losses.losses import LossFunctionWrapper  # what Keras makes of a function


def layers_of(network: Any) -> list[Any]:
    """All the layers of a model, including nested ones and the model itself."""
    return list(network._flatten_layers())


def seed_generators(network: Any) -> list[Any]:
    """The seed generators of all the layers (dropout and the like)."""
    return [generator for layer in layers_of(network) for generator in layer._seed_generators]


def operations_of(graph: Any) -> Iterator[Any]:
    """All the operations of a `tf.Graph`, also those in the `tf.function`s that it calls."""
    for operation in graph.get_operations():
        yield operation
        if operation.type in ("PartitionedCall", "StatefulPartitionedCall"):
            yield from operations_of(graph._get_function(operation.get_attr("f").name).graph)


def moving_variables(network: Any) -> list[Any]:
    """The variables that a forward pass changes, except seeds: moving means, for example.

    The weights of frozen layers are not among them.
    """
    return [variable for layer in layers_of(network) for variable in layer._non_trainable_variables]


def changed_variables(network: Any) -> list[Any]:
    """`moving_variables`, `assigned_weights`, and those of the metrics that a layer updates in its call."""
    metrics = [metric for layer in layers_of(network) for metric in layer._metrics]
    of_metrics = [variable for metric in metrics for variable in metric.variables]
    return [*moving_variables(network), *assigned_weights(network), *of_metrics]


def assigned_weights(network: Any) -> list[Any]:
    """The trainable weights that a forward pass assigns: the kernels that a layer normalizes in its call."""
    kind = keras.layers.SpectralNormalization
    return [layer.kernel for layer in layers_of(network) if isinstance(layer, kind) and layer.built]


def input_signature(network: Any) -> Any:
    """The inputs that `export` gives a network.

    Raises:
        ValueError: Keras's, for a network that was never built or called.
    """
    return export_utils.get_input_signature(network)


def hidden_logits(y_pred: Any) -> Any:
    """The logits behind probabilities of `keras.activations.softmax` or `sigmoid`, or None."""
    return getattr(y_pred, "_keras_logits", None)


def set_hidden_logits(y_pred: Any, logits: Any) -> None:
    """Attaches logits to probabilities, so that Keras computes its cross-entropies from them."""
    y_pred._keras_logits = logits


def mask_of(tensor: Any) -> Any:
    """The mask that Keras's losses use for predictions, bool `[batch, steps]`, or None."""
    return getattr(tensor, "_keras_mask", None)


def set_mask(tensor: Any, mask: Any) -> None:
    """Attaches a mask for Keras's losses to predictions."""
    tensor._keras_mask = mask


def expand_last(y_pred: Any) -> Any:
    """The predictions with a new last axis of size 1, with their hidden logits and mask."""
    tensor = keras.ops.expand_dims(y_pred, -1)
    if hidden_logits(y_pred) is not None:
        set_hidden_logits(tensor, keras.ops.expand_dims(hidden_logits(y_pred), -1))
    if mask_of(y_pred) is not None:
        set_mask(tensor, mask_of(y_pred))
    return tensor


def compile_config(model: Any) -> Any:
    """The arguments of `compile`; a new object after each call."""
    return model._compile_config


def metrics_of_outputs(model: Any) -> list[Any]:
    """The metrics in which Keras logs the loss of each of several outputs."""
    return model._compile_loss.metrics


def as_loss(loss: Any) -> keras.losses.Loss:
    """A loss as Keras computes it: a function becomes a loss that brings its arguments to one rank."""
    return loss if isinstance(loss, keras.losses.Loss) else LossFunctionWrapper(loss)


def aligns(loss: Any) -> bool:
    """Whether Keras brings targets and predictions to one rank: for all but own subclasses of `Loss`."""
    return isinstance(as_loss(loss), LossFunctionWrapper)
