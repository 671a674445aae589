"""What `fit` logs for a step: how much was kept, of which classes, and the loss over all examples."""

import contextlib
import typing
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from prl_keras.inputs import class_labels, loss_kinds, nonfinite, outputs
from prl_keras.keras_gaps.internals import metrics_of_outputs
from prl_keras.models.elements import ranked_shape
from prl_keras.models.global_batch import is_mean
from prl_keras.models.metrics import KeptByClass, ratios


class StepMetrics:
    """The metrics of a `WeightedModel`, and the first observer of its steps.

    An observer is any object with `update(batch, passes, selected)`. The training step calls it before the
    backward passes, with the `Batch`, one pass per network from `passes.forward_pass`, and the `Selected`.

    Args:
        model: The `WeightedModel`. The metrics become its attributes, where Keras finds them.
        network: Its first network.
    """

    def __init__(self, model: keras.Model, network: keras.Model) -> None:
        self._model = model
        names = ["loss_all", "kept_fraction", "nonfinite"] + (
            [] if model.score is None else ["score_threshold"]
        )
        model.selection_metrics = ratios(names)
        output = outputs.symbolic_outputs(network)
        has_one_output = model.score is not None and output is not None and not keras.tree.is_nested(output)
        is_ranked_so = has_one_output and (model.unit == "element" or len(output.shape) <= 2)
        width = (*output.shape, 1)[1 if len(output.shape) == 1 else -2] if is_ranked_so else None
        model.class_metric = width and KeptByClass(max(2, width))

    def has_classes(self) -> bool:
        """Whether everything that is ranked has one class label."""
        model = self._model
        loss = getattr(model, "loss", None)
        if model.class_metric is None or loss is None:
            return False
        output, shape = outputs.symbolic_outputs(model.networks[0]), model.networks[0].output_shape
        loss = outputs.loss_of(model, output)
        return class_labels.count_classes(ranked_shape(model, shape, loss), loss) is not None

    def update(self, batch: typing.Any, passes: Sequence[typing.Any], selected: typing.Any) -> None:
        """Before the backward pass: stores the loss over all good examples in each pass, as `loss_of_all`."""
        # A mean leaves out padding; a sum includes it.
        is_counted = batch.is_ranked & ~batch.is_bad if is_mean(passes[0].loss) else ~batch.is_bad
        with self._logs_of_outputs_unchanged():
            for each, factors in zip(passes, selected.factors):
                each.loss_of_all = each.loss_with(batch, tf.cast(is_counted, "float32"), factors)

    def finish(
        self,
        batch: typing.Any,
        passes: Sequence[typing.Any],
        losses: Sequence[tf.Tensor],
        selected: typing.Any,
        is_finite: tf.Tensor,
    ) -> None:
        """After the backward pass: logs the step, in few kernels.

        Args:
            batch, passes, selected: As in `update`.
            losses: The weighted loss of each network.
            is_finite: bool scalar, whether the gradient was finite.
        """
        # Keras weights a batch by its number of examples, not of elements.
        self.log_losses(losses, selected.rows / tf.cast(batch.each_has, selected.rows.dtype))
        if self.has_classes():
            for weights in selected.weights:
                self._model.class_metric.update_state(batch.labels, weights > 0, batch.is_ranked)
        ranked = selected.counts.ranked
        of_networks = []
        for each, (weights, scores, kept) in zip(passes, selected.everyone):
            lost = nonfinite.count(batch.is_ranked & (batch.is_bad | ~is_finite))
            sums = [_loss_and_rows(each, batch, selected), (kept, ranked), (lost / len(passes), 0.0)]
            if scores is not None:
                # Without a kept example the threshold is 0; a weight of 0 makes it not count.
                highest = tf.reduce_max(tf.where(weights > 0, scores, tf.float32.min))
                sums.append((tf.where(kept > 0, highest, 0.0) * ranked, ranked))
            of_networks.append(sums)
        self._model.selection_metrics[0].add(of_networks)

    def log_losses(self, losses: Sequence[tf.Tensor], rows: tf.Tensor) -> None:
        """Logs the losses of the networks on a batch, each weighted by its `rows` examples as in Keras."""
        metric = next(metric for metric in self._model.metrics if metric.name == "loss")
        for loss in losses:
            metric.update_state(_of_replica(loss, rows), sample_weight=rows)

    def is_nothing_trained(self) -> bool:
        """Whether every step of the epoch so far was skipped."""
        _, _, _, ranked, lost, *_ = np.array(self._model.selection_metrics[0].sums)  # as in `finish`
        times = len(self._model.networks) * self._model.distribute_strategy.num_replicas_in_sync
        return bool(ranked > 0 and lost * times >= ranked - 0.5)

    def look_at_classes(self) -> typing.Any:
        """The kept fraction of each class in the epoch so far, a float array `[classes]`, or None.

        For a rule with an epsilon it warns about classes without a kept example.
        """
        metric = self._model.class_metric
        fractions = None if metric is None else metric.fractions()
        if fractions is not None and hasattr(self._model.rule, "epsilon"):
            metric.warn_of_dropped()
        return fractions

    @property
    def names(self) -> set[str]:
        """The names of the metrics that only training logs."""
        return {m.name for m in (*self._model.selection_metrics, self._model.class_metric) if m is not None}

    @contextlib.contextmanager
    def _logs_of_outputs_unchanged(self):
        """Undoes what Keras logs: with several outputs it logs each loss whenever it computes their sum."""
        before = [(v, tf.identity(v.value)) for m in metrics_of_outputs(self._model) for v in m.variables]
        yield
        for variable, value in before:
            variable.assign(value)
        if not before:  # Keras makes them when it first computes the loss
            for metric in metrics_of_outputs(self._model):
                metric.reset_state()


def _loss_and_rows(network_pass, batch, selected):
    """-> (the loss over all times a number of examples, the number that counts), float32 scalars."""
    each_has = tf.cast(batch.each_has, tf.float32)
    rows = tf.cast(selected.rows, tf.float32) / each_has
    loss = _of_replica(network_pass.loss_of_all, rows)
    if not is_mean(network_pass.loss):
        return loss * rows, rows
    good = tf.cast(tf.size(batch.is_bad), tf.float32) - nonfinite.count(batch.is_ranked & batch.is_bad)
    good /= each_has
    # Keras divides by the whole batch, or by the sum of the weights, which are 0 for bad examples.
    is_by_weights = loss_kinds.reduction_of(network_pass.loss) == "mean_with_sample_weight"
    return loss * (good if is_by_weights else rows), good


def _of_replica(loss, rows):
    """The loss that a metric of this replica counts, float32 scalar.

    It undoes Keras's division by the number of replicas. A loss without reduction becomes the mean over the
    global batch.
    """
    if len(loss.shape):
        loss = tf.math.divide_no_nan(tf.reduce_sum(loss), tf.cast(rows, loss.dtype))
        return tf.cast(loss, tf.float32)
    return tf.cast(loss, tf.float32) * tf.distribute.get_strategy().num_replicas_in_sync
