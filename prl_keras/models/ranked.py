"""What is ranked in a network's pass: which predictions, by which losses and scores."""

import functools
import typing
from collections.abc import Callable

import keras
import tensorflow as tf

from prl_keras.inputs import class_labels, outputs
from prl_keras.inputs.rows import batch_size
from prl_keras.models.elements import check_one_output, flat_predictions
from prl_keras.scores.loss import loss_of_targets, root_of_counted
from prl_keras.scores.names import resolve


def ranked_predictions(model: keras.Model, y: typing.Any, predictions: typing.Any) -> typing.Any:
    """The predictions that are ranked: flat with `unit="element"`, else the network's own, as `[batch, 1]`
    for `[batch]`.

    Raises:
        ValueError: for elements of several outputs.
    """
    loss = outputs.loss_of(model, predictions)
    predictions = outputs.with_last_axes(loss, predictions)
    if model.unit == "example":
        return predictions
    check_one_output(loss, predictions)
    return flat_predictions(y, predictions, loss)


def score_of(
    model: keras.Model,
    batch: typing.Any,
    y_pred: typing.Any,
    norms: tf.Tensor | None,
    other: tf.Tensor | None = None,
) -> tf.Tensor | None:
    """The model's scores for the batch that is ranked, float32 `[n]`; None for `score=None`.

    Args:
        y_pred: The predictions that are ranked.
        norms: The gradient norms `[n]`, for a score that needs the network.
        other: The probabilities that `model.consistency` compares with. With `score="loss"` the score is then
            the example's loss with its term; the networks of a pair share the term.
    """
    loss = outputs.loss_of(model, y_pred)
    score, ranks = resolve(model.score), getattr(model.rule, "ranks", False)
    if score.needs_network:
        if not ranks:
            return norms
        return norms * root_of_counted(outputs.split(loss, batch.y, y_pred, batch.sample_weight))
    function = score.function if ranks or score.norm is None else score.norm
    if function is None:
        return None
    scores = function(batch.y, y_pred, loss, batch.sample_weight)
    if other is None or score is not resolve("loss"):
        return scores
    terms = tf.stop_gradient(consistency_terms(model, y_pred, other)) / len(model.networks)
    return model.consistency.share_of_loss * scores + terms


def consistency_terms(model: typing.Any, y_pred: typing.Any, other: tf.Tensor) -> tf.Tensor:
    """The term of `model.consistency` for each example, float32 `[n]`, with the gradient of `y_pred`."""
    probabilities = class_labels.predicted_probabilities(y_pred, outputs.loss_of(model, y_pred))
    return model.consistency(probabilities, other)


def losses_of(model: keras.Model) -> Callable[[typing.Any, typing.Any], tf.Tensor]:
    """A function of `(targets, y_pred)` that gives the losses `[batch]`; targets come from `targets_of`."""
    return functools.partial(loss_of_targets, functools.partial(outputs.loss_of, model))


def share_of_one(model: keras.Model, x: typing.Any) -> tf.Tensor:
    """The factor of one example's loss in the scaled batch mean, a float32 scalar."""
    rows = tf.maximum(batch_size(x), 1)
    return model.optimizer.scale_loss(tf.ones(())) / tf.cast(rows, tf.float32)
