"""The training step of all methods: score each example, weigh it, step on the weighted loss."""

import numbers

import keras
import numpy as np
import tensorflow as tf

from prl_keras.epsilon.estimated import EstimatedEpsilon, check_estimated, own_epsilon
from prl_keras.inputs import class_labels, nonfinite, outputs
from prl_keras.inputs.arrays import check_dense, check_targets_given
from prl_keras.keras_gaps.internals import moving_variables
from prl_keras.keras_gaps.replicas import DistributedFit, gradients_for_optimizer, logs_for_fit
from prl_keras.keras_gaps.seeds import load_seeds, save_seeds, without_seeds
from prl_keras.models import global_batch, passes
from prl_keras.models.configuration import check_compiled, check_trainable
from prl_keras.models.fit import CheckedFit
from prl_keras.models.metrics import KeptByClass
from prl_keras.models.selection import Selection, is_ranked_by
from prl_keras.rules.clip_norm import ClipNorm
from prl_keras.rules.keep_lowest import KeepLowest
from prl_keras.rules.trim import Trim
from prl_keras.scores.batch_mixing import check_no_batch_mixing
from prl_keras.scores.names import resolve

_RULES = (Trim, KeepLowest, ClipNorm)


class WeightedModel(CheckedFit, DistributedFit, Selection, keras.Model):
    """What `RobustModel` (one network) and `CoTeachingModel` (two) share.

    A subclass names its networks in `networks`, and may say more about how they are weighed.
    """

    def __init__(self, networks, score, rule, recompute, microbatch_size, **kwargs):
        _check_configuration(networks, score, rule, recompute, microbatch_size)
        # compile() chooses loss scaling by this model's own precision, so it takes the network's.
        super().__init__(**{"dtype": networks[0].dtype_policy, **kwargs})
        self.score, self.rule = score, own_epsilon(rule)
        if isinstance(getattr(self.rule, "epsilon", None), EstimatedEpsilon):
            self._epsilon = self.rule.epsilon.value  # one of the weights
        self.recompute, self.microbatch_size = recompute, microbatch_size
        self.supports_jit = not recompute  # XLA needs to know beforehand how many examples are kept
        names = ["loss_all", "kept_fraction"] + ([] if score is None else ["score_threshold"])
        self.selection_metrics = [keras.metrics.Mean(name=name) for name in names]
        self.selection_metrics.append(keras.metrics.Sum(name="nonfinite"))
        self.kept_by_class = self._record = self._watch = None
        output = outputs.symbolic_outputs(networks[0])
        is_ranked = score is not None and not keras.tree.is_nested(output) and output is not None
        width = output.shape[1] if is_ranked and len(output.shape) == 2 else None
        self.class_metric = width and KeptByClass(max(2, width))
        self.built = all(network.built for network in networks)

    @property
    def networks(self):
        """The list of the networks that are trained."""
        raise NotImplementedError

    @property
    def epsilon_estimate(self):
        """`EpsilonEstimate` of the last epoch of `fit` (see `NoiseWatch`), or None."""
        return None if self._watch is None else self._watch.estimate

    @property
    def output_names(self):
        """By which dicts of losses and targets go with a list of outputs."""
        return getattr(self.networks[0], "output_names", None)

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
        check_compiled(self)
        check_targets_given(y)
        self._build_for(x)
        check_trainable(self)
        if self.score == "gradient":
            check_dense(x)
        is_bad, given = nonfinite.find((x, y)), (x, y)
        x, y = nonfinite.replace((x, y), is_bad)
        statistics = [v for network in self.networks for v in moving_variables(network)]
        statistics = [(variable, tf.identity(variable.value)) for variable in statistics]
        started = [passes.start(self, network, x, y, sample_weight) for network in self.networks]
        is_bad = tf.logical_or(is_bad, ~passes.are_finite(self, y, started))
        for network_pass in started:
            network_pass.y = y = nonfinite.replace(y, is_bad)  # the loss of some targets is not finite
        is_mean = global_batch.is_mean(started[0].loss)
        is_ranked = is_ranked_by(is_bad, sample_weight)
        ranked = tf.cast(is_ranked, "float32")
        good = nonfinite.without(ranked, is_bad) if is_mean else tf.cast(~is_bad, "float32")
        # First of all: a second pass replaces the losses that layers added in the first.
        with self._logs_of_outputs_unchanged():
            losses_all = [network_pass.loss_with(good) for network_pass in started]
        labels = self._labels(given[1], started)
        weights, share, is_any_good = self._select(started, sample_weight, is_bad, labels)
        is_seen = self._watch is not None or self._record is not None
        probabilities = class_labels.probabilities_of_passes(started) if is_seen else []
        if self._watch is not None:
            is_estimated = self._watch.update(y, labels, started, probabilities, is_bad, is_ranked)
            check_estimated(self.rule, is_estimated)
        if self._record is not None:
            scored = [] if self.score is None else [tf.where(is_bad, np.nan, p.scores) for p in started]
            likely = [tf.where(is_bad, np.nan, class_labels.of_given(labels, p)) for p in probabilities]
            self._record.update(*given, scored, weights, is_ranked, likely)
        # A mean counts by the examples that it is over, a sum is one part of the batch's like any other.
        is_counted = ~(is_bad & is_ranked)
        self._log(
            "loss_all", losses_all, tf.math.count_nonzero(is_counted, dtype="float32") if is_mean else share
        )
        losses, gradients, trained = [], [], []
        for network_pass, weight in zip(started, weights):
            loss, gradient = network_pass.backward(weight)
            losses.append(loss)
            gradients.extend(gradient)
            trained.extend(network_pass.network.trainable_weights)
        self._log("loss", losses, share)
        is_finite = tf.constant(True)  # loss scaling looks for itself, and learns from it
        if not isinstance(self.optimizer, keras.optimizers.LossScaleOptimizer):
            is_finite = global_batch.everywhere(nonfinite.are_finite(gradients))
        is_lost = tf.logical_or(is_bad, tf.logical_not(is_finite))
        self._metric("nonfinite").update_state(tf.logical_and(is_lost, is_ranked))
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
        check_targets_given(y)
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

    def network_loss(self, network, x, y, y_pred, sample_weight):
        """The reduced Keras loss of one network, its regularizers included."""
        del network
        return self.compute_loss(x, y, y_pred, sample_weight)

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
        """`keras.Model.save_own_variables`, and the states of random layers."""
        super().save_own_variables(store)
        save_seeds(self.networks, store)

    def load_own_variables(self, store):
        """`keras.Model.load_own_variables`, and the states of random layers where the file has them."""
        super().load_own_variables(without_seeds(store))
        load_seeds(self.networks, store)

    def _build_for(self, x):
        """Keras would do it, were this model called rather than its networks."""
        if self.built:
            return
        for network in self.networks:
            if not network.built:
                network(keras.tree.map_structure(lambda t: keras.KerasTensor(t.shape, t.dtype.name), x))
        self.build(keras.tree.map_structure(lambda t: tuple(t.shape), x))


def _is_object(value):
    return isinstance(value, dict) and "class_name" in value


def _check_configuration(networks, score, rule, recompute, microbatch_size):
    for network in networks:
        if not isinstance(network, keras.Model):
            raise ValueError(f"{network!r} is not a keras.Model; pass the network to train.")
    if isinstance(score, _RULES):
        raise ValueError(f"score={score!r} is a rule, not a score; write rule={score!r}.")
    if score not in (None, "gradient"):
        resolve(score)
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
            check_no_batch_mixing(network)
