"""One training of a setting: what is recorded of it, and whether its weights are kept."""

import math
import time

import keras
import keras_tuner

from prl_keras import files
from prl_keras.experiments import tuning_objectives

FAILED = "failure"


def execute(
    fields, hypermodel, hp, make_model, train, judged, objective, *, prefix="val_", test_data=None,
    callbacks=(), keep,
):  # fmt: skip
    """Trains and measures a model, and gives the record of it.

    Args:
        fields: The record's first fields; `seed` and `epochs` are those of the training.
        hypermodel, hp: A `RobustHyperModel` and the values of its hyperparameters.
        make_model: Function without arguments that gives the untrained model, called after seeding.
        train: `(x, y)` to train on.
        judged: `(x, y)` of which the metrics get `prefix`.
        objective: Name of the metric that has to be finite.
        test_data: `(x, y)`, clean; reported as `test_...`.
        callbacks: Of `fit`.
        keep: Function of the trained model and its metrics.

    Returns:
        A dict: fields, the searched values, metrics, `failure` where it raised or the objective is not finite
        (the message), seconds.

    Raises:
        OSError, ValueError: what `keep` raises.
    """
    start, record = time.monotonic(), dict(fields)
    try:
        record |= hypermodel.values(hp)
        keras.utils.set_random_seed(fields["seed"])
        model = make_model()
        callbacks = [*callbacks, keras.callbacks.TerminateOnNaN()]
        hypermodel.fit(hp, model, *train, epochs=fields["epochs"], verbose=0, callbacks=callbacks)
        metrics = tuning_objectives.noisy_metrics(model, hypermodel.loss, *judged, prefix=prefix)
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
        keep(model, metrics)  # whose errors are the disk's, not the training's
    return {**record, "seconds": time.monotonic() - start}


def keep_if_best(model, path, metrics, objective, others):
    """Writes the weights to `path`, if no other record is as good or better.

    Args:
        metrics: Of the model.
        objective: A `keras_tuner.Objective`.
        others: Paths of the records that there are; failed ones do not count.

    Raises:
        OSError: if they cannot be written.
        ValueError: naming the file, if a record is damaged.
    """
    records = [files.read_json(other) for other in others]
    values = [record["metrics"][objective.name] for record in records if FAILED not in record]
    if all(objective.better_than(metrics[objective.name], value) for value in values):
        with files.replacing(path) as temporary:
            model.save_weights(temporary)
