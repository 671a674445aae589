"""Bad input, refused before it can train a wrong model: what was given, what is needed, what to write."""

import warnings

import keras
import numpy as np
import tensorflow as tf

from prl_keras import loss_kinds


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
        for layer in network._flatten_layers()
        if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable
    ]
    if mixing:
        raise BatchMixingError(
            "score='gradient' needs the gradient of each example by itself, but batch normalization "
            f"makes an example's output depend on the whole batch. Layers: {', '.join(mixing)}. "
            "Replace them by keras.layers.GroupNormalization, freeze them (layer.trainable = False), "
            "or use score='loss_layer_gradient', which allows batch normalization."
        )


def check_shapes(y_true, y_pred, loss):
    """Refuses targets that a loss would broadcast against the predictions.

    Raises:
        ValueError: with both shapes and the fix.
    """
    if keras.tree.is_nested(y_pred) or keras.tree.is_nested(y_true):
        raise ValueError(
            f"Targets came as {type(y_true).__name__} for predictions as {type(y_pred).__name__}. Give the "
            "targets of a network with one output as one array."
        )
    true_shape, pred_shape = tuple(np.shape(y_true)), tuple(y_pred.shape)
    if len(true_shape) == 1 and len(pred_shape) == 2 and pred_shape[1] == 1:
        raise ValueError(
            f"Targets of shape {_show(true_shape)} against predictions of shape {_show(pred_shape)}: "
            "subtracting them would broadcast to a square matrix. Write y[:, None] so that the targets "
            "have the shape of the predictions."
        )
    if loss_kinds.is_sparse(loss):
        fits = len(true_shape) == len(pred_shape) - 1 or true_shape[-1:] == (1,)
        need = "one integer label per prediction, shape " + _show(pred_shape[:-1])
    elif getattr(loss, "__module__", "").startswith("keras."):
        fits = len(true_shape) == len(pred_shape) and all(
            None in (true, pred) or true == pred for true, pred in zip(true_shape[1:], pred_shape[1:])
        )
        need = "targets of shape " + _show(pred_shape)
    else:
        return
    if not fits:
        raise ValueError(
            f"Targets of shape {_show(true_shape)} against predictions of shape {_show(pred_shape)}: "
            f"the loss {loss_kinds.name_of(loss)} needs {need}. Integer class labels go with "
            "SparseCategoricalCrossentropy, one-hot ones with CategoricalCrossentropy."
        )


def check_one_value_per_example(values, y_pred, loss):
    """Refuses a loss that is already reduced: a scalar cannot rank examples."""
    batch = y_pred.shape[0]
    if len(values.shape) == 0 or (None not in (batch, values.shape[0]) and values.shape[0] != batch):
        raise ValueError(
            f"The loss {loss_kinds.name_of(loss)} must give one value per example, shape "
            f"({_show_size(batch)},), but gave shape {_show(tuple(values.shape))}. Reduce over the last axis "
            "only, for example ops.mean(..., axis=-1), and leave the mean over the batch to Keras."
        )


def check_trainable(model):
    """Refuses a step that has nothing to train."""
    for network in model.networks:
        if not network.trainable_weights:
            raise ValueError(
                f"The network {network.name!r} has no trainable weights. Set network.trainable = True "
                "(and compile again), or use evaluate."
            )


def check_rule_gave_one_weight_each(rule, weights):
    """Refuses a rule whose result is not a vector over the batch."""
    if len(weights.shape) != 1:
        raise ValueError(
            f"The rule {rule!r} must give one weight per example, shape (batch,), but gave shape "
            f"{_show(tuple(weights.shape))}."
        )


def check_compiled(model):
    """Refuses a model that was not compiled with a loss."""
    if not model.compiled or getattr(model, "loss", None) is None:
        raise ValueError(
            f"{type(model).__name__} ranks examples by their loss and was compiled without one. Write "
            "model.compile(optimizer='adam', loss=...) with a Keras loss before training."
        )
    keras.tree.map_structure(keras.losses.get, model.loss)


def check_weight_shape(weight_shape, loss_shape):
    """Refuses a user's weights that Keras would broadcast against the losses `[batch, ...]`."""
    padded = (*loss_shape, *[1] * (len(weight_shape) - len(loss_shape)))
    if not all(size in (None, 1, have) or have is None for size, have in zip(weight_shape, padded)):
        raise ValueError(
            f"sample_weight of shape {_show(weight_shape)} does not go with losses of shape "
            f"{_show(loss_shape)}: give one weight for each example, or one for each of its losses."
        )


def check_no_masks(predictions):
    """Refuses masks of several outputs, which Keras would divide each by its own number of values."""
    if any(getattr(y_pred, "_keras_mask", None) is not None for y_pred in predictions):
        raise ValueError(
            "With several outputs, of which one is masked, neither recompute=True nor several replicas give "
            "the step of one device. Leave recompute=False and one replica, or give weights for each step."
        )


def check_pair(network_a, network_b):
    """Refuses two networks that are not two, or cannot be compared."""
    if network_a is network_b:
        raise ValueError(
            "network_a and network_b are the same object; co-teaching needs two networks that differ "
            "in their initial weights. Build the network twice."
        )
    shared = {id(v) for v in network_a.variables} & {id(v) for v in network_b.variables}
    if shared:
        raise ValueError(
            f"network_a and network_b share {len(shared)} variables; build each from layers of its own."
        )
    weights = list(zip(network_a.trainable_weights, network_b.trainable_weights))
    if weights and all(a.shape == b.shape and np.array_equal(a, b) for a, b in weights):
        warnings.warn(
            "network_a and network_b have the same initial weights: without dropout they will stay the "
            "same and choose the same examples. Give their initializers different seeds.",
            stacklevel=4,
        )
    if network_a.built and network_b.built:
        _check_equal_shapes(*(getattr(network, "output_shape", None) for network in (network_a, network_b)))


def check_same_shapes(*predictions):
    """Refuses a pair that predicts different things, as seen from its first batch."""
    _check_equal_shapes(
        *(keras.tree.map_structure(lambda t: tuple(t.shape), y_pred) for y_pred in predictions)
    )


def _check_equal_shapes(a, b):
    if a != b:
        raise ValueError(
            f"The two networks have different output shapes, {a} and {b}; they must predict the same thing."
        )


def check_classification(loss, what):
    """Refuses a regression loss for something that compares predicted classes."""
    if loss_kinds.is_regression(loss):
        raise ValueError(
            f"{what} compares predicted classes, and the loss {loss_kinds.name_of(loss)} is one for "
            "regression. For regression use PRL(L): score='loss_layer_gradient' with Trim."
        )


def check_scope(model):
    """Refuses networks and optimizers of different `tf.distribute` strategies.

    Raises:
        ValueError: that says what to make where.
    """
    values = [variable.value for network in model.networks for variable in network.variables]
    of_optimizer = [variable.value for variable in model.optimizer.variables]
    values += [value for value in of_optimizer if isinstance(value, tf.distribute.DistributedValues)]
    if not all(map(model.distribute_strategy.extended.variable_created_in_scope, values)):
        raise ValueError(
            "The networks, the model and its optimizer were not made in the scope of one tf.distribute "
            "strategy. Make all of them, and compile, within `with strategy.scope():`."
        )


def _show(shape):
    return "(" + ", ".join(map(_show_size, shape)) + ("," if len(shape) == 1 else "") + ")"


def _show_size(size):
    return "batch" if size is None else str(size)
