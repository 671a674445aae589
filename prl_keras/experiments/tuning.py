"""Searches epsilon, its ramp, the method, the learning rate and the batch size with keras-tuner.

hypermodel = RobustHyperModel(make_network, loss="mse", metrics=["r2_score"], epsilon=(0.0, 0.6))
tuner = make_tuner("random", hypermodel, "val_trimmed_loss", "runs/search", max_trials=15, epochs=30)
tuner.search(x, noisy_y)  # holds out a fifth, with the labels it has; started again, it goes on
model = tuner.get_best_models()[0]
"""

import numbers
import pathlib
import time

import keras
import keras_tuner
import numpy as np

from prl_keras import files
from prl_keras.experiments import tuning_checks, tuning_folder, tuning_objectives, tuning_oracles
from prl_keras.experiments.tuning_execution import FAILED, execute, keep_if_best
from prl_keras.keras_gaps.fresh_start import start_as
from prl_keras.validate import check_integer

_IDLE_SECONDS = 1
_HELD_OUT = 1  # the stream of random numbers that parts the data


class RobustTuner(keras_tuner.Tuner):
    """A keras-tuner Tuner for noisy validation data; `make_tuner` makes one.

    As any Tuner (`get_best_models`, `get_best_hyperparameters`, `results_summary`, several machines), and:

        * Each execution of a trial is a file, `trial_*/execution_*.json`, written when it has ended. A search
          that was killed and is started again takes up what was running and repeats no execution that ended.
          So does one that a full disk has ended.
        * An execution whose objective is not finite, or that raises, makes its trial a failed one, with
          the message in its file; the search goes on. (To hyperband a failed trial is one that was not
          promoted; if too many of a round fail, none goes further.)
        * Trials train from scratch, also those of hyperband, in which a ramp would otherwise start anew.
        * Execution i of each trial has the same seed and, without `validation_data`, the same held out part,
          so that trials are compared on equal terms. The parts of executions do not overlap until they have
          gone through all the data.
        * A worker that died is waited for: started again with its KERASTUNER_TUNER_ID it takes up its trial.
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
            callbacks: Keras callbacks that can be copied. The validation data are not looked at in `fit`, so
                they see no `val_` metrics.

        Raises:
            ValueError: before the first trial, if the data do not fit together or are not those of the search
                in the folder, or if the objective is not among what the model reports. A search that was to
                be overwritten is there again.
            OSError: if a file cannot be written.
        """
        with tuning_folder.kept_if_in_vain(self.project_dir):
            data = self._checked(x, y, validation_data, validation_split, test_data)
        tuning_folder.forget(self.project_dir)
        if tuning_oracles.is_over(self.oracle):
            return  # no worker would come and say so
        try:
            super().search(verbose=verbose, callbacks=list(callbacks), **data)
        except keras_tuner.errors.FatalRuntimeError as error:
            raise error.__cause__ or error from None

    def _checked(self, x, y, validation_data, validation_split, test_data):
        """The data as arguments of `run_trial`, once they and the settings are seen to fit."""
        if not isinstance(validation_split, numbers.Real) or not 0 < validation_split <= 0.5:
            raise ValueError(f"validation_split={validation_split!r} must be a number in (0, 0.5].")
        x, y = tuning_checks.check_pair("x and y", (x, y))
        data = {
            "x": x,
            "y": y,
            "validation_data": tuning_checks.check_pair("validation_data", validation_data),
            "validation_split": validation_split,
            "test_data": tuning_checks.check_pair("test_data", test_data),
        }
        model = self._try_build(self.oracle.get_space())
        self._check_objective(model, *self._parts(0, *list(data.values())[:4])[1])
        settings = {**self.settings, "data": tuning_checks.fingerprint(data)}
        settings |= {"network": tuning_checks.describe(model)}
        settings |= {"shape": list(x.shape[1:]), "dtype": x.dtype.name}
        settings |= {"test_data": test_data and tuning_checks.checksum(*data["test_data"])}
        path = pathlib.Path(self.project_dir) / tuning_folder.SETTINGS
        tuning_checks.check_settings(path, settings)
        files.write_json(path, settings)
        self.save()  # else keras-tuner would not know after a kill in the first trial that there is a search
        return data

    def run_trial(self, trial, *, verbose, **data):
        records = []
        for index in range(self.executions_per_trial):
            path = pathlib.Path(self.get_trial_dir(trial.trial_id)) / f"execution_{index}.json"
            if not path.exists():  # else it has ended before the search was killed
                try:
                    record = self._execution(trial, index, **data)
                    files.write_json(path, record)
                except (OSError, ValueError) as error:  # to keras-tuner any other error is a failed trial
                    raise keras_tuner.errors.FatalRuntimeError(str(error)) from error
                if verbose:
                    print(self._in_words(record), flush=True)
            records.append(files.read_json(path))
            if FAILED in records[-1]:
                raise keras_tuner.errors.FailedTrialError(records[-1][FAILED])
        # What is not finite (and not the objective) is null in the file.
        return [{k: v for k, v in record["metrics"].items() if v is not None} for record in records]

    def get_best_models(self, num_models=1):
        """The models of the best trials that did not fail, at most so many, the best first."""
        trials = self.oracle.get_best_trials(num_models)
        return [self.load_model(trial) for trial in trials if trial.status == "COMPLETED"]

    def load_model(self, trial):
        settings = files.read_json(pathlib.Path(self.project_dir) / tuning_folder.SETTINGS)
        model = self._try_build(trial.hyperparameters)
        model(np.zeros([1, *settings["shape"]], settings["dtype"]))  # builds what builds itself when called
        model.optimizer.build(model.trainable_variables)
        model.load_weights(self._get_checkpoint_fname(trial.trial_id))
        return model

    def save(self):
        """Atomically, as keras-tuner does not."""
        if not tuning_oracles.is_worker():
            self.oracle.save()
        files.write_json(self._get_tuner_fname(), self.get_state())

    def pre_create_trial(self):
        if self._has_asked:  # the oracle said that it has no trial yet
            time.sleep(_IDLE_SECONDS)
        self._has_asked = True

    def on_trial_begin(self, trial):
        self._has_asked = False

    def _try_build(self, hp):
        keras.config.set_dtype_policy(self.dtype_policy)  # which keras-tuner clears with the session
        return super()._try_build(hp)

    def _execution(self, trial, index, x, y, validation_data, validation_split, test_data, callbacks):
        """What the file of an execution holds, after its training."""
        epochs = trial.hyperparameters.values.get("tuner/epochs", self.epochs)  # hyperband's
        directory = pathlib.Path(self.get_trial_dir(trial.trial_id))
        train, validation = self._parts(index, x, y, validation_data, validation_split)

        def keep(model, metrics):  # for get_best_models
            path, others = self._get_checkpoint_fname(trial.trial_id), directory.glob("execution_*.json")
            keep_if_best(model, path, metrics, self.oracle.objective, others)

        return execute(
            {"trial": trial.trial_id, "execution": index, "seed": self.seed + index, "epochs": epochs},
            self.hypermodel,
            trial.hyperparameters,
            lambda: self._fresh_model(trial),
            train,
            validation,
            self.oracle.objective.name,
            test_data=test_data,
            callbacks=self._deepcopy_callbacks(callbacks),
            keep=keep,
        )

    def _fresh_model(self, trial):
        """An untrained model; after a trial's first execution that one, traced, with a fresh start."""
        if self._traced[0] != trial.trial_id:
            self._traced = (None, None)  # which frees the last trial's
        fresh = self._try_build(trial.hyperparameters)
        traced = self._traced[1]
        if traced is not None and fresh.built:
            start_as(traced, fresh)
            return traced
        self._traced = (trial.trial_id, fresh)
        return fresh

    def _in_words(self, record):
        objective = self.oracle.objective.name
        outcome = record.get(FAILED) or f"{objective} {record['metrics'][objective]:.5g}"
        return (
            f"Trial {record['trial']}, execution {record['execution']}: {outcome} [{record['seconds']:.1f} s]"
        )

    def _parts(self, index, x, y, validation_data, validation_split):
        """((x, y) to train on, (x, y) to validate on) of execution `index`."""
        if validation_data is not None:
            return (x, y), validation_data
        held_out = max(1, round(validation_split * len(x)))
        # Spawned, so independent of the same seed's own stream, by which labels may have been corrupted: the
        # permutation that chose the wrong ones would else choose them all for the first part.
        seed = np.random.SeedSequence(self.seed, spawn_key=(_HELD_OUT,))
        order = np.roll(np.random.default_rng(seed).permutation(len(x)), -index * held_out)
        return (x[order[held_out:]], y[order[held_out:]]), (x[order[:held_out]], y[order[:held_out]])

    def _check_objective(self, model, x, y):
        known = tuning_objectives.noisy_metrics(model, self.hypermodel.loss, x, y)
        if self.oracle.objective.name not in known:
            raise ValueError(
                f"objective={self.oracle.objective.name!r} is not reported; write one of {', '.join(known)}."
            )


