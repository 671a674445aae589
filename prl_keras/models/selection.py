"""Which examples of a batch count, and what `fit` logs of it."""

import contextlib
import functools

import keras
import numpy as np
import tensorflow as tf

from prl_keras.inputs import class_labels, nonfinite
from prl_keras.keras_gaps.internals import compile_config, metrics_of_outputs
from prl_keras.keras_gaps.replicas import on_one_replica
from prl_keras.models import global_batch, passes
from prl_keras.models.configuration import check_rule_gave_one_weight_each


class Selection:
    """Mixin for a `keras.Model` with `networks`, `score`, `rule`, `selection_metrics` and `class_metric`."""

    @property
    def metrics(self):
        """As of any Keras model; how much was kept of each class only where there are classes."""
        return [m for m in super().metrics if m is not self.class_metric or self._has_classes()]

    def example_scores(self, x, y):
        """How suspect each example is, in inference mode: one float32 `[batch]` per network.

        Raises:
            ValueError: if the model was built with `score=None`.
        """
        if self.score is None:
            raise ValueError(
                "This model has score=None, so it ranks nothing. Build it with "
                "score='loss_layer_gradient', or score a plain compiled Keras model."
            )
        return [passes.glance(self, network, x, y).scores for network in self.networks]

    def example_weights(self, x, y, sample_weight=None):
        """What the rule would make of this batch now, in inference mode: `[batch]` per network."""
        glances = [passes.glance(self, network, x, y) for network in self.networks]
        is_bad = tf.logical_or(nonfinite.find((x, y)), ~passes.are_finite(self, y, glances))
        return self._weigh_good(
            self._columns(glances),
            is_ranked_by(glances[0].y_pred, sample_weight),
            is_bad,
            self._labels(y, glances),
            self.optimizer.iterations,
        )

    @property
    def graph_example_weights(self):
        """`example_weights` as a graph, traced once for all the fits between two calls of compile."""
        compiled, graph = self.__dict__.get("_weights_graph", (None, None))
        if graph is None or compiled is not compile_config(self):
            run = functools.partial(on_one_replica, self.distribute_strategy, self.example_weights)
            graph = tf.function(run, autograph=False, reduce_retracing=True)
            self.__dict__["_weights_graph"] = (compile_config(self), graph)
        return graph

    def record_selection(self, record):
        """From now on tells `record` of each training step what it kept; None ends that.

        Args:
            record: A `SelectionRecord`, or anything with `update(x, y, scores, weights, is_ranked)`.
        """
        if record is not self._record:
            self._record = record
            self.train_function = None  # the next fit traces the step anew

    def _select(self, network_passes, sample_weight, is_bad, labels):
        """Logs what was kept of the global batch.

        Returns:
            This replica's weights for each network, by how many examples its weighted losses count (as the
            weights bring all the replicas to the same number, that is the batch shared out evenly), and
            whether an example counts at all, or could have.
        """
        step, is_ranked = self.optimizer.iterations, is_ranked_by(network_passes[0].y_pred, sample_weight)

        def weigh(columns, is_ranked):
            *columns, labels, is_bad = columns
            return self._weigh_good(columns, is_ranked, is_bad > 0, labels, step)

        own = [tf.cast(labels, tf.float32), tf.cast(is_bad, tf.float32)]
        weights, all_weights, columns, all_ranked = global_batch.weigh_global_batch(
            weigh,
            [*self._columns(network_passes), *own],
            is_ranked,
            lambda: [p.counted_losses if global_batch.is_mean(p.loss) else None for p in network_passes],
        )
        if self._has_classes():
            for weight in weights:
                self.class_metric.update_state(labels, weight > 0, is_ranked)
        is_ranked = all_ranked
        count = tf.reduce_sum(tf.cast(is_ranked, tf.float32))
        for i, weight in enumerate(all_weights):
            is_kept = weight > 0
            kept = tf.math.divide_no_nan(tf.reduce_sum(tf.cast(is_kept, tf.float32)), count)
            self._metric("kept_fraction").update_state(kept, sample_weight=count)
            if self.score is not None:
                # Of no example the threshold is 0, and with weight 0 does not count.
                highest = tf.reduce_max(tf.where(is_kept, columns[self._scorer_of(i)], -np.inf))
                threshold = tf.where(tf.reduce_any(is_kept), highest, 0.0)
                self._metric("score_threshold").update_state(threshold, sample_weight=count)
        share = tf.size(is_ranked) / tf.distribute.get_strategy().num_replicas_in_sync
        is_any_good = tf.logical_or(tf.reduce_any(tf.stack(all_weights) > 0), tf.reduce_all(columns[-1] == 0))
        return [tf.stop_gradient(weight) for weight in weights], share, is_any_good

    def _weigh_good(self, columns, is_ranked, is_bad, labels, step):
        """As `_weigh`; the bad examples have the worst of scores, and weight 0."""
        columns = [tf.where(is_bad, np.nan, column) for column in columns]
        return [
            nonfinite.without(tf.cast(w, tf.float32), is_bad)
            for w in self._weigh(columns, is_ranked, step, labels)
        ]

    def _weigh(self, columns, is_ranked, step, labels):
        """Weights `[batch]` for each network, from the columns of the global batch."""
        if self.score is None:
            return [tf.cast(is_ranked, tf.float32)] * len(self.networks)
        arguments = (is_ranked, step) + ((labels,) if getattr(self.rule, "min_keep_per_class", 0) else ())
        weights = [self.rule(scores, *arguments) for scores in columns[: len(self.networks)]]
        for weight in weights:
            check_rule_gave_one_weight_each(self.rule, weight)
        return weights

    def _columns(self, network_passes):
        """What `_weigh` needs of each example, as a list of columns `[batch]`, one per network first."""
        return [p.scores for p in network_passes] if self.score is not None else []

    def _labels(self, y, network_passes):
        """int32 `[batch]`, the given classes; of what are no classes 0."""
        y_pred = network_passes[0].y_pred
        is_several = keras.tree.is_nested(y_pred) or keras.tree.is_nested(self.loss)
        labels = None if is_several else class_labels.class_labels(y, y_pred, keras.losses.get(self.loss))
        if labels is None and getattr(self.rule, "min_keep_per_class", 0):
            raise ValueError(
                f"rule={self.rule!r} needs one class label per example; the loss {self.loss!r} on outputs of "
                f"shape {keras.tree.map_structure(lambda t: tuple(t.shape), y_pred)} has none. Leave "
                "min_keep_per_class=0."
            )
        return tf.zeros([_rows(y_pred)], tf.int32) if labels is None else labels

    def _scorer_of(self, i):
        """Which network's scores stand behind the weights of network `i`."""
        return i

    def _has_classes(self):
        loss = getattr(self, "loss", None)
        if self.class_metric is None or loss is None or keras.tree.is_nested(loss):
            return False
        return class_labels.count_classes(self.networks[0].output_shape, keras.losses.get(loss)) is not None

    def _metric(self, name):
        return next(metric for metric in self.metrics if metric.name == name)

    def _log(self, name, losses, rows):
        """Adds the mean over the networks, of so many examples as Keras does."""
        # Keras divides a loss by the number of replicas; a metric counts each replica's own.
        replica_count = tf.distribute.get_strategy().num_replicas_in_sync
        for loss in losses:
            if len(loss.shape):  # of no reduction: the mean over the global batch
                loss = tf.math.divide_no_nan(tf.reduce_sum(loss), tf.cast(rows, loss.dtype))
            else:
                loss *= replica_count
            self._metric(name).update_state(loss, sample_weight=rows)

    @contextlib.contextmanager
    def _logs_of_outputs_unchanged(self):
        """Keras logs the loss of each of several outputs whenever it computes their sum."""
        before = [(v, tf.identity(v.value)) for metric in metrics_of_outputs(self) for v in metric.variables]
        yield
        for variable, value in before:
            variable.assign(value)


def is_ranked_by(y_pred, sample_weight):
    """bool `[batch]`: False where the user's weight is 0 (for all the outputs), which marks padding."""
    given = [weight for weight in keras.tree.flatten(sample_weight) if weight is not None]
    if not given:
        return tf.ones([_rows(y_pred)], tf.bool)
    if not hasattr(given[0], "shape"):
        given = [sample_weight]  # one list of numbers
    nonzero = [tf.cast(weight, "float32") != 0 for weight in given]
    return tf.reduce_any(
        [tf.reduce_any(tf.reshape(t, [tf.shape(t)[0], -1]), axis=1) for t in nonzero], axis=0
    )


def _rows(y_pred):
    return tf.shape(keras.tree.flatten(y_pred)[0])[0]
