"""The kinds of passes that `passes.forward_pass` chooses from."""

import functools
import typing

import keras
import tensorflow as tf

from prl_keras.inputs import class_labels, loss_kinds, nonfinite, outputs
from prl_keras.inputs.rows import first_positions
from prl_keras.inputs.shapes import check_by_example, check_shapes
from prl_keras.models.configuration import most_kept
from prl_keras.models.consistency import mean_of_terms
from prl_keras.models.forward import forward, losses_added, put_back_losses, state_unchanged
from prl_keras.models.ranked import (
    consistency_terms,
    losses_of,
    ranked_predictions,
    score_of,
    share_of_one,
)
from prl_keras.models.weights_of_outputs import combine, weights_of_outputs, with_axes_of_predictions
from prl_keras.scores import gradient
from prl_keras.scores.loss import number_counted, values_of


class Pass:
    """One network's predictions on a batch, and its loss for any weights.

    A subclass defines `run`, which makes the predictions.

    Args:
        model: The `WeightedModel`; its loss and optimizer are used.
        network: The network to run.
        batch: The `Batch`. The pass keeps its inputs but not its targets, because targets with a non-finite
            loss are replaced after the prediction.
        norms: The gradient norms, float32 `[batch]`, if another pass has computed them.

    Attributes:
        predictions: The network's own predictions.
        y_pred: The predictions that are ranked; flat for elements.
        scores: float32 `[n]`; None before `score`, and for `score=None`.
        other: The probabilities that `model.consistency` compares with, float32 `[n, classes]`, or None.
        share: With several replicas, the number of examples here divided by the mean over the replicas, a
            float scalar; None for a single one. It multiplies the losses that layers add.
        mean_kept: With several replicas, the mean number of examples with a nonzero weight; else None.
    """

    predictions: typing.Any
    y_pred: typing.Any
    scores: tf.Tensor | None = None
    other: tf.Tensor | None = None
    share: tf.Tensor | None = None
    mean_kept: tf.Tensor | None = None

    def __init__(
        self, model: keras.Model, network: keras.Model, batch: typing.Any, norms: tf.Tensor | None = None
    ) -> None:
        self.model, self.network, self.x, self.norms = model, network, batch.x, norms
        self.run(batch)

    def run(self, batch: typing.Any) -> None:
        """Sets `predictions` and `y_pred`."""
        raise NotImplementedError

    def score(self, batch: typing.Any) -> None:
        """Sets `scores`, float32 `[n]`, for the batch that is ranked."""
        self.scores = score_of(self.model, batch, self.y_pred, self.norms, self.other)

    @property
    def loss(self) -> typing.Any:
        """The compiled loss, or `outputs.OutputLosses` for several outputs."""
        return outputs.loss_of(self.model, self.y_pred)

    @functools.cached_property
    def probabilities(self) -> tf.Tensor | None:
        """Predicted probabilities, float32 `[batch, classes]`; None without one class label per example."""
        return class_labels.predicted_probabilities(self.y_pred, self.loss)

    def predict(self, batch: typing.Any, predictions: typing.Any) -> None:
        """Stores the predictions, and the losses that the layers added with them.

        Raises:
            ValueError: for targets whose shape does not fit them.
        """
        self.predictions = predictions
        self._added = losses_added(self.network)
        for part in outputs.split(outputs.loss_of(self.model, predictions), batch.y, predictions):
            check_shapes(*part[:3])
        self.y_pred = ranked_predictions(self.model, batch.y, predictions)

    def loss_with(self, batch: typing.Any, weights: tf.Tensor, factors: tf.Tensor | None = None) -> tf.Tensor:
        """The Keras loss with the rule's weights times the user's, and the term of `model.consistency`.

        Args:
            batch: The `Batch` that is ranked.
            weights: The rule's weights `[n]`.
            factors: One factor on the weights per output that has a loss, `[outputs]`; None for 1.
        """
        put_back_losses(self._added, self.share)
        parts = self._parts(batch)
        weights = weights_of_outputs(parts, self.y_pred, weights, factors)
        y = with_axes_of_predictions(parts, batch.y)
        if self.other is None:
            return self.model.network_loss(self.network, self.x, y, self.y_pred, weights)
        of_loss = self.model.consistency.share_of_loss * weights
        loss = self.model.network_loss(self.network, self.x, y, self.y_pred, of_loss)
        terms = consistency_terms(self.model, self.y_pred, self.other)
        return loss + mean_of_terms(self.loss, terms, weights, values_of(parts[0])[1])

    def counted_losses(self, batch: typing.Any) -> tf.Tensor:
        """How many values Keras averages, per output that has a loss: float32 `[outputs]`.

        Masked values are not counted; values with a weight of 0 are.
        """
        found = [values_of(part._replace(sample_weight=None)) for part in self._parts(batch)]
        return tf.stack(
            [
                tf.cast(tf.size(values), tf.float32) if counts is None else nonfinite.count(counts)
                for values, counts in found
            ]
        )

    def _parts(self, batch):
        """A list of `outputs.Output`, one per output that has a loss."""
        return outputs.split(self.loss, batch.y, self.y_pred, batch.sample_weight)


