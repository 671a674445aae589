"""How a model is put together and compiled, refused where it could not train."""

import warnings

import keras
import numpy as np
import tensorflow as tf

from prl_keras.inputs.shapes import show


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
            f"{show(tuple(weights.shape))}."
        )


def check_compiled(model):
    """Refuses a model that was not compiled with a loss."""
    if not model.compiled or getattr(model, "loss", None) is None:
        raise ValueError(
            f"{type(model).__name__} ranks examples by their loss and was compiled without one. Write "
            "model.compile(optimizer='adam', loss=...) with a Keras loss before training."
        )
    keras.tree.map_structure(keras.losses.get, model.loss)


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
