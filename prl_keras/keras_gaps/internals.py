"""Accessors for Keras's private attributes, as they are in Keras 3.15; each says what has no public name.

The private methods that a model must override are in `models/weighted_model.py`, those of Keras's graph of
layers in `scores/layerwise/graph.py`.
"""


def layers_of(network):
    """All the layers of a model, those inside of others and the model itself included; a list."""
    return list(network._flatten_layers())


def seed_generators(network):
    """The seed generators of all the layers (dropout and the like), a list."""
    return [generator for layer in layers_of(network) for generator in layer._seed_generators]


def moving_variables(network):
    """The variables that a forward pass moves and that are no seeds, such as moving means; a list.

    The weights of frozen layers are not among them.
    """
    return [variable for layer in layers_of(network) for variable in layer._non_trainable_variables]


def hidden_logits(y_pred):
    """The logits behind probabilities of `keras.activations.softmax` or `sigmoid`, or None."""
    return getattr(y_pred, "_keras_logits", None)


def set_hidden_logits(y_pred, logits):
    """Marks probabilities with their logits, so that Keras's cross-entropies are computed from these."""
    y_pred._keras_logits = logits


def mask_of(tensor):
    """The mask that Keras's losses use for predictions, bool `[batch, steps]`, or None."""
    return getattr(tensor, "_keras_mask", None)


def set_mask(tensor, mask):
    """Gives predictions a mask for Keras's losses."""
    tensor._keras_mask = mask


def compile_config(model):
    """What `compile` was called with: another object after each call."""
    return model._compile_config


def metrics_of_outputs(model):
    """The metrics in which Keras logs the loss of each of several outputs, a list."""
    return model._compile_loss.metrics
