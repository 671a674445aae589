"""The kinds of passes that `passes.forward_pass` chooses from."""

import functools

import keras
import tensorflow as tf

from prl_keras.inputs import class_labels, outputs
from prl_keras.inputs.rows import first_positions
from prl_keras.inputs.shapes import check_no_masks, check_shapes, check_weight_shape
from prl_keras.keras_gaps.internals import mask_of
from prl_keras.models.configuration import most_kept
from prl_keras.models.forward import forward, state_unchanged
from prl_keras.scores import gradient
from prl_keras.scores.loss import per_example_loss, unreduced_loss
from prl_keras.scores.names import resolve


class Pass:
    """One network's predictions on a batch, and the loss of any weights on them.

    Args:
        model: The `WeightedModel`, for its loss and optimizer.
        network: The network to run.
        batch: The `Batch`. The pass keeps its inputs, not its targets: those are replaced where the loss is
            not finite, once the predictions are known.
    """

    def __init__(self, model, network, batch):
        self.model, self.network, self.x = model, network, batch.x
        self.scores = None

    def score(self, batch):
        """Sets `scores`, unless the pass has them already."""
        if self.scores is None:
            self.scores = score_of_predictions(self.model, batch.y, self.y_pred)

    @property
    def loss(self):
        """The loss that was compiled, or `outputs.OutputLosses`."""
        return outputs.loss_of(self.model, self.y_pred)

    @functools.cached_property
    def probabilities(self):
        """float32 `[batch, classes]` that are predicted; None without one class label for each example."""
        return class_labels.predicted_probabilities(self.y_pred, self.loss)

    def check(self, batch):
        """Refuses targets that do not go with the predictions."""
        for part in outputs.split(self.loss, batch.y, self.y_pred):
            check_shapes(*part[:3])

    def loss_with(self, batch, weights):
        """The Keras loss with the rule's weights `[batch]`, or None, times the user's."""
        weights = self._weights_of_outputs(batch, weights)
        return self.model.network_loss(self.network, self.x, batch.y, self.y_pred, weights)

    def _weights_of_outputs(self, batch, weights):
        """The rule's weights times the user's: one tensor, or a structure of them as the predictions are."""
        loss, own = self.loss, [batch.sample_weight]
        if isinstance(loss, outputs.OutputLosses):
            own = loss.pack(batch.sample_weight, self.y_pred, "sample_weight")
        combined = [None] * len(own)
        for part in outputs.split(loss, batch.y, self.y_pred):
            shape = unreduced_loss(*part[:3]).shape
            if own[part.index] is not None:
                check_weight_shape(tuple(own[part.index].shape), tuple(shape))
            combined[part.index] = _combine(weights, own[part.index], len(shape))
        return keras.tree.pack_sequence_as(self.y_pred, combined)

    def counted_losses(self, batch):
        """How many values Keras takes a mean over: all, or those that no mask hides. float32 scalar."""
        if isinstance(self.loss, outputs.OutputLosses):
            predictions = keras.tree.flatten(self.y_pred)
            check_no_masks(predictions)
            return tf.cast(tf.shape(predictions[0])[0], tf.float32)
        values = unreduced_loss(batch.y, self.y_pred, self.loss)
        masks = [mask_of(tensor) for tensor in (self.y_pred, values)]
        masks = [tf.cast(mask, tf.float32) for mask in masks if mask is not None]
        return tf.reduce_sum(functools.reduce(tf.multiply, masks, tf.ones_like(values)))


class TapePass(Pass):
    """Forward on a tape; the backward pass of the weighted loss follows when the weights are known.

    Args:
        norms: The scores, float32 `[batch]`, if another pass has found them.
    """

    def __init__(self, model, network, batch, norms=None):
        super().__init__(model, network, batch)
        self.scores = self.norms = norms
        self.tape = tf.GradientTape()
        with self.tape:
            self.y_pred = forward(self.network, self.x)
        self.check(batch)

    def backward(self, batch, weights):
        weights = _once_known(self.norms, weights)
        with self.tape:
            loss = self.loss_with(batch, weights)
            scaled = self.model.optimizer.scale_loss(loss)
        return loss, self.tape.gradient(scaled, self.network.trainable_weights)


