"""The scores by name, and a user's own."""

import functools

import keras
import tensorflow as tf

from prl_keras.inputs.shapes import check_one_value_per_example
from prl_keras.scores.gradient import gradient_norms
from prl_keras.scores.loss import per_example_loss
from prl_keras.scores.loss_layer import loss_layer_gradient_norm

NAMES = ("loss", "loss_layer_gradient", "gradient")


def gradient_norm(x, y_true, network, loss, microbatch_size=None, training=True):
    """The L2 norm of the gradient of each example's loss over all trainable weights (algorithm 2).

    Args:
        x: Inputs `[batch, ...]`, or a structure of them.
        y_true: Targets `[batch, ...]`, or a structure of them.
        network: A Keras model whose layers treat each example by itself.
        loss: As in `per_example_loss`. Regularizers are not part of it.
        microbatch_size: At most so many per-example gradients are held in memory at a time; None for
            all. It does not change the result.
        training: Whether the network is called in training mode.

    Returns:
        float32 `[batch]`.

    Raises:
        BatchMixingError: with a layer that mixes examples, if `training`.
    """
    losses_of = functools.partial(per_example_loss, loss=loss)
    return gradient_norms(losses_of, network, x, y_true, microbatch_size, training)


def resolve(score):
    """The function of `(y_true, y_pred, loss)` that a score's name or a callable stands for.

    Args:
        score: "loss", "loss_layer_gradient", a `keras.losses.Loss`, or a function of
            `(y_true, y_pred)` that gives `[batch]`.

    Raises:
        ValueError: for an unknown name.
    """
    if score == "loss":
        return lambda y_true, y_pred, loss: tf.stop_gradient(per_example_loss(y_true, y_pred, loss))
    if score == "loss_layer_gradient":
        return loss_layer_gradient_norm
    if isinstance(score, keras.losses.Loss) or callable(score):
        return functools.partial(_own_score, score)
    raise ValueError(
        f"score={score!r} is not known. Write one of {', '.join(map(repr, NAMES))}, None (every "
        "example counts), or a function of (y_true, y_pred) that gives one value per example."
    )


def _own_score(score, y_true, y_pred, loss):
    """A user's score; a function sees all the outputs, a `keras.losses.Loss` each of them."""
    if keras.tree.is_nested(y_pred) and not isinstance(score, keras.losses.Loss):
        values = tf.cast(score(y_true, y_pred), tf.float32)
        check_one_value_per_example(values, keras.tree.flatten(y_pred)[0], score)
    else:
        values = per_example_loss(y_true, y_pred, score)
    return tf.stop_gradient(values)
