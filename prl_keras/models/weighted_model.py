"""The training step of all methods: score each example, weigh it, step on the weighted loss."""

import keras
import tensorflow as tf

from prl_keras.epsilon.estimated import own_epsilon
from prl_keras.inputs.arrays import check_targets_given
from prl_keras.keras_gaps import replicas, seeds
from prl_keras.keras_gaps.xla import without_xla_if_it_cannot
from prl_keras.models import fit, in_inference
from prl_keras.models.batch import ranked_batch, read_batch
from prl_keras.models.configuration import (
    check_configuration,
    check_jit_compile,
    check_rule_gave_one_weight_each,
    is_kept_count_static,
)
from prl_keras.models.forward import forward
from prl_keras.models.global_batch import Weighed, select
from prl_keras.models.guard import Guard
from prl_keras.models.passes import forward_pass
from prl_keras.models.step_metrics import StepMetrics


class WeightedModel(keras.Model):
    """What `RobustModel` (one network) and `CoTeachingModel` (two) share.

    A subclass names its networks in `networks`, and may say more about how they are weighed.
    """

    def __init__(self, networks, score, rule, recompute, microbatch_size, unit, **kwargs):
        check_configuration(networks, score, rule, recompute, microbatch_size, unit)
        # compile() chooses loss scaling by this model's own precision, so it takes the network's.
        super().__init__(**{"dtype": networks[0].dtype_policy, **kwargs})
        self.score, self.rule = score, own_epsilon(rule)
        # An attribute, so that Keras saves the variable of an estimated epsilon with the weights.
        self._epsilon = getattr(getattr(self.rule, "epsilon", None), "value", None)
        self.recompute, self.microbatch_size, self.unit = recompute, microbatch_size, unit
        self.supports_jit = not recompute or is_kept_count_static(score, self.rule)
        self.kept_by_class = self.selection_record = self.noise_watch = None
        self.step_metrics = StepMetrics(self, networks[0])
        self.built = all(network.built for network in networks)

    @property
    def networks(self):
        """The list of the networks that are trained."""
        raise NotImplementedError

    # The step.

    def train_step(self, data):
        """One step of the paper's algorithms 2 to 4. Nothing moves in a step that is not finite (`Guard`)."""
        batch = read_batch(self, data)
        guard = Guard(self.networks)

        # 1. Score the batch.
        passes = [forward_pass(self, network, batch) for network in self.networks]
        batch = ranked_batch(self, batch, passes)
        for each in passes:
            each.score(batch)

        # 2. Weigh: the rule drops the top epsilon of the global batch; a pair exchanges. See `weigh`.
        selected = select(self, passes, batch)
        for observer in self.observers:  # before the backward passes, which may replace losses
            observer.update(batch, passes, selected)

        # 3. The step on the weighted loss.
        steps = [
            p.backward(batch, *weighed) for p, *weighed in zip(passes, selected.weights, selected.factors)
        ]
        losses, gradients = zip(*steps)
        is_finite = guard.apply(self.optimizer, gradients, self.networks, selected)
        self.step_metrics.finish(batch, passes, losses, selected, is_finite)
        x, y, sample_weight, *_ = batch.of_examples
        return self._logs(x, y, [each.predictions for each in passes], sample_weight)

    def weigh(self, examples):
        """A list of `Weighed`, one for each network, from the `Examples` of the global batch."""
        if self.score is None:
            return [Weighed(tf.cast(examples.is_ranked, tf.float32), None)] * len(self.networks)
        arguments, named = [examples.is_ranked, self.optimizer.iterations], {}
        if getattr(self.rule, "takes_labels", False):
            arguments.append(examples.labels)
            named = {"classes": examples.classes} if getattr(self.rule, "ranks", False) else {}
        ties = [{"ties": losses} for losses in examples.losses] or [{}] * len(examples.scores)
        weighed = [Weighed(self.rule(s, *arguments, **named, **t), s) for s, t in zip(examples.scores, ties)]
        for each in weighed:
            check_rule_gave_one_weight_each(self.rule, each.weights)
        return weighed

    def where_networks_differ(self, batch, predictions):
        """Whether two networks predict different classes, bool `[n]`; None where nobody asks."""
        del batch, predictions

    def network_loss(self, network, x, y, y_pred, sample_weight):
        """The reduced Keras loss of one network, its regularizers included."""
        del network
        return self.compute_loss(x, y, y_pred, sample_weight)

    def test_step(self, data):
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        check_targets_given(y)
        self.build_for(x)
        predictions = [forward(network, x, training=False) for network in self.networks]
        losses = [
            self.network_loss(network, x, y, y_pred, sample_weight)
            for network, y_pred in zip(self.networks, predictions)
        ]
        self.step_metrics.log_evaluation(losses, tf.shape(keras.tree.flatten(x)[0])[0])
        logs = self._logs(x, y, predictions, sample_weight)
        return {name: value for name, value in logs.items() if name not in self.step_metrics.names}

    def _logs(self, x, y, predictions, sample_weight):
        for y_pred in predictions:
            logs = self.compute_metrics(x, y, y_pred, sample_weight=sample_weight)
        return replicas.logs_for_fit(logs)

    # Who looks on.

    @property
    def observers(self):
        """What is told of each step: see `models.step_metrics.StepMetrics`."""
        return [
            each for each in (self.step_metrics, self.noise_watch, self.selection_record) if each is not None
        ]

    def record_selection(self, record):
        """From now on tells `record` of each training step what it kept; None ends that.

        Args:
            record: A `SelectionRecord`, or anything with `update(batch, passes, selected)`.
        """
        if record is not self.selection_record:
            self.selection_record = record
            self.train_function = None  # the next fit traces the step anew

    @property
    def metrics(self):
        """As of any Keras model; how much was kept of each class only where there are classes."""
        return [m for m in super().metrics if m is not self.class_metric or self.step_metrics.has_classes()]

    @property
    def epsilon_estimate(self):
        """`EpsilonEstimate` of the last epoch of `fit` (see `NoiseWatch`), or None."""
        return None if self.noise_watch is None else self.noise_watch.estimate

    def look_at_classes(self):
        """Keeps what was kept of each class in `kept_by_class`."""
        fractions = self.step_metrics.look_at_classes()
        self.kept_by_class = self.kept_by_class if fractions is None else fractions

    # A batch, without training.

    def example_scores(self, x, y, sample_weight=None):
        """How suspect each example is, in inference mode: one float32 `[batch]` per network.

        With `unit="element"` in the shape of the labels, `[batch, ...]`.

        Raises:
            ValueError: if the model was built with `score=None`.
        """
        return in_inference.example_scores(self, x, y, sample_weight)

    def example_weights(self, x, y, sample_weight=None):
        """What the rule would make of this batch now, in inference mode: `[batch]` per network.

        With `unit="element"` in the shape of the labels, `[batch, ...]`.
        """
        return in_inference.example_weights(self, x, y, sample_weight)

    # Keras's hooks.

    def fit(self, x=None, y=None, *args, **kwargs):
        """`keras.Model.fit`, after a check of the data as far as they can be seen beforehand.

        Labels and weights in a `tf.data.Dataset`, a `PyDataset` or a generator are checked batch by batch: an
        error comes before the step that would take the bad batch, but after those before it. An operation
        that XLA lacks is warned of, and `jit_compile` is off from then on.

        Raises:
            ValueError: for an empty data set, missing targets, class labels that are not integers in
                `[0, classes)` or shares of classes in `[0, 1]`, or negative weights; of arrays before any
                weight has changed. For a `BackupAndRestore` whose folder holds the backup of another score,
                rule or shape.
        """
        return fit.checked_fit(self, super().fit, x, y, *args, **kwargs)

    def train_on_batch(self, x, y=None, sample_weight=None, class_weight=None, **kwargs):
        """`keras.Model.train_on_batch`, after the checks of `fit`."""
        arguments = (x, y, sample_weight, class_weight)
        return fit.checked_train_on_batch(self, super().train_on_batch, *arguments, **kwargs)

    def evaluate(self, *args, **kwargs):
        """`keras.Model.evaluate`, of the moving statistics that `save` writes: the mean over the replicas."""
        fit.average_statistics(self)
        return without_xla_if_it_cannot(self, lambda: super(WeightedModel, self).evaluate(*args, **kwargs))

    def predict(self, *args, **kwargs):
        """`keras.Model.predict`; without XLA where it cannot."""
        return without_xla_if_it_cannot(self, lambda: super(WeightedModel, self).predict(*args, **kwargs))

    def reset_metrics(self):
        """`keras.Model.reset_metrics`, which Keras calls before each epoch and each evaluation."""
        self.look_at_classes()
        super().reset_metrics()

    @property
    def jit_compile(self):
        """Whether XLA compiles the training step, as `compile` set it."""
        return super().jit_compile

    @jit_compile.setter
    def jit_compile(self, value):
        if value:
            check_jit_compile(self)
        keras.Model.jit_compile.fset(self, value)

    @property
    def output_names(self):
        """By which dicts of losses and targets go with a list of outputs."""
        return getattr(self.networks[0], "output_names", None)

    def build(self, input_shape):
        for network in self.networks:
            if not network.built:
                network.build(input_shape)

    def build_for(self, x):
        """Builds the networks for inputs; Keras would do it, were this model called rather than they."""
        if self.built:
            return
        for network in self.networks:
            if not network.built:
                network(keras.tree.map_structure(lambda t: keras.KerasTensor(t.shape, t.dtype.name), x))
        self.build(keras.tree.map_structure(lambda t: tuple(t.shape), x))

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        if iterator is not None and self._distribute_strategy is not None:
            data_batch = replicas.first_share(self._distribute_strategy, iterator)
        super()._maybe_symbolic_build(data_batch=data_batch)

    def _get_metrics_result_or_logs(self, logs):
        return replicas.results_or_logs(self, logs)

    def save_own_variables(self, store):
        """`keras.Model.save_own_variables`, and the states of random layers."""
        super().save_own_variables(store)
        seeds.save_seeds(self.networks, store)

    def load_own_variables(self, store):
        """`keras.Model.load_own_variables`, and the states of random layers where the file has them."""
        super().load_own_variables(seeds.without_seeds(store))
        seeds.load_seeds(self.networks, store)

    def get_config(self):
        return {
            **super().get_config(),
            "score": keras.saving.serialize_keras_object(self.score),
            "rule": keras.saving.serialize_keras_object(self.rule),
            "recompute": self.recompute,
            "microbatch_size": self.microbatch_size,
            "unit": self.unit,
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        config = {
            key: keras.saving.deserialize_keras_object(value, custom_objects) if _is_object(value) else value
            for key, value in config.items()
        }
        return cls(**config)


def _is_object(value):
    return isinstance(value, dict) and "class_name" in value