def make_tuner(
    kind, hypermodel, objective, output_dir, *, epochs, max_trials=None, executions_per_trial=1, seed=0,
    overwrite=False,
):  # fmt: skip
    """A `RobustTuner` that searches in `output_dir`, or goes on with the search there.

    Args:
        kind: "random", "bayesian", "hyperband" or "grid".
        hypermodel: A `RobustHyperModel`.
        objective: A name of `tuning_objectives`, or a `keras_tuner.Objective` of the name of a metric that
            `evaluate` reports, with "val_" before it.
        output_dir: Made if missing.
        epochs: Of a trial; with hyperband of the longest.
        max_trials: At least 1. None for hyperband and grid: as many as they have.
        executions_per_trial: Trainings of a trial, each with its own seed; the trial's score is their mean.
        seed: Of the search and the trainings, at least 0.
        overwrite: Remove the search that is there, its own files alone, once the new one has been seen to fit
            (`search`); of several machines the chief alone does.

    Raises:
        ValueError: for an argument outside of the above, or a search of other arguments in output_dir.
        OSError: if output_dir cannot be made.
    """
    if kind not in tuning_oracles.TUNERS:
        raise ValueError(f"tuner={kind!r} is not known; write one of {', '.join(tuning_oracles.TUNERS)}.")
    if max_trials is not None or kind in ("random", "bayesian"):
        max_trials = check_integer("max_trials", max_trials, 1)
    epochs, seed = check_integer("epochs", epochs, 1), check_integer("seed", seed, 0)
    executions_per_trial = check_integer("executions_per_trial", executions_per_trial, 1)
    output_dir = pathlib.Path(output_dir)
    objective = tuning_checks.resolve_objective(objective)
    overwrite = overwrite and not tuning_oracles.is_worker()
    settings = {
        "tuner": kind, "objective": objective.name, "direction": objective.direction, "epochs": epochs,
        "executions_per_trial": executions_per_trial, "seed": seed, **hypermodel.settings,
        **{name: repr(value) for name, value in hypermodel.space.items()},
    }  # fmt: skip
    tuning_checks.make_folder(output_dir)
    if not tuning_oracles.is_worker():
        tuning_folder.put_back(output_dir)  # of a process that was killed before its search was seen to fit
    if overwrite:
        tuning_folder.set_aside(output_dir)
    tuning_checks.check_settings(output_dir / tuning_folder.SETTINGS, settings)
    with tuning_folder.kept_if_in_vain(output_dir):
        tuner = RobustTuner(
            tuning_oracles.make_oracle(kind, objective, max_trials, epochs, seed),
            hypermodel,
            directory=str(output_dir.parent),
            project_name=output_dir.name,
            executions_per_trial=executions_per_trial,
        )
    tuner.epochs, tuner.seed, tuner.settings = epochs, seed, settings
    tuner.dtype_policy, tuner._has_asked, tuner._traced = keras.config.dtype_policy(), False, (None, None)
    tuning_oracles.wait_for_chief(tuner)
    return tuner
