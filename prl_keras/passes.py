"""One network's pass over a batch: predictions and scores first, then, given weights, the gradient.

Two kinds. A `TapePass` is the ordinary forward and backward pass. A `PerExamplePass` is one that gives
the norms of every example's gradient and their weighted mean both, so that PRL(G) needs no second one.
"""

import functools
import typing

import keras
import tensorflow as tf

from prl_keras import checks, layer_wise, per_example, scores


def start(model, network, x, y, sample_weight):
    """Runs `network` forward in training mode and scores the batch.

    Args:
        model: The `WeightedModel`, for its score, loss and optimizer.
        network, x, y, sample_weight: The network to run and the batch.

    Returns:
        A pass with `y_pred`, `scores` (float32 `[batch]`, or None if `model.score` is None),
        `loss_all` (of all the examples alike) and `backward(weights) -> (loss, gradients)`, where
        the weights `[batch]` are the rule's; the user's `sample_weight` multiplies them.
    """
    batch = (model, network, x, y, sample_weight)
    if model.score != "gradient":
        return TapePass(*batch)
    fits_memory = model.microbatch_size is None or layer_wise.applies(network)
    if fits_memory and _can_be_one_pass(model, network, sample_weight):
        in_one = PerExamplePass(*batch)
        if in_one.is_whole:
            return in_one
    norms = per_example.gradient_norms(
        _losses_of(model), network, x, y, model.microbatch_size, loss_scale=_share(model, x)
    )
    return TapePass(*batch, norms)


class Glance(typing.NamedTuple):
    """What a network predicts and how suspect each example is, without training."""

    y_pred: tf.Tensor
    scores: tf.Tensor | None


def glance(model, network, x, y):
    """`network` in inference mode (no dropout, moving statistics): predictions and scores."""
    y_pred = network(x, training=False)
    if model.score == "gradient":
        norms = scores.gradient_norm(x, y, network, model.loss, model.microbatch_size, training=False)
        return Glance(y_pred, norms)
    return Glance(y_pred, _score(model, y, y_pred))


class _Pass:
    """One network's predictions on a batch, and the loss of any weights on them."""

    def __init__(self, model, network, x, y, sample_weight):
        self.model, self.network, self.x, self.y = model, network, x, y
        self.sample_weight = sample_weight

    @property
    def loss_all(self):
        return self.loss_with(None)

    def loss_with(self, weights):
        """The Keras loss with the rule's weights `[batch]`, or None, times the user's."""
        loss = keras.losses.get(self.model.loss)
        rank = len(scores.unreduced_loss(self.y, self.y_pred, loss).shape)
        weights = _combine(weights, self.sample_weight, rank)
        return self.model.network_loss(self.network, self.x, self.y, self.y_pred, weights)


class TapePass(_Pass):
    """Forward on a tape; the backward pass of the weighted loss follows when the weights are known."""

    def __init__(self, model, network, x, y, sample_weight, norms=None):
        super().__init__(model, network, x, y, sample_weight)
        self.tape = tf.GradientTape()
        with self.tape:
            self.y_pred = network(x, training=True)
        checks.check_shapes(y, self.y_pred, keras.losses.get(model.loss))
        self.scores = _score(model, y, self.y_pred) if norms is None else norms

    def backward(self, weights):
        with self.tape:
            loss = self.loss_with(weights)
            scaled = self.model.optimizer.scale_loss(loss)
        return loss, self.tape.gradient(scaled, self.network.trainable_weights)


class PerExamplePass(_Pass):
    """Every example's gradient in one pass; memory for `batch` times the weights, or see `layer_wise`."""

    def __init__(self, model, network, x, y, sample_weight):
        super().__init__(model, network, x, y, sample_weight)
        # Each example's gradient is its share of the batch's mean, so that float16 overflows no
        # earlier than in the ordinary pass.
        found = per_example.gradients(_losses_of(model), network, x, y, loss_scale=_share(model, x))
        self.y_pred, self.scores = found.y_pred, found.norms
        self.weighted_sum, self.is_whole = found.weighted_sum, found.is_whole

    def backward(self, weights):
        combined = tf.reshape(_combine(weights, self.sample_weight, 1), [-1])
        combined /= tf.distribute.get_strategy().num_replicas_in_sync
        data = self.weighted_sum(combined)
        with tf.GradientTape() as tape:
            extra = sum((tf.reduce_sum(loss) for loss in self.network.losses), start=tf.zeros(()))
            extra = self.model.optimizer.scale_loss(extra)
        regularization = per_example.gradient_or_zeros(tape, extra, self.network.trainable_weights)
        return self.loss_with(weights), [g + r for g, r in zip(data, regularization)]


def _combine(weights, sample_weight, rank):
    """The rule's weights `[batch]` times the user's `[batch, ...]`, in the rank of the losses.

    Keras would broadcast `[batch]` along the last axis of losses `[batch, steps]`.
    """
    given = [w for w in (weights, sample_weight) if w is not None]
    if not given:
        return None
    given = [tf.cast(w, tf.float32) for w in given]
    rank = max(rank, *(len(w.shape) for w in given))
    product = 1.0
    for w in given:
        product *= tf.reshape(w, tf.concat([tf.shape(w), [1] * (rank - len(w.shape))], axis=0))
    return product


def _score(model, y, y_pred):
    if model.score is None:
        return None
    return scores.resolve(model.score)(y, y_pred, keras.losses.get(model.loss))


def _losses_of(model):
    return functools.partial(scores.per_example_loss, loss=model.loss)


def _share(model, x):
    """The factor of one example's loss in the scaled mean over the batch."""
    batch = tf.maximum(tf.shape(keras.tree.flatten(x)[0])[0], 1)
    return model.optimizer.scale_loss(tf.ones(())) / tf.cast(batch, tf.float32)


def _can_be_one_pass(model, network, sample_weight):
    """Whether the data's loss is a mean over the batch with weights `[batch]`, of a network that maps."""
    reduction = getattr(keras.losses.get(model.loss), "reduction", "sum_over_batch_size")
    shape = () if sample_weight is None else sample_weight.shape
    return (
        per_example.can_be_vectorized(network)
        and reduction in ("sum_over_batch_size", "mean")
        and not model._compile_config.config.get("loss_weights")
        and (len(shape) < 2 or (len(shape) == 2 and shape[-1] == 1))
    )
