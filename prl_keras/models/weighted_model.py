"""The training step of all methods: score each example, weigh it, step on the weighted loss."""

import typing
from collections.abc import Callable, Sequence

import keras
import numpy as np
import tensorflow as tf

from prl_keras.epsilon.estimated import own_epsilon
from prl_keras.inputs import outputs
from prl_keras.inputs.arrays import check_targets_given
from prl_keras.inputs.rows import batch_size
from prl_keras.keras_gaps import internals, own_methods, replicas, seeds
from prl_keras.keras_gaps.xla import without_xla_if_it_cannot
from prl_keras.models import fit, in_inference
from prl_keras.models.batch import ranked_batch, read_batch
from prl_keras.models.configuration import (
    can_be_compiled_by_xla,
    check_configuration,
    check_jit_compile,
    check_rule_gave_one_weight_each,
)
from prl_keras.models.consistency import compare
from prl_keras.models.forward import forward
from prl_keras.models.global_batch import Weighed, select
from prl_keras.models.guard import Guard
from prl_keras.models.passes import forward_pass
from prl_keras.models.settings import Setting, trace_again
from prl_keras.models.step_metrics import StepMetrics
from prl_keras.models.weights_of_outputs import weights_of_outputs, with_axes_of_predictions


class WeightedModel(keras.Model):
    """The common part of `RobustModel` (one network) and `CoTeachingModel` (two).

    A subclass defines `networks`, and may override `weigh`.

    Attributes:
        score, rule, recompute, microbatch_size, unit, consistency: As given; see `RobustModel`. An assignment
            has effect from the next step on (`models.settings`).
        kept_by_class: The kept fraction of each class in the last epoch, a float array `[classes]`; None
            without class labels.
        selection_record: The record that `record_selection` attached, or None.
        noise_watch: The `NoiseWatch` that estimates epsilon in `fit`, or None.
    """

    score = Setting()
    rule = Setting()
    recompute = Setting()
    microbatch_size = Setting()
    unit = Setting()
    consistency = Setting()
    kept_by_class: typing.Any
    selection_record: typing.Any
    noise_watch: typing.Any

    def __init__(
        self,
        networks: Sequence[keras.Model],
        score: str | keras.losses.Loss | Callable[..., tf.Tensor] | None,
        rule: Callable[..., tf.Tensor] | None,
        recompute: bool,
        microbatch_size: int | None,
        unit: str,
        consistency: typing.Any,
        **kwargs: typing.Any,
    ) -> None:
        check_configuration(networks, score, rule, recompute, microbatch_size, unit, consistency)
        for network in networks:
            own_methods.warn_of_unused(network)
        # compile() chooses loss scaling by this model's precision, so this model takes the network's.
        super().__init__(**{"dtype": networks[0].dtype_policy, **kwargs})
        self.score, self.rule = score, own_epsilon(rule)
        # As an attribute, so that Keras saves the variable of an estimated epsilon with the weights.
        self._epsilon = getattr(getattr(self.rule, "epsilon", None), "state", None)
        self.recompute, self.microbatch_size, self.unit = recompute, microbatch_size, unit
        self.consistency = consistency
        self.supports_jit = can_be_compiled_by_xla(self)
        self.kept_by_class = self.selection_record = self.noise_watch = None
        self.step_metrics = StepMetrics(self, networks[0])
        self.built = all(network.built for network in networks)

    def settings_changed(self) -> None:
        """Checks the settings after an assignment (ValueError), and makes the next step use them."""
        options = (self.score, self.rule, self.recompute, self.microbatch_size, self.unit, self.consistency)
        check_configuration(self.networks, *options)
        if self.compiled and self.jit_compile:
            check_jit_compile(self)
        self.supports_jit = can_be_compiled_by_xla(self)
        trace_again(self)

    @property
    def networks(self) -> list[keras.Model]:
        """The networks that are trained."""
        raise NotImplementedError

    # The step.

    def train_step(self, data: typing.Any) -> dict[str, typing.Any]:
        """One step of the paper's algorithms 2 to 4. A non-finite step changes no state (`Guard`).

        Args:
            data: A batch `(x, y)` or `(x, y, sample_weight)`.
        """
        batch = read_batch(self, data)
        guard = Guard(self.networks)

        # 1. Score the batch.
        passes = [forward_pass(self, network, batch) for network in self.networks]
        batch = ranked_batch(self, batch, passes)
        compare(self, batch, passes)  # with `consistency` also with the other network or a teacher
        for each in passes:
            each.score(batch)

        # 2. Weigh: the rule drops the top epsilon of the global batch; a pair exchanges its selections.
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

    def weigh(self, examples: typing.Any) -> list[Weighed]:
        """Applies the rule to the `Examples` of the global batch: one `Weighed` per network."""
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

    def where_networks_differ(self, batch: typing.Any, predictions: Sequence[typing.Any]) -> tf.Tensor | None:
        """Whether two networks predict different classes, bool `[n]`; None if the exchange ignores it."""
        return None

    def network_loss(
        self,
        network: keras.Model,
        x: typing.Any,
        y: typing.Any,
        y_pred: typing.Any,
        sample_weight: typing.Any,
        training: bool = True,
    ) -> tf.Tensor:
        """The reduced Keras loss of one network, by its `compute_loss`: with what its layers add.

        A subclass of this model that defines `compute_loss` is asked instead of the network.
        """
        owner = self if own_methods.defines(self, "compute_loss") else network
        return own_methods.compute_loss(owner, self, x, y, y_pred, sample_weight, training=training)

    def test_step(self, data: typing.Any) -> dict[str, typing.Any]:
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        check_targets_given(y)
        self.build_for(x)
        predictions = [forward(network, x, training=False) for network in self.networks]
        targets, given = outputs.without_lists(self.networks[0], self.loss, y, sample_weight)
        losses = []
        for network, y_pred in zip(self.networks, predictions):
            parts = outputs.split(outputs.loss_of(self, y_pred), targets, y_pred, given)
            weights = given
            if given is not None and self.loss is not None:  # Keras would broadcast `[batch]` along the steps
                weights = weights_of_outputs(parts, y_pred, tf.ones([batch_size(y)]), None)
            y_true = with_axes_of_predictions(parts, targets)
            losses.append(self.network_loss(network, x, y_true, y_pred, weights, training=False))
        self.step_metrics.log_losses(losses, batch_size(x))
        logs = self._logs(x, y, predictions, sample_weight)
        return {name: value for name, value in logs.items() if name not in self.step_metrics.names}

    def _logs(self, x, y, predictions, sample_weight):
        for y_pred in predictions:
            logs = self.compute_metrics(x, y, y_pred, sample_weight=sample_weight)
        for network, y_pred in zip(self.networks[::-1], predictions[::-1]):
            logs |= own_methods.compute_metrics(network, x, y, y_pred, sample_weight)
        return replicas.logs_for_fit(logs)

    # Observers.

    @property
    def observers(self) -> list[typing.Any]:
        """The observers of each step; see `models.step_metrics.StepMetrics`."""
        return [
            each for each in (self.step_metrics, self.noise_watch, self.selection_record) if each is not None
        ]

    def record_selection(self, record: typing.Any) -> None:
        """Attaches `record` as an observer of each training step; None detaches it.

        Args:
            record: A `SelectionRecord`, or any object with `update(batch, passes, selected)`.
        """
        if record is not self.selection_record:
            self.selection_record = record
            trace_again(self)

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """The metrics of a Keras model, and those that the networks hold.

        Two metrics of the same name would be logged as one, so the first one counts: a pair logs those of its
        first network. `kept_fraction_min_class` is left out without class labels.
        """
        found = [m for m in super().metrics if m is not self.class_metric or self.step_metrics.has_classes()]
        names = {metric.name for metric in found}
        for metric in self._metrics_of_networks():
            if metric.name not in names:
                found.append(metric)
                names.add(metric.name)
        return found

    def get_layer(self, name: str | None = None, index: int | None = None) -> keras.layers.Layer:
        """`keras.Model.get_layer`; by name also the layers of the networks, the first network's first."""
        layers = [layer for network in self.networks for layer in network.layers if layer.name == name]
        return layers[0] if layers and index is None else super().get_layer(name, index)

    def _metrics_of_networks(self):
        return [metric for network in self.networks for metric in own_methods.own_metrics(network)]

    @property
    def epsilon_estimate(self) -> typing.Any:
        """The `EpsilonEstimate` of the last epoch of `fit` (see `NoiseWatch`), or None. It is not saved."""
        return None if self.noise_watch is None else self.noise_watch.estimate

    def look_at_classes(self) -> None:
        """Stores the kept fraction of each class in `kept_by_class`."""
        fractions = self.step_metrics.look_at_classes()
        self.kept_by_class = self.kept_by_class if fractions is None else fractions

    # A batch, without training.

    def example_scores(
        self, x: typing.Any, y: typing.Any, sample_weight: typing.Any = None
    ) -> list[tf.Tensor]:
        """How suspect each example is, in inference mode: float32 `[batch]` per network, higher = more.

        With `unit="element"` the scores have the shape of the labels, `[batch, ...]`.

        Raises:
            ValueError: if the model was built with `score=None`.
        """
        return in_inference.example_scores(self, x, y, sample_weight)

    def example_weights(
        self, x: typing.Any, y: typing.Any, sample_weight: typing.Any = None
    ) -> list[tf.Tensor]:
        """The weights that the rule would give now, in inference mode: float32 `[batch]` per network.

        With `unit="element"` the weights have the shape of the labels, `[batch, ...]`.
        """
        return in_inference.example_weights(self, x, y, sample_weight)

    # Keras's hooks.

    def fit(
        self, x: typing.Any = None, y: typing.Any = None, *args: typing.Any, **kwargs: typing.Any
    ) -> keras.callbacks.History:
        """Checks the data, then runs `keras.Model.fit`.

        Arrays are checked before any weight changes. Labels and weights in a `tf.data.Dataset`, a
        `PyDataset` or a generator are checked batch by batch: the error comes before the step on the bad
        batch, but after the steps before it. If XLA lacks an operation, `fit` warns and turns `jit_compile`
        off.

        Raises:
            ValueError: for an empty data set, missing targets, class labels that are not integers in
                `[0, classes)` or shares of classes in `[0, 1]`, or negative weights; for a
                `BackupAndRestore` whose folder holds the backup of another score, rule or shape.
        """
        return fit.checked_fit(self, super().fit, x, y, *args, **kwargs)

    def train_on_batch(
        self,
        x: typing.Any,
        y: typing.Any = None,
        sample_weight: typing.Any = None,
        class_weight: dict[int, float] | None = None,
        **kwargs: typing.Any,
    ) -> typing.Any:
        """Runs the checks of `fit`, then `keras.Model.train_on_batch`."""
        arguments = (x, y, sample_weight, class_weight)
        return fit.checked_train_on_batch(self, super().train_on_batch, *arguments, **kwargs)

    def evaluate(self, *args: typing.Any, **kwargs: typing.Any) -> typing.Any:
        """`keras.Model.evaluate`, with the moving statistics averaged over the replicas, as `save` does."""
        fit.average_statistics(self)
        return without_xla_if_it_cannot(self, lambda: super(WeightedModel, self).evaluate(*args, **kwargs))

    def predict(self, *args: typing.Any, **kwargs: typing.Any) -> typing.Any:
        """`keras.Model.predict`; without XLA if XLA lacks an operation."""
        return without_xla_if_it_cannot(self, lambda: super(WeightedModel, self).predict(*args, **kwargs))

    def predict_step(self, data: typing.Any) -> typing.Any:
        """`keras.Model.predict_step`; the networks' own if they define it, averaged for a pair."""
        if not any(own_methods.defines(network, "predict_step") for network in self.networks):
            return super().predict_step(data)
        predictions = [network.predict_step(data) for network in self.networks]
        return keras.tree.map_structure(lambda *each: sum(each) / len(each), *predictions)

    def export(
        self,
        filepath: typing.Any,
        format: str = "tf_saved_model",
        verbose: bool | None = None,
        input_signature: typing.Any = None,
        **kwargs: typing.Any,
    ) -> None:
        """`keras.Model.export` of what `predict` gives: the network's outputs, of a pair their mean."""
        if input_signature is None:  # Keras would look for this model's own inputs
            input_signature = internals.input_signature(self.networks[0])
        super().export(filepath, format, verbose, input_signature, **kwargs)

    def reset_metrics(self) -> None:
        """Updates `kept_by_class` and resets the metrics. Keras calls it before each epoch and evaluation."""
        self.look_at_classes()
        super().reset_metrics()
        for metric in self._metrics_of_networks():
            metric.reset_state()

    @property
    def jit_compile(self) -> bool | str:
        """Whether XLA compiles the training step, as `compile` set it."""
        return super().jit_compile

    @jit_compile.setter
    def jit_compile(self, value: bool | str) -> None:
        if value:
            check_jit_compile(self)
        keras.Model.jit_compile.fset(self, value)

    @property
    def output_names(self) -> list[str] | None:
        """The names that match dicts of losses and targets to a list of outputs, or None."""
        return getattr(self.networks[0], "output_names", None)

    def build(self, input_shape: typing.Any) -> None:
        for network in self.networks:
            if not network.built:
                network.build(input_shape)

    def build_for(self, x: typing.Any) -> None:
        """Builds the networks for inputs `x`. Keras does not, because the step calls them directly."""
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
        return fit.logs_of_epoch(self, replicas.results_or_logs(self, logs))

    def save_own_variables(self, store: typing.Any) -> None:
        """`keras.Model.save_own_variables`, and the states of random layers."""
        super().save_own_variables(store)
        seeds.save_seeds(self.networks, store)

    def load_own_variables(self, store: typing.Any) -> None:
        """`keras.Model.load_own_variables`, and the states of random layers if the file has them."""
        own = seeds.without_seeds(store)
        if self._epsilon is not None and np.ndim(own["0"]) == 0:  # saved when its state was one number
            self.rule.epsilon.go_on_from(np.asarray(own["0"]).item())
        else:
            super().load_own_variables(own)
        seeds.load_seeds(self.networks, store)

    def get_config(self) -> dict[str, typing.Any]:
        return {
            **super().get_config(),
            "score": keras.saving.serialize_keras_object(self.score),
            "rule": keras.saving.serialize_keras_object(self.rule),
            "recompute": self.recompute,
            "microbatch_size": self.microbatch_size,
            "unit": self.unit,
            "consistency": keras.saving.serialize_keras_object(self.consistency),
        }

    @classmethod
    def from_config(
        cls, config: dict[str, typing.Any], custom_objects: dict[str, typing.Any] | None = None
    ) -> typing.Self:
        config = {
            key: keras.saving.deserialize_keras_object(value, custom_objects) if _is_object(value) else value
            for key, value in config.items()
        }
        return cls(**config)


def _is_object(value):
    return isinstance(value, dict) and "class_name" in value