class TapePass(Pass):
    """Runs forward on a tape, then backward on the weighted loss once the weights are known."""

    def run(self, batch: typing.Any) -> None:
        self.tape = tf.GradientTape()
        with self.tape:
            self.predict(batch, forward(self.network, self.x, is_bad=batch.is_bad))

    def backward(
        self, batch: typing.Any, weights: tf.Tensor, factors: tf.Tensor | None = None
    ) -> tuple[tf.Tensor, list[typing.Any]]:
        weights = _once_known(self.norms, weights)
        with self.tape:
            loss = self.loss_with(batch, weights, factors)
            scaled = self.model.optimizer.scale_loss(loss)
        return loss, self.tape.gradient(scaled, self.network.trainable_weights)


class RecomputePass(Pass):
    """Runs forward without a tape, then forward and backward on the kept examples only."""

    def run(self, batch: typing.Any) -> None:
        with state_unchanged(self.network):
            self.predict(batch, forward(self.network, self.x, is_bad=batch.is_bad))
        losses = outputs.losses_of(self.loss, self.y_pred)
        check_by_example(losses, "recompute=True trains on the kept ones alone")

    def backward(
        self, batch: typing.Any, weights: tf.Tensor, factors: tf.Tensor | None = None
    ) -> tuple[tf.Tensor, list[typing.Any]]:
        weights = _once_known(self.y_pred, _once_known(self.norms, weights))
        rows, weights = self._rows_that_count(weights)
        x, y, sample_weight = keras.tree.map_structure(
            lambda t: _take(t, rows), (self.x, batch.y, batch.sample_weight)
        )
        kept_batch = batch._replace(x=x, y=y, sample_weight=sample_weight)
        kept = TapePass(self.model, self.network, kept_batch)
        kept.other = _take(self.other, rows)
        if self.mean_kept is not None:
            number = tf.cast(tf.math.count_nonzero(weights), tf.float32)
            kept.share = tf.math.divide_no_nan(number, self.mean_kept)
        if loss_kinds.is_mean(self.loss):
            # Keras averages over the kept examples; "mean_with_sample_weight" divides the factor out again.
            share = tf.math.divide_no_nan(kept.counted_losses(kept_batch), self.counted_losses(batch))
            factors = share if factors is None else share * factors
        return kept.backward(kept_batch, weights, factors)

    def _rows_that_count(self, weights):
        """-> (the indices of the examples with a nonzero weight, their weights)."""
        counts = tf.not_equal(weights, 0)
        if not self.model.jit_compile:
            # If no row counts, all rows go, with weight 0: the statistics of no row are non-finite.
            rows = tf.where(tf.logical_or(counts, ~tf.reduce_any(counts)))[:, 0]
            return rows, tf.gather(weights, rows)
        # XLA needs a static number of rows: if fewer count, some rows go twice, with weight 0.
        most = most_kept(self.model.rule, tf.size(weights))
        rows = first_positions(counts, most)
        is_first = tf.range(most) < tf.reduce_sum(tf.cast(counts, tf.int32))
        return rows, tf.where(is_first, tf.gather(weights, rows), 0.0)


