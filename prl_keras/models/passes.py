"""One network's pass over a batch: predictions and scores first, then, given weights, the gradient.

Three kinds. A `TapePass` is the ordinary forward and backward pass. A `RecomputePass` scores by a
forward pass alone and then makes a `TapePass` of the examples that count. A `PerExamplePass` is one that
gives the norms of every example's gradient and their weighted mean both, so that PRL(G) needs no second one.
"""

import contextlib
import functools
import math
import typing

import keras
import tensorflow as tf

from prl_keras.inputs import outputs
from prl_keras.inputs.shapes import check_no_masks, check_shapes, check_weight_shape
from prl_keras.keras_gaps.internals import mask_of, moving_variables
from prl_keras.keras_gaps.seeds import seed_states
from prl_keras.scores.gradient import can_be_vectorized, filled_up, first_rows, gradient_norms, gradients
from prl_keras.scores.layerwise import graph
from prl_keras.scores.loss import per_example_loss, unreduced_loss
from prl_keras.scores.names import resolve


def start(model, network, x, y, sample_weight):
    """Runs `network` forward in training mode and scores the batch.

    Args:
        model: The `WeightedModel`, for its score, loss and optimizer.
        network, x, y, sample_weight: The network to run and the batch.

    Returns:
        A pass with `y_pred`, `scores` (float32 `[batch]`, or None if `model.score` is None),
        `loss_with(weights)` (ask before `backward`, see `train_step`) and `backward(weights) -> (loss,
        gradients)`, where the weights `[batch]` are the rule's; the user's `sample_weight` multiplies them.
    """
    batch = (model, network, x, y, sample_weight)
    norms = None
    if model.score == "gradient":
        fits_memory = model.microbatch_size is None or graph.applies(network)
        if not model.recompute and fits_memory and _can_be_one_pass(*batch):
            before = _state(network)
            in_one = PerExamplePass(*batch)
            if in_one.is_whole:
                return in_one
            _put_back(before)
        with _state_unchanged(network):
            norms = gradient_norms(
                _losses_of(model), network, x, y, model.microbatch_size, loss_scale=_share(model, x)
            )
    started = (RecomputePass if model.recompute else TapePass)(*batch)
    started.scores = _score(model, y, started.y_pred) if norms is None else norms
    return started


def are_finite(model, y, network_passes):
    """bool `[batch]`: whether an example's loss is finite, in all the passes."""
    losses = [_losses_of(model)(y, network_pass.y_pred) for network_pass in network_passes]
    return tf.reduce_all(tf.math.is_finite(losses), axis=0)


class Glance(typing.NamedTuple):
    """What a network predicts and how suspect each example is, without training."""

    y_pred: tf.Tensor
    scores: tf.Tensor | None


def glance(model, network, x, y):
    """`network` in inference mode (no dropout, moving statistics): predictions and scores."""
    y_pred = network(x, training=False)
    if model.score == "gradient":
        norms = gradient_norms(_losses_of(model), network, x, y, model.microbatch_size, training=False)
        return Glance(y_pred, norms)
    return Glance(y_pred, _score(model, y, y_pred))


class _Pass:
    """One network's predictions on a batch, and the loss of any weights on them."""

    scores = None

    def __init__(self, model, network, x, y, sample_weight):
        self.model, self.network, self.x, self.y = model, network, x, y
        self.sample_weight = sample_weight

    @property
    def loss(self):
        """The loss that was compiled, or `outputs.OutputLosses`."""
        return outputs.loss_of(self.model, self.y_pred)

    def check(self):
        """Refuses targets that do not go with the predictions."""
        for part in outputs.split(self.loss, self.y, self.y_pred):
            check_shapes(*part[:3])

    def loss_with(self, weights):
        """The Keras loss with the rule's weights `[batch]`, or None, times the user's."""
        weights = self._weights_of_outputs(weights)
        return self.model.network_loss(self.network, self.x, self.y, self.y_pred, weights)

    def _weights_of_outputs(self, weights):
        """The rule's weights times the user's: one tensor, or a structure of them as the predictions are."""
        loss, own = self.loss, [self.sample_weight]
        if isinstance(loss, outputs.OutputLosses):
            own = loss.pack(self.sample_weight, self.y_pred, "sample_weight")
        combined = [None] * len(own)
        for part in outputs.split(loss, self.y, self.y_pred):
            shape = unreduced_loss(*part[:3]).shape
            if own[part.index] is not None:
                check_weight_shape(tuple(own[part.index].shape), tuple(shape))
            combined[part.index] = _combine(weights, own[part.index], len(shape))
        return keras.tree.pack_sequence_as(self.y_pred, combined)

    @property
    def counted_losses(self):
        """How many values Keras takes a mean over: all, or those that no mask hides. float32 scalar."""
        if isinstance(self.loss, outputs.OutputLosses):
            predictions = keras.tree.flatten(self.y_pred)
            check_no_masks(predictions)
            return tf.cast(tf.shape(predictions[0])[0], tf.float32)
        values = unreduced_loss(self.y, self.y_pred, self.loss)
        masks = [mask_of(tensor) for tensor in (self.y_pred, values)]
        masks = [tf.cast(mask, tf.float32) for mask in masks if mask is not None]
        return tf.reduce_sum(functools.reduce(tf.multiply, masks, tf.ones_like(values)))