class RecomputePass(Pass):
    """Forward without a tape; then forward and backward on the examples with a weight, alone.

    Args:
        norms: As in `TapePass`.
    """

    def __init__(self, model, network, batch, norms=None):
        super().__init__(model, network, batch)
        self.scores = norms
        with state_unchanged(self.network):
            self.y_pred = forward(self.network, self.x)
        self.check(batch)

    def backward(self, batch, weights):
        weights = _once_known(self.y_pred, _once_known(self.scores, weights))
        rows, weights = self._rows_that_count(weights)
        x, y, sample_weight = keras.tree.map_structure(
            lambda t: _take(t, rows), (self.x, batch.y, batch.sample_weight)
        )
        kept_batch = batch._replace(x=x, y=y, sample_weight=sample_weight)
        kept = TapePass(self.model, self.network, kept_batch)
        reduction = getattr(self.loss, "reduction", "sum_over_batch_size")
        if reduction not in ("sum", "none", None):
            # Keras takes the mean over the kept; "mean_with_sample_weight" divides the factor out again.
            weights *= tf.math.divide_no_nan(kept.counted_losses(kept_batch), self.counted_losses(batch))
        return kept.backward(kept_batch, weights)

    def _rows_that_count(self, weights):
        """-> (the places of the examples with a weight, their weights)."""
        counts = tf.not_equal(weights, 0)
        if not self.model.jit_compile:
            # Of padding alone all rows go, with weight 0: statistics of no row at all are not finite.
            rows = tf.where(tf.logical_or(counts, ~tf.reduce_any(counts)))[:, 0]
            return rows, tf.gather(weights, rows)
        # XLA must know their number beforehand: where fewer count, some go again, with weight 0.
        most = most_kept(self.model.rule, tf.size(weights))
        rows = first_positions(counts, most)
        is_first = tf.range(most) < tf.reduce_sum(tf.cast(counts, tf.int32))
        return rows, tf.where(is_first, tf.gather(weights, rows), 0.0)


class PerExamplePass(Pass):
    """Every example's gradient in one pass; takes memory for `batch` times the weights, or layer by layer."""

    def __init__(self, model, network, batch):
        super().__init__(model, network, batch)
        # Each example's gradient is its share of the batch's mean, so that float16 overflows no
        # earlier than in the ordinary pass.
        found = gradient.gradients(
            losses_of(model), network, batch.x, batch.y, loss_scale=share_of_one(model, batch.x)
        )
        self.y_pred, self.scores = found.y_pred, found.norms
        self.weighted_sum, self.is_whole = found.weighted_sum, found.is_whole

    def backward(self, batch, weights):
        combined = tf.reshape(_combine(weights, batch.sample_weight, 1), [-1])
        combined /= tf.distribute.get_strategy().num_replicas_in_sync
        data = self.weighted_sum(combined)
        with tf.GradientTape() as tape:
            extra = sum((tf.reduce_sum(loss) for loss in self.network.losses), start=tf.zeros(()))
            extra /= tf.distribute.get_strategy().num_replicas_in_sync  # whose gradients add up
            extra = self.model.optimizer.scale_loss(extra)
        regularization = tape.gradient(extra, [weight.value for weight in self.network.trainable_weights])
        return self.loss_with(batch, weights), [_sum(*both) for both in zip(data, regularization)]


def score_of_predictions(model, y, y_pred):
    """The model's score of targets and predictions, float32 `[batch]`; None for `score=None`."""
    function = resolve(model.score).function
    return None if function is None else function(y, y_pred, outputs.loss_of(model, y_pred))


def losses_of(model):
    """Function of `(y_true, y_pred)` that gives the model's losses `[batch]`."""
    return lambda y, y_pred: per_example_loss(y, y_pred, outputs.loss_of(model, y_pred))


def share_of_one(model, x):
    """The factor of one example's loss in the scaled mean over the batch."""
    batch = tf.maximum(tf.shape(keras.tree.flatten(x)[0])[0], 1)
    return model.optimizer.scale_loss(tf.ones(())) / tf.cast(batch, tf.float32)


def _once_known(values, weights):
    """`weights` as float32, with a data dependency on `values` (or None), so that it runs after them.

    A pass that scores alone must have read a network's weights before the optimizer moves them. Of two
    networks that exchange their choice, nothing but a control edge says so, and TensorFlow 2.21 loses it:
    its dependency optimizer drops the edge for a longer path, from these scores over the other network's
    gradients to the `IdentityN` in which Keras's optimizer joins the gradients of both, and a later
    optimizer takes the `IdentityN` apart. Then the scores are now and then of half-updated weights.
    """
    weights = tf.cast(weights, tf.float32)
    if values is None:
        return weights
    highest = tf.reduce_max([tf.reduce_max(tf.cast(t, tf.float32)) for t in keras.tree.flatten(values)])
    never = tf.logical_and(tf.math.is_nan(highest), highest > 0)
    return tf.where(never, 0.0, weights)


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


def _take(tensor, rows):
    if isinstance(tensor, tf.SparseTensor):
        raise ValueError(
            "recompute=True gathers the rows of the kept examples, which a SparseTensor does not give. Leave "
            "recompute=False, or make the batch dense: dataset.map(lambda x, y: (tf.sparse.to_dense(x), y))."
        )
    return None if tensor is None else tf.gather(tensor, rows)
