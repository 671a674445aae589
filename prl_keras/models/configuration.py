"""Checks of how a model is built and compiled. Each check rejects a model that could not train."""

import inspect
import typing
import warnings
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from prl_keras.inputs.shapes import show
from prl_keras.inputs.tensors import NeedsRows
from prl_keras.models.elements import UNITS
from prl_keras.scores.batch_mixing import check_no_batch_mixing, check_no_state_of_rows
from prl_keras.scores.names import resolve
from prl_keras.validate import check_bool, is_number


def check_configuration(
    networks: Sequence[keras.Model],
    score: typing.Any,
    rule: typing.Any,
    recompute: bool,
    microbatch_size: int | None,
    unit: str,
    consistency: typing.Any,
) -> None:
    """Rejects invalid constructor arguments, those of `RobustModel` (ValueError, BatchMixingError)."""
    for network in networks:
        if not isinstance(network, keras.Model):
            raise ValueError(f"{network!r} is not a keras.Model; pass the network to train.")
    if _is_rule(score):
        raise ValueError(f"score={score!r} is a rule, not a score; write rule={score!r}.")
    needs_network = resolve(score).needs_network
    if score is not None and (not callable(rule) or isinstance(rule, type)):
        raise ValueError(
            f"rule={rule!r} must be a rule such as prl_keras.Trim(0.3), or a function of "
            "(scores, is_ranked, step) that gives one weight per example."
        )
    if unit not in UNITS:
        raise ValueError(f"unit={unit!r} is not known; write {' or '.join(map(repr, UNITS))}.")
    if unit == "element" and needs_network:
        raise ValueError(
            "unit='element' with score='gradient' would take each element's gradient over all the weights. "
            "Write score='loss_layer_gradient' or 'loss'."
        )
    if unit == "element" and recompute:
        raise ValueError(
            "recompute=True trains on the kept examples alone, and with unit='element' nearly every example "
            "keeps some elements. Leave recompute=False."
        )
    check_bool("recompute", recompute)
    if microbatch_size is not None and not (
        is_number(microbatch_size) and microbatch_size >= 1 and microbatch_size % 1 == 0
    ):
        raise ValueError(f"microbatch_size={microbatch_size!r} must be a whole number >= 1, or None.")
    _check_consistency(networks, consistency)
    for network in networks:
        if needs_network or recompute:
            check_no_state_of_rows(network, "recompute=True" if recompute else "score='gradient'")
        if needs_network:
            check_no_batch_mixing(network)


def _check_consistency(networks, consistency):
    reference = getattr(consistency, "reference", None)
    if consistency is not None and (isinstance(consistency, type) or reference not in ("peer", "teacher")):
        raise ValueError(
            f"consistency={consistency!r} must be prl_keras.EarlyLearning() or prl_keras.Agreement(), an "
            "object like them (prl_keras.models.consistency), or None."
        )
    if reference == "peer" and len(networks) < 2:
        raise ValueError(
            f"consistency={consistency!r} compares the two networks of a pair, and this model has one. Write "
            "CoTeachingModel, or consistency=prl_keras.EarlyLearning()."
        )


def needs_rows(model: keras.Model) -> NeedsRows | None:
    """What of a `WeightedModel` needs each row of every input to be an example, or None."""
    if resolve(model.score).needs_network:
        return NeedsRows("score='gradient' takes each example by itself", "Take another score.")
    if model.recompute:
        return NeedsRows("recompute=True trains on the kept examples alone", "Leave recompute=False.")
    return None


def check_jit_compile(model: keras.Model) -> None:
    """Rejects `jit_compile=True` for several replicas, and if the kept count is known only in the step."""
    if model.distribute_strategy.num_replicas_in_sync > 1:
        raise ValueError(
            "jit_compile=True does not go with several replicas: their shares of a batch differ in size, "
            "and XLA needs static shapes. Leave jit_compile='auto'."
        )
    if not can_be_compiled_by_xla(model):
        raise ValueError(
            f"jit_compile=True does not go with recompute=True and rule={model.rule!r}: XLA needs static "
            "shapes, and the number of kept examples is known only in the step. Leave jit_compile='auto', "
            "write recompute=False, or take a rule that keeps a fixed number, such as Trim(0.3) without a "
            "schedule."
        )


def can_be_compiled_by_xla(model: keras.Model) -> bool:
    """Whether XLA can compile the step: it needs a fixed number of kept examples if `recompute` is set."""
    is_static = model.score is not None and most_kept(model.rule, 2) is not None
    return not model.recompute or is_static


def most_kept(rule: typing.Any, count: int | tf.Tensor) -> tf.Tensor | None:
    """The most of `count` examples that a rule keeps, an int32 scalar; None if the rule does not say."""
    ask = getattr(rule, "most_kept", None)
    return None if ask is None else ask(count)


def check_trainable(model: keras.Model) -> None:
    """Rejects a network without trainable weights."""
    for network in model.networks:
        if not network.trainable_weights:
            raise ValueError(
                f"The network {network.name!r} has no trainable weights. Set network.trainable = True "
                "(and compile again), or use evaluate."
            )


def check_rule_gave_one_weight_each(rule: typing.Any, weights: tf.Tensor) -> None:
    """Rejects a rule whose result is not a vector over the batch."""
    if len(weights.shape) != 1:
        raise ValueError(
            f"The rule {rule!r} must give one weight per example, shape (batch,), but gave shape "
            f"{show(tuple(weights.shape))}."
        )


def check_compiled(model: keras.Model) -> None:
    """Rejects a model that was not compiled with a loss."""
    if not model.compiled or getattr(model, "loss", None) is None:
        raise ValueError(
            f"{type(model).__name__} ranks examples by their loss and was compiled without one. Write "
            "model.compile(optimizer='adam', loss=...) with a Keras loss before training."
        )
    keras.tree.map_structure(keras.losses.get, model.loss)


def check_pair(network_a: keras.Model, network_b: keras.Model) -> None:
    """Rejects the same network twice, shared variables and different output shapes.

    Warns if the two networks have the same initial weights.
    """
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


def check_same_shapes(*predictions: typing.Any) -> None:
    """Rejects a pair of networks whose predictions on a batch differ in shape."""
    _check_equal_shapes(
        *(keras.tree.map_structure(lambda t: tuple(t.shape), y_pred) for y_pred in predictions)
    )


def _check_equal_shapes(a, b):
    if a != b:
        raise ValueError(
            f"The two networks have different output shapes, {a} and {b}; they must predict the same thing."
        )


def check_scope(model: keras.Model) -> None:
    """Rejects networks and optimizers of different `tf.distribute` strategies."""
    values = [variable.value for network in model.networks for variable in network.variables]
    of_optimizer = [variable.value for variable in model.optimizer.variables]
    values += [value for value in of_optimizer if isinstance(value, tf.distribute.DistributedValues)]
    if not all(map(model.distribute_strategy.extended.variable_created_in_scope, values)):
        raise ValueError(
            "The networks, the model and its optimizer were not made in the scope of one tf.distribute "
            "strategy. Make all of them, and compile, within `with strategy.scope():`."
        )


def _is_rule(score):
    """Whether this is a callable with the signature of a rule."""
    try:
        return callable(score) and "is_ranked" in inspect.signature(score).parameters
    except (TypeError, ValueError):
        return False