class TapePass(_Pass):
    """Forward on a tape; the backward pass of the weighted loss follows when the weights are known."""

    def __init__(self, *batch):
        super().__init__(*batch)
        self.tape = tf.GradientTape()
        with self.tape:
            self.y_pred = forward(self.network, self.x)
        self.check()

    def backward(self, weights):
        weights = _once_known(self.scores, weights)
        with self.tape:
            loss = self.loss_with(weights)
            scaled = self.model.optimizer.scale_loss(loss)
        return loss, self.tape.gradient(scaled, self.network.trainable_weights)


class RecomputePass(_Pass):
    """Forward without a tape; then forward and backward on the examples with a weight, alone."""

    def __init__(self, *batch):
        super().__init__(*batch)
        with _state_unchanged(self.network):
            self.y_pred = forward(self.network, self.x)
        self.check()

    def backward(self, weights):
        weights = _once_known(self.y_pred, _once_known(self.scores, weights))
        counts = tf.not_equal(weights, 0)
        # Of padding alone all rows go, with weight 0: statistics of no row at all are not finite.
        rows = tf.where(tf.logical_or(counts, ~tf.reduce_any(counts)))[:, 0]
        x, y, sample_weight, weights = keras.tree.map_structure(
            lambda t: _gather(t, rows), (self.x, self.y, self.sample_weight, weights)
        )
        kept = TapePass(self.model, self.network, x, y, sample_weight)
        reduction = getattr(self.loss, "reduction", "sum_over_batch_size")
        if reduction not in ("sum", "none", None):
            # Keras takes the mean over the kept; "mean_with_sample_weight" divides the factor out again.
            weights *= tf.math.divide_no_nan(kept.counted_losses, self.counted_losses)
        return kept.backward(weights)


class PerExamplePass(_Pass):
    """Every example's gradient in one pass; memory for `batch` times the weights, or see `scores.layerwise`."""

    def __init__(self, model, network, x, y, sample_weight):
        super().__init__(model, network, x, y, sample_weight)
        # Each example's gradient is its share of the batch's mean, so that float16 overflows no
        # earlier than in the ordinary pass.
        found = gradients(_losses_of(model), network, x, y, loss_scale=_share(model, x))
        self.y_pred, self.scores = found.y_pred, found.norms
        self.weighted_sum, self.is_whole = found.weighted_sum, found.is_whole

    def backward(self, weights):
        combined = tf.reshape(_combine(weights, self.sample_weight, 1), [-1])
        combined /= tf.distribute.get_strategy().num_replicas_in_sync
        data = self.weighted_sum(combined)
        with tf.GradientTape() as tape:
            extra = sum((tf.reduce_sum(loss) for loss in self.network.losses), start=tf.zeros(()))
            extra /= tf.distribute.get_strategy().num_replicas_in_sync  # whose gradients add up
            extra = self.model.optimizer.scale_loss(extra)
        regularization = tape.gradient(extra, [weight.value for weight in self.network.trainable_weights])
        return self.loss_with(weights), [_sum(*both) for both in zip(data, regularization)]


