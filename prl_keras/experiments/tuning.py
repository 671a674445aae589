"""Searches epsilon, its ramp, the method, the learning rate and the batch size with keras-tuner.

hypermodel = RobustHyperModel(make_network, loss="mse", metrics=["r2_score"], epsilon=(0.0, 0.6))
tuner = make_tuner("random", hypermodel, "val_trimmed_loss", "runs/search", max_trials=15, epochs=30)
tuner.search(x, noisy_y)  # holds out a fifth, with the labels it has; started again, it goes on
model = tuner.get_best_models()[0]
"""

import gc
import math
import numbers
import pathlib
import time

import keras
import keras_tuner
import numpy as np

from prl_keras.experiments import files, tuning_objectives, tuning_oracles
from prl_keras.experiments.batches import check_integer

_FAILED = "failure"
_SETTINGS = "search.json"


class RobustTuner(keras_tuner.Tuner):
    """A keras-tuner Tuner for noisy validation data; `make_tuner` makes one.

    As any Tuner (`get_best_models`, `get_best_hyperparameters`, `results_summary`, several machines), and:

        * Each execution of a trial is a file, `trial_*/execution_*.json`, written when it has ended. A search
          that was killed and is started again takes up what was running and repeats no execution that ended.
        * An execution whose objective is not finite, or that raises, makes its trial a failed one, with
          the message in its file; the search goes on.
        * Trials train from scratch, also those of hyperband, in which a ramp would otherwise start anew.
        * Execution i of each trial has the same seed and, without `validation_data`, the same held out part,
          so that trials are compared on equal terms. Parts of successive executions do not overlap.
    """

    def search(
        self,
        x,
        y,
        *,
        validation_data=None,
        validation_split=0.2,
        test_data=None,
        verbose="auto",
        callbacks=(),
    ):
        """Runs trials until there are as many as `max_trials`.

        Args:
            x, y: Arrays `[n, ...]`, the training data with the labels they have.
            validation_data: `(x, y)`. None holds out a part of the training data.
            validation_split: How much, in (0, 0.5].
            test_data: `(x, y)`, clean. Reported as `test_...`; no trial is chosen by it.
            verbose: 0, or "auto" for keras-tuner's display of trials.
            callbacks: Keras callbacks that can be copied.

        Raises:
            ValueError: before the first trial, if the data do not fit together or the objective is not
                among what the model reports.
        """
        if not isinstance(validation_split, numbers.Real) or not 0 < validation_split <= 0.5:
            raise ValueError(f"validation_split={validation_split!r} must be a number in (0, 0.5].")
        for name, pair in (
            ("x and y", (x, y)),
            ("validation_data", validation_data),
            ("test_data", test_data),
        ):
            _check_pair(name, pair)
        data = {"x": x, "y": y, "validation_data": validation_data, "validation_split": validation_split}
        held_out = self._parts(0, x, y, validation_data, validation_split)[1]
        self._check_objective(*held_out)
        files.write_json(pathlib.Path(self.project_dir) / _SETTINGS, self.settings)
        self.save()  # else keras-tuner would not know after a kill in the first trial that there is a search
        super().search(verbose=verbose, test_data=test_data, callbacks=list(callbacks), **data)

    def run_trial(self, trial, *, verbose, **data):
        records = []
        for index in range(self.executions_per_trial):
            path = pathlib.Path(self.get_trial_dir(trial.trial_id)) / f"execution_{index}.json"
            if not path.exists():  # else it has ended before the search was killed
                record = self._execution(trial, index, **data)
                files.write_json(path, record)
                if verbose:
                    print(self._in_words(record), flush=True)
            records.append(files.read_json(path))
            if _FAILED in records[-1]:
                raise keras_tuner.errors.FailedTrialError(records[-1][_FAILED])
        return [record["metrics"] for record in records]

    def _execution(self, trial, index, x, y, validation_data, validation_split, test_data, callbacks):
        """What the file of an execution holds, after its training."""
        start = time.monotonic()
        record = {"trial": trial.trial_id, "execution": index, "seed": self.seed + index}
        try:
            record |= self._values(trial)
            train, validation = self._parts(index, x, y, validation_data, validation_split)
            model, metrics = self._train(trial, index, train, validation, test_data, callbacks)
            record |= {"metrics": metrics}
            self._check_finite(metrics)
            self._save_if_best(trial, model, metrics)
        except keras_tuner.errors.FatalError:
            raise
        except Exception as error:
            record |= {_FAILED: f"{type(error).__name__}: {error}"}
        return {**record, "seconds": time.monotonic() - start}

    def save(self):
        """Atomically, as keras-tuner does not."""
        if not tuning_oracles.is_worker():
            self.oracle.save()
        files.write_json(self._get_tuner_fname(), self.get_state())

    def _in_words(self, record):
        objective = self.oracle.objective.name
        outcome = record.get(_FAILED) or f"{objective} {record['metrics'][objective]:.5g}"
        return (
            f"Trial {record['trial']}, execution {record['execution']}: {outcome} [{record['seconds']:.1f} s]"
        )

    def _values(self, trial):
        return {**self.hypermodel.values(trial.hyperparameters), "epochs": self._epochs_of(trial)}

    def _epochs_of(self, trial):
        return trial.hyperparameters.values.get("tuner/epochs", self.epochs)  # hyperband's

    def _train(self, trial, index, train, validation, test_data, callbacks):
        keras.utils.set_random_seed(self.seed + index)
        gc.collect()
        model = self._try_build(trial.hyperparameters)
        self.hypermodel.fit(
            trial.hyperparameters,
            model,
            *train,
            epochs=self._epochs_of(trial),
            verbose=0,
            callbacks=[*self._deepcopy_callbacks(callbacks), keras.callbacks.TerminateOnNaN()],
        )
        metrics = tuning_objectives.validation_metrics(model, self.hypermodel.loss, *validation)
        if test_data is not None:
            logs = model.evaluate(*test_data, batch_size=1024, verbose=0, return_dict=True)
            metrics |= {f"test_{name}": float(value) for name, value in logs.items()}
        return model, metrics

    def _parts(self, index, x, y, validation_data, validation_split):
        """((x, y) to train on, (x, y) to validate on) of execution `index`."""
        if validation_data is not None:
            return (x, y), validation_data
        order = np.random.default_rng(self.seed).permutation(len(x))
        blocks = np.array_split(order, max(2, round(1 / validation_split)))
        held_out = blocks.pop(index % len(blocks))
        rows = np.concatenate(blocks)
        return (x[rows], y[rows]), (x[held_out], y[held_out])

    def _check_objective(self, x, y):
        model = self._try_build(self.oracle.get_space())
        known = tuning_objectives.validation_metrics(model, self.hypermodel.loss, x, y)
        if self.oracle.objective.name not in known:
            raise ValueError(
                f"objective={self.oracle.objective.name!r} is not reported; write one of {', '.join(known)}."
            )

    def _check_finite(self, metrics):
        name = self.oracle.objective.name
        if not math.isfinite(metrics[name]):
            raise keras_tuner.errors.FailedTrialError(f"{name} is {metrics[name]}.")

    def _save_if_best(self, trial, model, metrics):
        """Keeps the weights of the trial's best execution, for `get_best_models`."""
        objective = self.oracle.objective
        others = pathlib.Path(self.get_trial_dir(trial.trial_id)).glob("execution_*.json")
        others = [files.read_json(path).get("metrics", {}).get(objective.name) for path in others]
        if all(
            objective.better_than(metrics[objective.name], value) for value in others if value is not None
        ):
            files.write_json(
                self._get_build_config_fname(trial.trial_id), model.get_build_config() or {"": 0}
            )
            with files.replacing(self._get_checkpoint_fname(trial.trial_id)) as temporary:
                model.save_weights(temporary)


