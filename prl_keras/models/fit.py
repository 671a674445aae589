"""Keras's `fit` and `train_on_batch`, with checks before and clean-up after, as functions of a model."""

import functools
import inspect
import typing
import warnings
from collections.abc import Callable

import keras
import numpy as np

from prl_keras.epsilon.during_training import NoiseWatch
from prl_keras.inputs import streams
from prl_keras.inputs.arrays import check_class_weight, check_data, check_weights
from prl_keras.inputs.outputs import expected_outputs
from prl_keras.inputs.valid_labels import labels_of
from prl_keras.keras_gaps import backups
from prl_keras.keras_gaps.internals import moving_variables
from prl_keras.keras_gaps.replicas import share_statistics
from prl_keras.keras_gaps.xla import without_xla_if_it_cannot
from prl_keras.models.configuration import check_compiled, check_scope, needs_rows


def checked_fit(
    model: keras.Model,
    keras_fit: Callable[..., keras.callbacks.History],
    x: typing.Any,
    y: typing.Any,
    *args: typing.Any,
    **kwargs: typing.Any,
) -> keras.callbacks.History:
    """`WeightedModel.fit`: checks, runs `keras_fit`, then averages the moving statistics of the replicas."""
    check_compiled(model)
    check_scope(model)
    check_data(model, x, y)
    given: dict[str, typing.Any]
    given = inspect.signature(keras.Model.fit).bind(model, x, y, *args, **kwargs).arguments
    given = {name: value for name, value in given.items() if name not in ("self", "x", "y")}
    check_weights(given.get("sample_weight"))
    check_class_weight(given.get("class_weight"))
    validation = given.get("validation_data")
    if isinstance(validation, (tuple, list)) and len(validation) in (2, 3):
        try:
            check_data(model, validation[0], validation[1], may_be_empty=True)
            check_weights((*validation, None)[2])
        except ValueError as error:
            raise ValueError(f"validation_data: {error}") from None
    callbacks = backups.listed(given.get("callbacks"))
    backups.check_backups(model, callbacks)
    if model.selection_record not in callbacks:
        model.record_selection(None)  # of an earlier fit; this fit's callbacks attach themselves
    given["callbacks"] = _with_watch(model, given.get("callbacks"))

    def fit():
        y_pred = expected_outputs(model.networks[0], x)
        data = streams.checked(x, functools.partial(labels_of, model, y_pred=y_pred), needs_rows(model))
        with streams.as_value_errors():
            return keras_fit(data, y, **given)

    history = without_xla_if_it_cannot(model, fit)
    if history.epoch and "loss" not in history.history:
        raise ValueError("The data set is empty: it gave no batch, and nothing was trained.")
    average_statistics(model)
    model.look_at_classes()
    return history


def checked_train_on_batch(
    model: keras.Model,
    keras_train_on_batch: Callable[..., typing.Any],
    x: typing.Any,
    y: typing.Any,
    sample_weight: typing.Any,
    class_weight: dict[int, float] | None,
    **kwargs: typing.Any,
) -> typing.Any:
    """Runs the checks of `fit`, then `keras.Model.train_on_batch`."""
    check_compiled(model)
    check_scope(model)
    watch(model)  # a later fit reuses the same graph
    check_data(model, x, y, may_be_empty=True)
    check_weights(sample_weight)
    check_class_weight(class_weight)
    train = functools.partial(keras_train_on_batch, x, y, sample_weight, class_weight, **kwargs)
    return without_xla_if_it_cannot(model, train)


def logs_of_epoch(model: keras.Model, logs: dict[str, typing.Any]) -> dict[str, typing.Any]:
    """The logs of an epoch; if every step of it was skipped, with a warning and NaN as `loss`."""
    if not model.step_metrics.is_nothing_trained():
        return logs
    warnings.warn(
        "Nothing was trained in a whole epoch: every step was skipped, as all the examples or the gradient "
        "were non-finite. Look for NaN in the data, prl_keras.check(model, (x, y)); if the gradient is the "
        "cause, scale the inputs, take a lower learning rate, or look at the loss function's gradient.",
        stacklevel=2,
    )
    return {**logs, "loss": float("nan")}


class _TellsOfNaN(keras.callbacks.Callback):
    """Shows Keras's `TerminateOnNaN`, which looks at batches alone, an epoch in which nothing was trained."""

    def __init__(self, callbacks):
        super().__init__()
        self._of_user, self._batch = callbacks, 0

    def on_train_batch_end(self, batch, logs=None):
        self._batch = batch

    def on_epoch_end(self, epoch, logs=None):
        loss = (logs or {}).get("loss", 0.0)
        for callback in self._of_user if np.isnan(loss) else []:
            if isinstance(callback, keras.callbacks.TerminateOnNaN):
                callback.on_batch_end(self._batch, {"loss": loss})


def watch(model: keras.Model) -> NoiseWatch | None:
    """The model's `NoiseWatch`, created on first use; None if no rule with an epsilon trims by a score."""
    if model.noise_watch is None and model.score is not None and hasattr(model.rule, "epsilon"):
        model.noise_watch = NoiseWatch(model)
    return model.noise_watch


def average_statistics(model: keras.Model) -> None:
    """Sets the moving statistics of every replica to their mean, for `save` and `evaluate`."""
    variables = [variable for network in model.networks for variable in moving_variables(network)]
    share_statistics(model.distribute_strategy, variables)


def _with_watch(model, callbacks):
    """The callbacks, with those of the model first: a file saved after an epoch then holds its estimate."""
    is_list = isinstance(callbacks, keras.callbacks.CallbackList)
    given = callbacks.callbacks if is_list else backups.listed(callbacks)
    watching = [each for each in [watch(model)] if each is not None and each not in given]
    if any(isinstance(callback, keras.callbacks.TerminateOnNaN) for callback in given):
        watching.append(_TellsOfNaN(list(given)))
    if not is_list:
        return [*watching, *given] if watching else callbacks
    for each in watching:
        each.set_model(model)
    callbacks.callbacks[:0] = watching
    return callbacks
