"""One network's pass over a batch: predictions and scores first, then, given weights, the gradient.

Two kinds, told apart by what they cost. A `TapePass` is the ordinary forward and backward pass. A
`PerExamplePass` holds the gradient of every example, from which norms and weighted mean both come, so
that PRL(G) needs no second forward and backward pass.
"""

import typing

import keras
import tensorflow as tf

from prl_keras import checks, per_example, scores


def start(model, network, x, y):
    """Runs `network` forward in training mode and scores the batch.

    Returns:
        A pass with `y_pred`, `scores` (float32 `[batch]`, or None if `model.score` is None),
        `loss_with(weights)` and `backward(weights) -> (loss, gradients)`.
    """
    if model.score != "gradient":
        return TapePass(model, network, x, y)
    if model.microbatch_size is None and _mean_can_be_taken_here(model):
        return PerExamplePass(model, network, x, y)
    norms = per_example.gradient_norms(
        _losses_of(model), network, x, y, model.microbatch_size, loss_scale=_loss_scale(model)
    )
    return TapePass(model, network, x, y, norms)


class Glance(typing.NamedTuple):
    """What a network predicts and how suspect each example is, without training."""

    y_pred: tf.Tensor
    scores: tf.Tensor | None


def glance(model, network, x, y):
    """`network` in inference mode (no dropout, moving statistics): predictions and scores."""
    y_pred = network(x, training=False)
    if model.score == "gradient":
        norms = per_example.gradient_norms(
            _losses_of(model), network, x, y, model.microbatch_size, training=False
        )
        return Glance(y_pred, norms)
    return Glance(y_pred, _score(model, y, y_pred))


class TapePass:
    """Forward on a tape; the backward pass of the weighted loss follows when the weights are known."""

    def __init__(self, model, network, x, y, scores=None):
        self.model, self.network, self.x, self.y = model, network, x, y
        self.tape = tf.GradientTape()
        with self.tape:
            self.y_pred = network(x, training=True)
        checks.check_shapes(y, self.y_pred, keras.losses.get(model.loss))
        self.scores = _score(model, y, self.y_pred) if scores is None else scores

    def loss_with(self, weights):
        return self.model.network_loss(self.network, self.x, self.y, self.y_pred, weights)

    def backward(self, weights):
        with self.tape:
            loss = self.loss_with(weights)
            scaled = self.model.optimizer.scale_loss(loss)
        return loss, self.tape.gradient(scaled, self.network.trainable_weights)


class PerExamplePass:
    """Every example's gradient in one vectorized pass; memory for `batch` times the weights."""

    def __init__(self, model, network, x, y):
        self.model, self.network, self.x, self.y = model, network, x, y
        self.y_pred, self.gradients, self.scores = per_example.gradients(
            _losses_of(model), network, x, y, loss_scale=_loss_scale(model)
        )

    loss_with = TapePass.loss_with

    def backward(self, weights):
        share = 1.0 / tf.cast(tf.maximum(tf.size(weights), 1), tf.float32)
        share /= tf.distribute.get_strategy().num_replicas_in_sync
        data = per_example.weighted_sum(weights * share, self.gradients)
        with tf.GradientTape() as tape:
            extra = sum((tf.reduce_sum(loss) for loss in self.network.losses), start=tf.zeros(()))
            extra = self.model.optimizer.scale_loss(extra)
        regularization = per_example.gradient_or_zeros(tape, extra, self.network.trainable_weights)
        return self.loss_with(weights), [g + r for g, r in zip(data, regularization)]


def _score(model, y, y_pred):
    if model.score is None:
        return None
    return scores.resolve(model.score)(y, y_pred, keras.losses.get(model.loss))


def _losses_of(model):
    return lambda y, y_pred: scores.per_example_loss(y, y_pred, model.loss)


def _loss_scale(model):
    return model.optimizer.scale_loss(tf.ones(()))


def _mean_can_be_taken_here(model):
    """Whether the step's loss is the plain weighted mean over the batch, plus weight regularizers."""
    reduction = getattr(keras.losses.get(model.loss), "reduction", "sum_over_batch_size")
    return (
        reduction in ("sum_over_batch_size", "mean")
        and not model._compile_config.config.get("loss_weights")
        and not any(layer.activity_regularizer for n in model.networks for layer in n._flatten_layers())
    )
