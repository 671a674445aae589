"""The scores by name, and a user's own."""

import functools
import typing

import keras
import tensorflow as tf

from prl_keras.inputs.shapes import check_one_value_per_example
from prl_keras.scores.gradient import gradient_norms
from prl_keras.scores.loss import loss_of_targets, per_example_loss, targets_of
from prl_keras.scores.loss_layer import loss_layer_gradient_norm, loss_layer_score


class Score(typing.NamedTuple):
    """A score as the training step takes it.

    Attributes:
        function: Function of `(y_true, y_pred, loss, sample_weight)` that gives float32 `[batch]`; None for
            `score=None`, and if the score needs the network. Of the user's weights, or None, it may look at
            which are 0 (`scores.loss`).
        norm: The same for a rule that does not only compare scores (`rule.ranks`), as `ClipNorm`, if that
            is another: the norm as it is.
        needs_network: True for the gradient norm over the network's weights (`scores.gradient`): predictions
            are not enough for it.
    """

    function: typing.Callable | None
    needs_network: bool = False
    norm: typing.Callable | None = None


def gradient_norm(x, y_true, network, loss, microbatch_size=None, training=True, sample_weight=None):
    """The L2 norm of the gradient of each example's loss over all trainable weights (algorithm 2).

    Args:
        x: Inputs `[batch, ...]`, or a structure of them.
        y_true: Targets `[batch, ...]`, or a structure of them.
        network: A Keras model whose layers treat each example by itself.
        loss: As in `per_example_loss`. Regularizers are not part of it.
        microbatch_size: At most so many per-example gradients are held in memory at a time; None for
            all. It does not change the result.
        training: Whether the network is called in training mode.
        sample_weight: As in `per_example_loss`.

    Returns:
        float32 `[batch]`.

    Raises:
        BatchMixingError: for batch normalization that trains, if `training`. Other layers that mix examples
            are not detected.
    """
    losses_of = functools.partial(loss_of_targets, lambda y_pred: loss)
    return gradient_norms(losses_of, network, x, targets_of(y_true, sample_weight), microbatch_size, training)


def resolve(score):
    """The `Score` that a name or a callable stands for.

    Args:
        score: "loss", "loss_layer_gradient", "gradient", None (every example counts), a
            `keras.losses.Loss`, or a function of `(y_true, y_pred)` that gives `[batch]`.

    Raises:
        ValueError: for an unknown name, or a rule.
    """
    if score is None:
        return Score(None)
    if isinstance(score, str) and score in _NAMED:
        return _NAMED[score]
    if isinstance(score, keras.losses.Loss) or callable(score):
        return Score(functools.partial(_own_score, score))
    raise ValueError(
        f"score={score!r} is not known. Write one of {', '.join(map(repr, _NAMED))}, None (every "
        "example counts), or a function of (y_true, y_pred) that gives one value per example."
    )


def _loss(y_true, y_pred, loss, sample_weight=None):
    return tf.stop_gradient(per_example_loss(y_true, y_pred, loss, sample_weight))


def _own_score(score, y_true, y_pred, loss, sample_weight=None):
    """A user's score; a function sees all the outputs, a `keras.losses.Loss` each of them."""
    del loss
    if keras.tree.is_nested(y_pred) and not isinstance(score, keras.losses.Loss):
        values = tf.cast(score(y_true, y_pred), tf.float32)
        check_one_value_per_example(values, keras.tree.flatten(y_pred)[0], score)
    else:
        values = per_example_loss(y_true, y_pred, score, sample_weight)
    return tf.stop_gradient(values)


_NAMED = {
    "loss": Score(_loss),
    "loss_layer_gradient": Score(loss_layer_score, norm=loss_layer_gradient_norm),
    "gradient": Score(None, needs_network=True),
}