def forward(network, x, training=True):
    """Predictions; of a replica without examples none, and moving statistics that stay where they are.

    Not every layer takes an empty batch, hence a row of zeros then.
    """
    inputs = keras.tree.flatten(x)
    if tf.distribute.get_strategy().num_replicas_in_sync == 1 or not all(map(_is_dense, inputs)):
        return network(x, training=training)
    rows = tf.shape(inputs[0])[0]
    before = [(variable, tf.identity(variable.value)) for variable in moving_variables(network)]
    y_pred = network(filled_up(x, 1), training=training)
    for variable, value in before:
        variable.assign(tf.where(rows > 0, variable.value, value))
    return keras.tree.map_structure(lambda t: first_rows(t, rows), y_pred)


def _is_dense(tensor):
    return isinstance(tensor, tf.Tensor)


def _once_known(values, weights):
    """`weights` in float32, by data that cannot be had before `values` (or None).

    The pass that scores must have read a network's weights before the optimizer moves them. Of two
    networks that exchange their choice, nothing but a control edge says so, and TensorFlow 2.21 loses it:
    its dependency optimizer drops the edge for a longer path, from these scores over the other network's
    gradients to the `IdentityN` in which Keras's optimizer joins the gradients of both, and a later
    optimizer takes the `IdentityN` apart. Then the scores are now and then of half-updated weights.
    """
    weights = tf.cast(weights, tf.float32)
    if values is None:
        return weights
    values = [tf.reduce_max(tf.cast(t, tf.float32)) for t in keras.tree.flatten(values)]
    never = tf.reduce_max(values) > math.inf
    return tf.where(never, 0.0, weights)


@contextlib.contextmanager
def _state_unchanged(network):
    """What moves in a forward pass (moving statistics, seeds) is put back: it moves where it trains.

    `keras.StatelessScope` would lose the moves of a layer whose `call` is a `tf.function`: traced in the
    scope, without them, it is not traced again outside.
    """
    before = _state(network)
    yield
    _put_back(before)


def _state(network):
    """-> (variable, its value) of all that moves in a forward pass."""
    variables = (*seed_states([network]), *moving_variables(network))
    return [(variable, tf.identity(variable.value)) for variable in variables]


def _put_back(state):
    for variable, value in state:
        variable.assign(value)


def _sum(gradient, regularization):
    """An embedding's gradient stays sparse if nothing is to be added."""
    return gradient if regularization is None else tf.convert_to_tensor(gradient) + regularization


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


def _gather(tensor, rows):
    if isinstance(tensor, tf.SparseTensor):
        raise ValueError(
            "recompute=True gathers the rows of the kept examples, which a SparseTensor does not give. Leave "
            "recompute=False, or make the batch dense: dataset.map(lambda x, y: (tf.sparse.to_dense(x), y))."
        )
    return None if tensor is None else tf.gather(tensor, rows)


def _score(model, y, y_pred):
    if model.score is None:
        return None
    return resolve(model.score)(y, y_pred, outputs.loss_of(model, y_pred))


def _losses_of(model):
    return lambda y, y_pred: per_example_loss(y, y_pred, outputs.loss_of(model, y_pred))


def _share(model, x):
    """The factor of one example's loss in the scaled mean over the batch."""
    batch = tf.maximum(tf.shape(keras.tree.flatten(x)[0])[0], 1)
    return model.optimizer.scale_loss(tf.ones(())) / tf.cast(batch, tf.float32)


def _can_be_one_pass(model, network, x, y, sample_weight):
    """Whether the data's loss is a mean over the batch with weights `[batch]`, of a network that maps.

    And that moves nothing of its own (statistics) in the map, where nothing stays moved.
    """
    losses = [keras.losses.get(loss) for loss in keras.tree.flatten(model.loss) if loss is not None]
    if keras.tree.is_nested(sample_weight):
        return False
    shape = () if sample_weight is None else sample_weight.shape
    is_mean = (
        all(getattr(loss, "reduction", "mean") in ("sum_over_batch_size", "mean") for loss in losses)
        and all(getattr(loss, "ignore_class", None) is None for loss in losses)  # then over those that count
        and (keras.tree.is_nested(model.loss) or not outputs.loss_weights_of(model))
        and (len(shape) < 2 or (len(shape) == 2 and shape[-1] == 1))
    )
    if not is_mean or graph.applies(network):
        return is_mean
    return not moving_variables(network) and can_be_vectorized(_losses_of(model), network, x, y)
