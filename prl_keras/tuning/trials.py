"""One training of a setting: its record, and whether its weights are kept."""

import math
import pathlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import keras
import keras_tuner

from prl_keras import files
from prl_keras.keras_gaps.weights_files import weights_in_memory
from prl_keras.tuning import objectives
from prl_keras.validate import is_number

FAILED = "failure"


def execute(
    fields: Mapping[str, Any],
    hypermodel: keras_tuner.HyperModel,
    hp: keras_tuner.HyperParameters,
    make_model: Callable[[], keras.Model],
    train: tuple[Any, Any],
    judged: tuple[Any, Any],
    objective: str,
    *,
    prefix: str = "val_",
    test_data: Sequence[Any] | None = None,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    keep: Callable[[keras.Model, dict[str, float]], None],
) -> dict[str, Any]:
    """Trains and measures a model, and returns its record.

    Args:
        fields: The record's first fields; the training uses their `seed` and `epochs`.
        hypermodel, hp: A `RobustHyperModel` and its hyperparameters.
        make_model: Returns the untrained model; called after seeding.
        train: `(x, y)` to train on.
        judged: `(x, y)` whose metrics get `prefix`.
        objective: Name of the metric that must be finite.
        test_data: Clean `(x, y)`; reported as `test_...`.
        callbacks: For `fit`.
        keep: Called with the trained model and its metrics.

    Returns:
        A dict: fields, the searched values, metrics, seconds, and `failure`, the message if the training
        raised or the objective is non-finite.

    Raises:
        OSError, ValueError: from `keep`.
    """
    start, record = time.monotonic(), dict(fields)
    try:
        record |= hypermodel.values(hp)
        keras.utils.set_random_seed(fields["seed"])
        model = make_model()
        callbacks = [*callbacks, keras.callbacks.TerminateOnNaN()]
        hypermodel.fit(hp, model, *train, epochs=fields["epochs"], verbose=0, callbacks=callbacks)
        metrics = objectives.noisy_metrics(model, hypermodel.loss, *judged, prefix=prefix)
        if test_data is not None:
            logs = model.evaluate(*test_data, batch_size=1024, verbose=0, return_dict=True)
            metrics |= {f"test_{name}": float(value) for name, value in logs.items()}
        record |= {"metrics": metrics}
        if not math.isfinite(metrics[objective]):
            raise keras_tuner.errors.FailedTrialError(f"{objective} is {metrics[objective]}.")
    except keras_tuner.errors.FatalError:
        raise
    except Exception as error:
        record |= {FAILED: f"{type(error).__name__}: {error}"}
    else:
        keep(model, metrics)  # its errors are those of the disk, not of the training
    return {**record, "seconds": time.monotonic() - start}


def keep_if_best(
    model: keras.Model,
    metrics: Mapping[str, float],
    path: pathlib.Path | str,
    objective: keras_tuner.Objective,
    others: Iterable[pathlib.Path | str],
) -> None:
    """Writes the weights to `path` if no other record is as good or better; failed ones do not count.

    Raises:
        OSError: if the weights cannot be written.
        ValueError: naming the file, if a record is damaged.
    """
    records = [read_record(other, objective.name) for other in others]
    values = [record["metrics"][objective.name] for record in records if FAILED not in record]
    if all(objective.better_than(metrics[objective.name], value) for value in values):
        with files.replacing(path) as temporary:
            temporary.write_bytes(weights_in_memory(model).getbuffer())


def read_record(path: pathlib.Path | str, objective: str | None = None) -> dict[str, Any]:
    """The record of a training that has ended, from its file.

    Raises:
        ValueError: naming the file, if it is damaged, or a successful training lacks the metric `objective`.
    """
    of_a_trial = ("trial", "execution") if pathlib.Path(path).name.startswith("execution") else ("training",)
    remedy = f"Remove {path}: the training is repeated."
    record = files.read_json(path, (*of_a_trial, "epochs", "seconds"), remedy)
    metrics = record.get("metrics")
    if FAILED in record or (
        isinstance(metrics, dict) and (objective is None or is_number(metrics.get(objective)))
    ):
        return record
    lacks = "metrics" if objective is None else f"the metric {objective}"
    raise ValueError(f"{path} is damaged: it lacks {lacks}. {remedy}")


def in_words(record: Mapping[str, Any], objective: str) -> str:
    """The failure or the objective of a training, and its seconds."""
    outcome = record.get(FAILED) or f"{objective} {record['metrics'][objective]:.5g}"
    return f"{outcome} [{record['seconds']:.1f} s]"


def load_weights(model: keras.Model, path: pathlib.Path | str, remedy: str) -> keras.Model:
    """The model, with weights and optimizer state from a file.

    Raises:
        ValueError: naming the file, if it is damaged or missing; it ends with `remedy`.
    """
    if not model.optimizer.built:  # a LossScaleOptimizer would make its variables again
        model.optimizer.build(model.trainable_variables)
    try:
        model.load_weights(path)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{path} is damaged or missing: {error}. {remedy}") from error
    return model