def make_tuner(
    kind, hypermodel, objective, output_dir, *, epochs, max_trials=None, executions_per_trial=1, seed=0,
    overwrite=False,
):  # fmt: skip
    """A `RobustTuner` that searches in `output_dir`, or goes on with the search there.

    Args:
        kind: "random", "bayesian", "hyperband" or "grid".
        hypermodel: A `RobustHyperModel`.
        objective: A name of `tuning_objectives`, or a `keras_tuner.Objective`.
        output_dir: Made if missing.
        epochs: Of a trial; with hyperband of the longest.
        max_trials: At least 1. None for hyperband and grid: as many as they have.
        executions_per_trial: Trainings of a trial, each with its own seed; the trial's score is their mean.
        seed: Of the search and the trainings, at least 0.
        overwrite: Remove the search that is there.

    Raises:
        ValueError: for an argument outside of the above, or a search of other arguments in output_dir.
    """
    if kind not in tuning_oracles.TUNERS:
        raise ValueError(f"tuner={kind!r} is not known; write one of {', '.join(tuning_oracles.TUNERS)}.")
    for name, value, smallest in (
        ("epochs", epochs, 1), ("executions_per_trial", executions_per_trial, 1), ("seed", seed, 0),
        ("max_trials", max_trials if max_trials is not None or kind in ("random", "bayesian") else 1, 1),
    ):  # fmt: skip
        check_integer(name, value, smallest)
    output_dir = pathlib.Path(output_dir)
    objective = _objective(objective)
    settings = {
        "tuner": kind, "objective": objective.name, "direction": objective.direction, "epochs": epochs,
        "executions_per_trial": executions_per_trial, "seed": seed,
        **{name: repr(value) for name, value in hypermodel.space.items()},
    }  # fmt: skip
    _check_settings(output_dir / _SETTINGS, settings, overwrite)
    tuner = RobustTuner(
        tuning_oracles.make_oracle(kind, objective, max_trials, epochs, seed),
        hypermodel,
        directory=str(output_dir.parent),
        project_name=output_dir.name,
        overwrite=overwrite,
        executions_per_trial=executions_per_trial,
    )
    tuner.epochs, tuner.seed, tuner.settings = epochs, seed, settings
    tuning_oracles.wait_for_chief(tuner)
    return tuner


