"""What `fit` logs of a step: how much was kept, of whom, and what the loss of all would be."""

import contextlib

import keras
import tensorflow as tf

from prl_keras.inputs import class_labels, nonfinite, outputs
from prl_keras.keras_gaps.internals import metrics_of_outputs
from prl_keras.models.elements import ranked_shape
from prl_keras.models.global_batch import is_mean
from prl_keras.models.metrics import KeptByClass, ratios


class StepMetrics:
    """The metrics of a `WeightedModel`, and the first observer of its steps.

    An observer is anything with `update(batch, passes, selected)`. It is part of the training step, before
    the backward passes. It gets the `Batch`, a pass of `passes.forward_pass` for each network, and what was
    `Selected`.

    Args:
        model: The `WeightedModel`. It gets the metrics as attributes, which is how Keras finds them.
        network: Its first network.
    """

    def __init__(self, model, network):
        self._model = model
        names = ["loss_all", "kept_fraction", "nonfinite"] + (
            [] if model.score is None else ["score_threshold"]
        )
        model.selection_metrics = ratios(names)
        output = outputs.symbolic_outputs(network)
        has_one_output = model.score is not None and output is not None and not keras.tree.is_nested(output)
        is_ranked_so = has_one_output and (model.unit == "element" or len(output.shape) == 2)
        width = output.shape[-1] if is_ranked_so else None
        model.class_metric = width and KeptByClass(max(2, width))

    def has_classes(self):
        """Whether there is a class label for each example."""
        model = self._model
        loss = getattr(model, "loss", None)
        if model.class_metric is None or loss is None or keras.tree.is_nested(loss):
            return False
        loss, shape = keras.losses.get(loss), model.networks[0].output_shape
        return class_labels.count_classes(ranked_shape(model, shape, loss), loss) is not None

    def update(self, batch, passes, selected):
        """Before the backward pass: keeps the loss of all the good examples in each pass as `loss_of_all`."""
        # A mean leaves out padding, a sum is one part of the batch's like any other.
        is_counted = batch.is_ranked & ~batch.is_bad if is_mean(passes[0].loss) else ~batch.is_bad
        with self._logs_of_outputs_unchanged():
            for each, factors in zip(passes, selected.factors):
                each.loss_of_all = each.loss_with(batch, tf.cast(is_counted, "float32"), factors)

    def finish(self, batch, passes, losses, selected, is_finite):
        """After the backward pass: logs the step, in few kernels."""
        # Keras weighs a batch by its examples, whatever the number of their elements.
        self._log("loss", losses, selected.rows / tf.cast(batch.each_has, selected.rows.dtype))
        if self.has_classes():
            for weights in selected.weights:
                self._model.class_metric.update_state(batch.labels, weights > 0, batch.is_ranked)
        ranked = selected.counts.ranked
        of_networks = []
        for each, (weights, scores, kept) in zip(passes, selected.everyone):
            sums = [_loss_and_rows(each, batch, selected), (kept, ranked)]
            sums.append((_lost(batch, is_finite) / len(passes), 0.0))
            if scores is not None:
                # Of no example the threshold is 0, and with weight 0 does not count.
                highest = tf.reduce_max(tf.where(weights > 0, scores, tf.float32.min))
                sums.append((tf.where(kept > 0, highest, 0.0) * ranked, ranked))
            of_networks.append(sums)
        self._model.selection_metrics[0].add(of_networks)

    def log_evaluation(self, losses, rows):
        """Logs the unweighted losses of a batch of so many examples."""
        self._log("loss", losses, rows)

    def look_at_classes(self):
        """The fraction kept of each class in the epoch so far, float `[classes]`, or None.

        It warns of a class of which nothing was kept.
        """
        metric = self._model.class_metric
        fractions = None if metric is None else metric.fractions()
        if fractions is not None and hasattr(self._model.rule, "epsilon"):
            metric.warn_of_dropped()
        return fractions

    def _log(self, name, losses, rows):
        """Adds the losses of the networks to a metric, of so many examples as Keras does."""
        for loss in losses:
            self._metric(name).update_state(_of_replica(loss, rows), sample_weight=rows)

    def _metric(self, name):
        """The model's metric of a name."""
        return next(metric for metric in self._model.metrics if metric.name == name)

    @property
    def names(self):
        """The names of the metrics that only training has, a set."""
        return {m.name for m in (*self._model.selection_metrics, self._model.class_metric) if m is not None}

    @contextlib.contextmanager
    def _logs_of_outputs_unchanged(self):
        """Keras logs the loss of each of several outputs whenever it computes their sum."""
        metrics = metrics_of_outputs(self._model)
        before = [(v, tf.identity(v.value)) for metric in metrics for v in metric.variables]
        yield
        for variable, value in before:
            variable.assign(value)


def _lost(batch, is_finite):
    """How many examples are not finite, or were in a step whose gradient is not; float32 scalar."""
    return nonfinite.count(batch.is_ranked & (batch.is_bad | ~is_finite))


def _loss_and_rows(network_pass, batch, selected):
    """-> (the loss of all times a number of examples, the number that counts), float32 scalars."""
    each_has = tf.cast(batch.each_has, tf.float32)
    rows = tf.cast(selected.rows, tf.float32) / each_has
    loss = _of_replica(network_pass.loss_of_all, rows)
    if not is_mean(network_pass.loss):
        return loss * rows, rows
    good = tf.cast(tf.size(batch.is_bad), tf.float32) - nonfinite.count(batch.is_ranked & batch.is_bad)
    good /= each_has
    # Keras divides by the whole batch, or by the weights, which are 0 for the bad.
    is_by_weights = getattr(network_pass.loss, "reduction", None) == "mean_with_sample_weight"
    return loss * (good if is_by_weights else rows), good


def _of_replica(loss, rows):
    """A loss as a metric of this replica counts it, float32 scalar.

    Keras divides a loss by the number of replicas. A loss of no reduction becomes the mean over the global
    batch.
    """
    if len(loss.shape):
        loss = tf.math.divide_no_nan(tf.reduce_sum(loss), tf.cast(rows, loss.dtype))
        return tf.cast(loss, tf.float32)
    return tf.cast(loss, tf.float32) * tf.distribute.get_strategy().num_replicas_in_sync
