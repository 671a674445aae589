"""The named scores, and scores that a user defines."""

import functools
import typing
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from prl_keras.inputs import loss_kinds
from prl_keras.inputs.shapes import check_one_value_per_example
from prl_keras.scores.geometric_median import distance_to_median
from prl_keras.scores.gradient import gradient_norms
from prl_keras.scores.loss import loss_of_targets, per_example_loss, targets_of
from prl_keras.scores.loss_layer import loss_layer_gradient_norm, loss_layer_score
from prl_keras.scores.sever import sever


class Score(typing.NamedTuple):
    """A score as the training step uses it.

    Attributes:
        function: Function of `(y_true, y_pred, loss, sample_weight)` that returns float32 `[batch]`; None for
            `score=None`, and if the score needs the network. `sample_weight` is the user's weights or None;
            only whether a weight is 0 may matter (`scores.loss`).
        needs_network: True for the gradient norm over the network's weights (`scores.gradient`), which cannot
            be computed from predictions.
        norm: The score of the unscaled gradients, for a rule that uses the scores' values (`rule.ranks` is
            not True), such as `ClipNorm`; None if it equals `function`.
        is_of_gradient: Whether it compares gradients: many scores are equal if the loss has a flat gradient.
    """

    function: Callable[..., tf.Tensor] | None
    needs_network: bool = False
    norm: Callable[..., tf.Tensor] | None = None
    is_of_gradient: bool = False


def gradient_norm(
    x: Any,
    y_true: Any,
    network: keras.Model,
    loss: Any,
    microbatch_size: int | None = None,
    training: bool = True,
    sample_weight: Any = None,
) -> tf.Tensor:
    """The L2 norm of the gradient of each example's loss over all trainable weights (algorithm 2).

    Args:
        x: Inputs `[batch, ...]`, or a structure of them.
        y_true: Targets `[batch, ...]`, or a structure of them.
        network: A Keras model whose layers treat each example separately.
        loss: As in `per_example_loss`. Regularizers are not part of it.
        microbatch_size: The largest number of per-example gradients in memory at a time; None for the
            whole batch. It does not change the result.
        training: Whether the network is called in training mode.
        sample_weight: As in `per_example_loss`.

    Returns:
        float32 `[batch]`.

    Raises:
        BatchMixingError: for trainable batch normalization, if `training`. Other layers that mix examples
            are not detected.
    """
    losses_of = functools.partial(loss_of_targets, lambda y_pred: loss)
    targets = targets_of(y_true, sample_weight)
    by_example = loss_kinds.is_by_example(loss)
    return gradient_norms(losses_of, network, x, targets, microbatch_size, training, by_example=by_example)


def resolve(score: Any) -> Score:
    """The `Score` for a name or a callable.

    Args:
        score: A name in `SCORES`, None (every example counts), a `keras.losses.Loss`, or a function of
            `(y_true, y_pred)` that returns `[batch]`.

    Raises:
        ValueError: for an unknown name, or a rule.
    """
    if score is None:
        return Score(None)
    if isinstance(score, str) and score in SCORES:
        return SCORES[score]
    if isinstance(score, keras.losses.Loss) or callable(score):
        return Score(functools.partial(_own_score, score))
    raise ValueError(
        f"score={score!r} is not known. Write one of {', '.join(map(repr, SCORES))}, None (every "
        "example counts), or a function of (y_true, y_pred) that gives one value per example."
    )


def _loss(y_true, y_pred, loss, sample_weight=None):
    return tf.stop_gradient(per_example_loss(y_true, y_pred, loss, sample_weight))


def _own_score(score, y_true, y_pred, loss, sample_weight=None):
    """A user's score. A function gets all outputs at once, a `keras.losses.Loss` one at a time."""
    if keras.tree.is_nested(y_pred) and not isinstance(score, keras.losses.Loss):
        values = tf.cast(score(y_true, y_pred), tf.float32)
        check_one_value_per_example(values, keras.tree.flatten(y_pred)[0], score)
    else:
        values = per_example_loss(y_true, y_pred, score, sample_weight)
    return tf.stop_gradient(values)


SCORES = {
    "loss": Score(_loss),
    "loss_layer_gradient": Score(loss_layer_score, norm=loss_layer_gradient_norm, is_of_gradient=True),
    "gradient": Score(None, needs_network=True, is_of_gradient=True),
    "sever": Score(sever, is_of_gradient=True),
    "distance_to_median": Score(
        functools.partial(distance_to_median, is_rescaled=True), norm=distance_to_median, is_of_gradient=True
    ),
}
