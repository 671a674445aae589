"""The training step of all methods: score each example, weigh it, step on the weighted loss."""

import contextlib
import functools
import numbers

import keras
import numpy as np
import tensorflow as tf

from prl_keras import checks, nonfinite, outputs, passes, rare_classes, replicas, scores
from prl_keras.checked_fit import CheckedFit
from prl_keras.distributed_fit import (
    DistributedFit,
    gradients_for_optimizer,
    logs_for_fit,
    on_one_replica,
)
from prl_keras.rules import ClipNorm, KeepLowest, Trim

_SEED_STATE = "seed_state_"  # in a file of weights
_RULES = (Trim, KeepLowest, ClipNorm)


class WeightedModel(CheckedFit, DistributedFit, keras.Model):
    """What `RobustModel` (one network) and `CoTeachingModel` (two) share.

    A subclass names its networks in `networks`, and may say more about how they are weighed.
    """

    def __init__(self, networks, score, rule, recompute, microbatch_size, **kwargs):
        _check_configuration(networks, score, rule, recompute, microbatch_size)
        # compile() chooses loss scaling by this model's own precision, so it takes the network's.
        super().__init__(**{"dtype": networks[0].dtype_policy, **kwargs})
        self.score, self.rule = score, rule
        self.recompute, self.microbatch_size = recompute, microbatch_size
        self.supports_jit = not recompute  # XLA needs to know beforehand how many examples are kept
        names = ["loss_all", "kept_fraction"] + ([] if score is None else ["score_threshold"])
        self.selection_metrics = [keras.metrics.Mean(name=name) for name in names]
        self.selection_metrics.append(keras.metrics.Sum(name="nonfinite"))
        self.kept_by_class = None
        output = outputs.symbolic_outputs(networks[0])
        is_ranked = score is not None and not keras.tree.is_nested(output) and output is not None
        width = output.shape[1] if is_ranked and len(output.shape) == 2 else None
        self.class_metric = width and rare_classes.KeptByClass(max(2, width))
        self.built = all(network.built for network in networks)

    @property
    def networks(self):
        """The list of the networks that are trained."""
        raise NotImplementedError

    @property
    def output_names(self):
        """By which dicts of losses and targets go with a list of outputs."""
        return getattr(self.networks[0], "output_names", None)

    @property
    def metrics(self):
        """As of any Keras model; how much was kept of each class only where there are classes."""
        return [m for m in super().metrics if m is not self.class_metric or self._has_classes()]

    def _has_classes(self):
        loss = getattr(self, "loss", None)
        if self.class_metric is None or loss is None or keras.tree.is_nested(loss):
            return False
        return rare_classes.count_classes(self.networks[0].output_shape, keras.losses.get(loss)) is not None

    @property
    def jit_compile(self):
        """Whether XLA compiles the training step, as `compile` set it."""
        return super().jit_compile

    @jit_compile.setter
    def jit_compile(self, value):
        if value and self.distribute_strategy.num_replicas_in_sync > 1:
            raise ValueError(
                "jit_compile=True does not go with several replicas: their shares of a batch differ in size, "
                "and XLA needs static shapes. Leave jit_compile='auto'."
            )
        if value and self.recompute:
            raise ValueError(
                "jit_compile=True does not go with recompute=True: XLA needs static shapes, and the number "
                "of kept examples is known only in the step. Leave jit_compile='auto', or recompute=False."
            )
        keras.Model.jit_compile.fset(self, value)

    def build(self, input_shape):
        for network in self.networks:
            if not network.built:
                network.build(input_shape)

    def train_step(self, data):
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        checks.check_compiled(self)
        checks.check_targets_given(y)
        self._build_for(x)
        checks.check_trainable(self)
        if self.score == "gradient":
            checks.check_dense(x)
        is_bad = nonfinite.find((x, y))
        x, y = nonfinite.replace((x, y), is_bad)
        statistics = [v for network in self.networks for v in passes.statistics(network)]
        statistics = [(variable, tf.identity(variable.value)) for variable in statistics]
        started = [passes.start(self, network, x, y, sample_weight) for network in self.networks]
        is_bad = tf.logical_or(is_bad, ~passes.are_finite(self, y, started))
        for network_pass in started:
            network_pass.y = y = nonfinite.replace(y, is_bad)  # the loss of some targets is not finite
        is_mean = replicas.is_mean(started[0].loss)
        good = (
            nonfinite.without(tf.ones(tf.shape(is_bad)), is_bad) if is_mean else tf.cast(~is_bad, "float32")
        )
        # First of all: a second pass replaces the losses that layers added in the first.
        with self._logs_of_outputs_unchanged():
            losses_all = [network_pass.loss_with(good) for network_pass in started]
        weights, share, is_any_good = self._select(started, sample_weight, is_bad, self._labels(y, started))
        # A mean counts by the examples that it is over, a sum is one part of the batch's like any other.
        self._log("loss_all", losses_all, tf.math.count_nonzero(good, dtype="float32") if is_mean else share)
        losses, gradients, trained = [], [], []
        for network_pass, weight in zip(started, weights):
            loss, gradient = network_pass.backward(weight)
            losses.append(loss)
            gradients.extend(gradient)
            trained.extend(network_pass.network.trainable_weights)
        self._log("loss", losses, share)
        is_finite = tf.constant(True)  # loss scaling looks for itself, and learns from it
        if not isinstance(self.optimizer, keras.optimizers.LossScaleOptimizer):
            is_finite = replicas.everywhere(nonfinite.are_finite(gradients))
        is_lost = tf.logical_or(is_bad, tf.logical_not(is_finite))
        self._metric("nonfinite").update_state(tf.logical_and(is_lost, _is_ranked(is_lost, sample_weight)))
        gradients = gradients_for_optimizer(gradients, self.optimizer)
        is_usable = tf.logical_and(is_finite, is_any_good)
        nonfinite.apply_if(is_usable, self.optimizer, gradients, trained)
        is_usable = tf.logical_and(is_usable, tf.logical_not(tf.reduce_all(is_bad)))
        for variable, before in statistics:
            variable.assign(tf.where(is_usable, variable.value, before))
        for network_pass in started:
            logs = self.compute_metrics(x, y, network_pass.y_pred, sample_weight=sample_weight)
        return logs_for_fit(logs)

    def test_step(self, data):
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        checks.check_targets_given(y)
        self._build_for(x)
        predictions = [passes.forward(network, x, training=False) for network in self.networks]
        losses = [
            self.network_loss(network, x, y, y_pred, sample_weight)
            for network, y_pred in zip(self.networks, predictions)
        ]
        self._log("loss", losses, tf.shape(keras.tree.flatten(x)[0])[0])
        for y_pred in predictions:
            logs = self.compute_metrics(x, y, y_pred, sample_weight=sample_weight)
        training_only = {metric.name for metric in (*self.selection_metrics, self.class_metric) if metric}
        return logs_for_fit({name: value for name, value in logs.items() if name not in training_only})

    @contextlib.contextmanager
    def _logs_of_outputs_unchanged(self):
        """Keras logs the loss of each of several outputs whenever it computes their sum."""
        before = [
            (v, tf.identity(v.value)) for metric in self._compile_loss.metrics for v in metric.variables
        ]
        yield
        for variable, value in before:
            variable.assign(value)

    def network_loss(self, network, x, y, y_pred, sample_weight):
        """The reduced Keras loss of one network, its regularizers included."""
        del network
        return self.compute_loss(x, y, y_pred, sample_weight)

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
            _is_ranked(glances[0].y_pred, sample_weight),
            is_bad,
            self._labels(y, glances),
            self.optimizer.iterations,
        )

    @property
    def graph_example_weights(self):
        """`example_weights` as a graph, traced once for all the fits between two calls of compile."""
        compiled, graph = self.__dict__.get("_weights_graph", (None, None))
        if graph is None or compiled is not self._compile_config:
            run = functools.partial(on_one_replica, self.distribute_strategy, self.example_weights)
            graph = tf.function(run, autograph=False, reduce_retracing=True)
            self.__dict__["_weights_graph"] = (self._compile_config, graph)
        return graph

    def get_config(self):
        return {
            **super().get_config(),
            "score": keras.saving.serialize_keras_object(self.score),
            "rule": keras.saving.serialize_keras_object(self.rule),
            "recompute": self.recompute,
            "microbatch_size": self.microbatch_size,
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        config = {
            key: keras.saving.deserialize_keras_object(value, custom_objects) if _is_object(value) else value
            for key, value in config.items()
        }
        return cls(**config)

    def save_own_variables(self, store):
        """Keras saves no seed states: without them dropout would start over after a resume."""
        super().save_own_variables(store)
        for i, state in enumerate(self._seed_states()):
            store[f"{_SEED_STATE}{i}"] = state

    def load_own_variables(self, store):
        names = list(store.keys())
        super().load_own_variables({name: store[name] for name in names if not name.startswith(_SEED_STATE)})
        for i, state in enumerate(self._seed_states()):
            if f"{_SEED_STATE}{i}" in names:
                state.assign(store[f"{_SEED_STATE}{i}"])

    def _seed_states(self):
        all_layers = [layer for network in self.networks for layer in network._flatten_layers()]
        return [generator.state for layer in all_layers for generator in layer._seed_generators]

    def _build_for(self, x):
        """Keras would do it, were this model called rather than its networks."""
        if self.built:
            return
        for network in self.networks:
            if not network.built:
                network(keras.tree.map_structure(lambda t: keras.KerasTensor(t.shape, t.dtype.name), x))
        self.build(keras.tree.map_structure(lambda t: tuple(t.shape), x))

    def _columns(self, network_passes):
        """What `_weigh` needs of each example, as a list of columns `[batch]`, one per network first."""
        return [p.scores for p in network_passes] if self.score is not None else []

    def _labels(self, y, network_passes):
        """int32 `[batch]`, the given classes; of what are no classes 0."""
        y_pred = network_passes[0].y_pred
        is_several = keras.tree.is_nested(y_pred) or keras.tree.is_nested(self.loss)
        labels = None if is_several else rare_classes.class_labels(y, y_pred, keras.losses.get(self.loss))
        if labels is None and getattr(self.rule, "min_keep_per_class", 0):
            raise ValueError(
                f"rule={self.rule!r} needs one class label per example; the loss {self.loss!r} on outputs of "
                f"shape {keras.tree.map_structure(lambda t: tuple(t.shape), y_pred)} has none. Leave "
                "min_keep_per_class=0."
            )
        return tf.zeros([_rows(y_pred)], tf.int32) if labels is None else labels

    def _weigh(self, columns, is_ranked, step, labels):
        """Weights `[batch]` for each network, from the columns of the global batch."""
        if self.score is None:
            return [tf.cast(is_ranked, tf.float32)] * len(self.networks)
        arguments = (is_ranked, step) + ((labels,) if getattr(self.rule, "min_keep_per_class", 0) else ())
        weights = [self.rule(scores, *arguments) for scores in columns[: len(self.networks)]]
        for weight in weights:
            checks.check_rule_gave_one_weight_each(self.rule, weight)
        return weights

    def _weigh_good(self, columns, is_ranked, is_bad, labels, step):
        """As `_weigh`; the bad examples have the worst of scores, and weight 0."""
        columns = [tf.where(is_bad, np.nan, column) for column in columns]
        return [
            nonfinite.without(tf.cast(w, tf.float32), is_bad)
            for w in self._weigh(columns, is_ranked, step, labels)
        ]

    def _select(self, network_passes, sample_weight, is_bad, labels):
        """Logs what was kept of the global batch.

        Returns:
            This replica's weights for each network, by how many examples its weighted losses count (as the
            weights bring all the replicas to the same number, that is the batch shared out evenly), and
            whether an example counts at all, or could have.
        """
        step, is_ranked = self.optimizer.iterations, _is_ranked(network_passes[0].y_pred, sample_weight)

        def weigh(columns, is_ranked):
            *columns, labels, is_bad = columns
            return self._weigh_good(columns, is_ranked, is_bad > 0, labels, step)

        own = [tf.cast(labels, tf.float32), tf.cast(is_bad, tf.float32)]
        weights, all_weights, columns, all_ranked = replicas.weigh_global_batch(
            weigh,
            [*self._columns(network_passes), *own],
            is_ranked,
            lambda: [p.counted_losses if replicas.is_mean(p.loss) else None for p in network_passes],
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

    def _scorer_of(self, i):
        """Which network's scores stand behind the weights of network `i`."""
        return i

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


def _is_ranked(y_pred, sample_weight):
    """bool `[batch]`: False where the user's weight is 0 (for all the outputs), which marks padding."""
    given = [weight for weight in keras.tree.flatten(sample_weight) if weight is not None]
    if not given:
        return tf.ones([_rows(y_pred)], tf.bool)
    nonzero = [tf.not_equal(tf.convert_to_tensor(weight), 0) for weight in given]
    return tf.reduce_any(
        [tf.reduce_any(tf.reshape(t, [tf.shape(t)[0], -1]), axis=1) for t in nonzero], axis=0
    )


def _rows(y_pred):
    return tf.shape(keras.tree.flatten(y_pred)[0])[0]


def _is_object(value):
    return isinstance(value, dict) and "class_name" in value


def _check_configuration(networks, score, rule, recompute, microbatch_size):
    for network in networks:
        if not isinstance(network, keras.Model):
            raise ValueError(f"{network!r} is not a keras.Model; pass the network to train.")
    if isinstance(score, _RULES):
        raise ValueError(f"score={score!r} is a rule, not a score; write rule={score!r}.")
    if score not in (None, "gradient"):
        scores.resolve(score)
    if score is not None and (not callable(rule) or isinstance(rule, type)):
        raise ValueError(
            f"rule={rule!r} must be a rule such as prl_keras.Trim(0.3), or a function of "
            "(scores, is_ranked, step) that gives one weight per example."
        )
    if not isinstance(recompute, bool):
        raise ValueError(f"recompute={recompute!r} must be True or False.")
    is_count = isinstance(microbatch_size, numbers.Real) and not isinstance(microbatch_size, bool)
    if microbatch_size is not None and not (is_count and microbatch_size >= 1 and microbatch_size % 1 == 0):
        raise ValueError(f"microbatch_size={microbatch_size!r} must be a whole number >= 1, or None.")
    if score == "gradient":
        for network in networks:
            checks.check_no_batch_mixing(network)
