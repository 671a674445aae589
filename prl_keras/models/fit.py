"""Keras's `fit`, `evaluate` and `predict` with what is checked before and put right after."""

import contextlib
import functools
import inspect

import keras

from prl_keras.epsilon.watch import NoiseWatch
from prl_keras.inputs import streams
from prl_keras.inputs.arrays import check_class_weight, check_data, check_weights
from prl_keras.inputs.valid_labels import labels_of
from prl_keras.keras_gaps import backups
from prl_keras.keras_gaps.internals import moving_variables
from prl_keras.keras_gaps.replicas import share_statistics
from prl_keras.keras_gaps.xla import without_xla_if_it_cannot
from prl_keras.models.configuration import check_compiled, check_scope
from prl_keras.rules.trim import Trim


class CheckedFit:
    """Mixin for a `keras.Model` that has a list of `networks`."""

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
        check_compiled(self)
        check_scope(self)
        check_data(self, x, y)
        given = inspect.signature(keras.Model.fit).bind(self, x, y, *args, **kwargs).arguments
        given = {name: value for name, value in given.items() if name not in ("self", "x", "y")}
        check_weights(given.get("sample_weight"))
        check_class_weight(given.get("class_weight"))
        validation = given.get("validation_data")
        if isinstance(validation, (tuple, list)) and len(validation) in (2, 3):
            with _naming("validation_data"):
                check_data(self, *validation[:2], may_be_empty=True)
                check_weights((*validation, None)[2])
        callbacks = backups.listed(given.get("callbacks"))
        backups.check_backups(self, callbacks)
        if self._record not in callbacks:
            self.record_selection(None)  # one of an earlier fit; its own callbacks attach themselves
        given["callbacks"] = self._with_watch(given.get("callbacks"))

        def fit():
            data = streams.checked(x, functools.partial(labels_of, self))
            with streams.as_value_errors():
                return super(CheckedFit, self).fit(data, y, **given)

        history = without_xla_if_it_cannot(self, fit)
        if history.epoch and "loss" not in history.history:
            raise ValueError("The data set is empty: it gave no batch, and nothing was trained.")
        self._share_statistics()
        self._look_at_classes()
        return history

    def train_on_batch(self, x, y=None, sample_weight=None, class_weight=None, **kwargs):
        """`keras.Model.train_on_batch`, after the checks of `fit`."""
        check_compiled(self)
        check_scope(self)
        self._with_watch(None)  # fit goes on with the same graph
        check_data(self, x, y, may_be_empty=True)
        check_weights(sample_weight)
        check_class_weight(class_weight)
        train = functools.partial(super().train_on_batch, x, y, sample_weight, class_weight, **kwargs)
        return without_xla_if_it_cannot(self, train)

    def evaluate(self, *args, **kwargs):
        """`keras.Model.evaluate`, of the moving statistics that `save` writes: the mean over the replicas."""
        self._share_statistics()
        return without_xla_if_it_cannot(self, functools.partial(super().evaluate, *args, **kwargs))

    def predict(self, *args, **kwargs):
        """`keras.Model.predict`; without XLA where it cannot."""
        return without_xla_if_it_cannot(self, functools.partial(super().predict, *args, **kwargs))

    def reset_metrics(self):
        """`keras.Model.reset_metrics`, which Keras calls before each epoch and each evaluation."""
        self._look_at_classes()
        super().reset_metrics()

    def _with_watch(self, callbacks):
        """The callbacks with the one that estimates epsilon, first: what is saved after an epoch has it."""
        if self._watch is None and self.score is not None and isinstance(self.rule, Trim):
            self._watch = NoiseWatch(self)
        if self._watch is None:
            return callbacks
        if not isinstance(callbacks, keras.callbacks.CallbackList):
            return [self._watch, *backups.listed(callbacks)]
        if self._watch not in callbacks.callbacks:
            self._watch.set_model(self)
            callbacks.callbacks.insert(0, self._watch)
        return callbacks

    def _look_at_classes(self):
        metric = self.class_metric
        fractions = None if metric is None else metric.fractions()
        if fractions is None:
            return
        self.kept_by_class = fractions
        if isinstance(self.rule, Trim):
            metric.warn_of_dropped()

    def _share_statistics(self):
        variables = [variable for network in self.networks for variable in moving_variables(network)]
        share_statistics(self.distribute_strategy, variables)


@contextlib.contextmanager
def _naming(argument):
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{argument}: {error}") from None
