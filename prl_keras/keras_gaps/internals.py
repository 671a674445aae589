"""Accessors for Keras's private attributes, as in Keras 3.15, for values without a public name.

`models/weighted_model.py` has the private methods that a model must override, and
`scores/layerwise/graph.py` those of Keras's graph of layers.
"""

from typing import Any


def layers_of(network: Any) -> list[Any]:
    """All the layers of a model, including nested ones and the model itself."""
    return list(network._flatten_layers())


def seed_generators(network: Any) -> list[Any]:
    """The seed generators of all the layers (dropout and the like)."""
    return [generator for layer in layers_of(network) for generator in layer._seed_generators]


def moving_variables(network: Any) -> list[Any]:
    """The variables that a forward pass changes, except seeds: moving means, for example.

    The weights of frozen layers are not among them.
    """
    return [variable for layer in layers_of(network) for variable in layer._non_trainable_variables]


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


def compile_config(model: Any) -> Any:
    """The arguments of `compile`; a new object after each call."""
    return model._compile_config


def metrics_of_outputs(model: Any) -> list[Any]:
    """The metrics in which Keras logs the loss of each of several outputs."""
    return model._compile_loss.metrics