def _objective(objective):
    if isinstance(objective, keras_tuner.Objective):
        return objective
    if not isinstance(objective, str) or not objective.startswith("val_"):
        raise ValueError(
            f"objective={objective!r} must be the name of a validation metric, such as val_trimmed_loss, or "
            "a keras_tuner.Objective."
        )
    if objective.endswith("loss"):
        return keras_tuner.Objective(objective, "min")
    if objective.endswith(("accuracy", "r2_score")):
        return keras_tuner.Objective(objective, "max")
    raise ValueError(
        f"objective={objective!r}: is higher better, or lower? Write "
        f"keras_tuner.Objective({objective!r}, 'max'), or 'min'."
    )


def _check_settings(path, settings, overwrite):
    if overwrite or not path.exists():
        return
    saved = files.read_json(path)
    different = [
        f"{name} was {saved.get(name)!r}, is now {value!r}"
        for name, value in settings.items()
        if saved.get(name) != value
    ]
    if different:
        raise ValueError(
            f"The search in {path.parent} is another: {'; '.join(different)}. Give the same values to go on "
            "with it, overwrite=True to replace it, or take another folder."
        )


def _check_pair(name, pair):
    if pair is None:
        return
    x, y = pair
    if y is None or not hasattr(x, "shape") or not hasattr(y, "shape") or len(x) != len(y) or len(x) < 2:
        raise ValueError(f"{name} must be two arrays of the same length, of at least two examples.")