class PerExamplePass(Pass):
    """Computes every example's gradient in one pass.

    Where the norms cannot be taken layer by layer, it holds `batch` times the weights in memory.

    Attributes:
        is_whole: Python bool, whether `backward` gives the whole gradient of a plain step.
    """

    def run(self, batch: typing.Any) -> None:
        # Each example's gradient is its share of the batch mean, so float16 overflows no earlier than in the
        # ordinary pass.
        found = gradient.gradients(
            losses_of(self.model),
            self.network,
            batch.x,
            (batch.y,),
            loss_scale=share_of_one(self.model, batch.x),
        )
        self.predict(batch, found.y_pred)
        self.norms, self.weighted_sum = found.norms, found.weighted_sum
        self._counts = [values_of(part)[1] for part in outputs.split(self.loss, batch.y, self.y_pred)]
        # With masks, each of several outputs has its own mean.
        self.is_whole = found.is_whole and (
            len(self._counts) == 1 or self._counts == [None] * len(self._counts)
        )

    def backward(
        self, batch: typing.Any, weights: tf.Tensor, factors: tf.Tensor | None = None
    ) -> tuple[tf.Tensor, list[typing.Any]]:
        combined = tf.reshape(combine(weights, batch.sample_weight, 1), [-1])
        combined *= 1.0 if factors is None else factors[0]  # without masks all outputs have the same factor
        combined /= tf.distribute.get_strategy().num_replicas_in_sync
        if self._counts[0] is not None:
            # Keras averages over all values that count in the batch; each gradient is of one example's mean.
            number = number_counted(self._counts[0])
            mean = tf.reduce_sum(number) / tf.cast(tf.maximum(tf.size(number), 1), tf.float32)
            combined *= tf.math.divide_no_nan(number, mean)
        data = self.weighted_sum(combined)
        put_back_losses(self._added, self.share)
        with tf.GradientTape() as tape:
            added = [tf.cast(tf.reduce_sum(loss), tf.float32) for loss in self.network.losses]
            extra = sum(added, start=tf.zeros(()))
            extra /= tf.distribute.get_strategy().num_replicas_in_sync  # the replicas' gradients are summed
            extra = self.model.optimizer.scale_loss(extra)
        regularization = tape.gradient(extra, [weight.value for weight in self.network.trainable_weights])
        return self.loss_with(batch, weights, factors), [_sum(*both) for both in zip(data, regularization)]


def _once_known(values, weights):
    """`weights` as float32, with a data dependency on `values` (or None), so that it runs after them.

    A pass that only scores must read a network's weights before the optimizer updates them. For two networks
    that exchange their selections only a control edge enforces this, and TensorFlow 2.21 loses it: its
    dependency optimizer drops the edge in favour of a longer path, from these scores over the other network's
    gradients to the `IdentityN` in which Keras's optimizer joins the gradients of both, and a later optimizer
    splits the `IdentityN`. Then the scores sometimes come from half-updated weights.
    """
    weights = tf.cast(weights, tf.float32)
    if values is None:
        return weights
    highest = tf.reduce_max([tf.reduce_max(tf.cast(t, tf.float32)) for t in keras.tree.flatten(values)])
    never = tf.logical_and(tf.math.is_nan(highest), highest > 0)
    return tf.where(never, 0.0, weights)


def _sum(gradient, regularization):
    """The sum of both gradients. An embedding's gradient stays sparse without regularization."""
    return gradient if regularization is None else tf.convert_to_tensor(gradient) + regularization


def _take(tensor, rows):
    if isinstance(tensor, tf.SparseTensor):
        raise ValueError(
            "recompute=True gathers the rows of the kept examples, which a SparseTensor does not give. Leave "
            "recompute=False, or make the batch dense: dataset.map(lambda x, y: (tf.sparse.to_dense(x), y))."
        )
    return None if tensor is None else tf.gather(tensor, rows)
