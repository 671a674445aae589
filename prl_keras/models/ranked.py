"""What of a network's pass is ranked: which predictions, by which losses and scores."""

import functools

import keras
import tensorflow as tf

from prl_keras.inputs import outputs
from prl_keras.models.elements import check_one_output, flat_predictions
from prl_keras.scores.loss import loss_of_targets, root_of_counted
from prl_keras.scores.names import resolve


def ranked_predictions(model, y, predictions):
    """The predictions that are ranked, of a network's own: those of the elements, flat, or these."""
    if model.unit == "example":
        return predictions
    check_one_output(model, predictions)
    return flat_predictions(y, predictions, outputs.loss_of(model, predictions))


def score_of(model, batch, y_pred, norms):
    """The model's score of a batch as it is ranked, float32 `[n]`; None for `score=None`.

    Args:
        y_pred: The predictions that are ranked.
        norms: The gradient norms, for a score that needs the network.
    """
    arguments = (batch.y, y_pred, outputs.loss_of(model, y_pred), batch.sample_weight)
    score, ranks = resolve(model.score), getattr(model.rule, "ranks", False)
    if score.needs_network:
        return norms * root_of_counted(*arguments) if ranks else norms
    function = score.function if ranks or score.norm is None else score.norm
    return None if function is None else function(*arguments)


def losses_of(model):
    """Function of `(targets, y_pred)` that gives the losses `[batch]`, targets as of `targets_of`."""
    return functools.partial(loss_of_targets, functools.partial(outputs.loss_of, model))


def share_of_one(model, x):
    """The factor of one example's loss in the scaled mean over the batch."""
    batch = tf.maximum(tf.shape(keras.tree.flatten(x)[0])[0], 1)
    return model.optimizer.scale_loss(tf.ones(())) / tf.cast(batch, tf.float32)
