"""Searches epsilon, its ramp, the method, the learning rate and the batch size with keras-tuner.

ramp = {"ramp_epochs": 6, "train_size": len(x) * 4 // 5}
hypermodel = RobustHyperModel(make_network, loss="mse", metrics=["r2_score"], epsilon=(0.0, 0.6), **ramp)
tuner = make_tuner("random", hypermodel, "val_trimmed_loss", "runs/search", max_trials=15, epochs=30)
tuner.search(x, noisy_y)  # holds out a fifth, with its labels as given; started again, it goes on
model = tuner.get_best_models()[0]
"""

import functools
import numbers
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import keras
import keras_tuner
import numpy as np

from prl_keras import files
from prl_keras.keras_gaps.fresh_start import start_as
from prl_keras.tuning import checks, folder, objectives, oracles
from prl_keras.tuning.hypermodel import RobustHyperModel
from prl_keras.tuning.trials import FAILED, execute, in_words, keep_if_best, load_weights, read_record
from prl_keras.validate import check_integer

_IDLE_SECONDS = 1
_HELD_OUT = 1  # the random stream that splits the data


class RobustTuner(keras_tuner.Tuner):
    """A keras-tuner Tuner for noisy validation data; `make_tuner` makes one.

    It works like any Tuner (`get_best_models`, `get_best_hyperparameters`, `results_summary`, several
    machines), with these differences:

        * Each execution of a trial writes a file when it ends, `trial_*/execution_*.json`. A search that was
          killed, or stopped by a full disk, and is started again resumes the running trials and repeats no
          ended execution.
        * An execution that raises, or whose objective is non-finite, makes its trial fail; its file holds
          the message, and the search goes on. (Hyperband treats a failed trial as not promoted; if too many
          trials of a round fail, none is promoted.)
        * Trials train from scratch. So do hyperband's, in which a ramp would otherwise start again.
        * Execution i has the same seed in each trial and, without `validation_data`, the same held-out part,
          so trials are compared on equal terms. The parts of successive executions do not overlap until all
          the data have been held out once.
        * The search waits for a worker that died. Restarted with its KERASTUNER_TUNER_ID, the worker resumes
          its trial.
    """

    epochs: int
    seed: int
    settings: dict[str, Any]
    dtype_policy: Any
    _has_asked: bool

    def search(
        self,
        x: np.ndarray,
        y: np.ndarray | None = None,
        *,
        validation_data: Sequence[Any] | None = None,
        validation_split: float = 0.2,
        test_data: Sequence[Any] | None = None,
        verbose: int | str = "auto",
        callbacks: Sequence[keras.callbacks.Callback] = (),
    ) -> None:
        """Runs trials until there are `max_trials`.

        Args:
            x: Array `[n, ...]`, the inputs of the training data. A `tf.data.Dataset` is refused: a search
                takes arrays, which it splits and recognises when it goes on.
            y: Array `[n, ...]`, the labels as given; must be given.
            validation_data: `(x, y)`, arrays. None holds out a part of the training data.
            validation_split: The held-out fraction, in (0, 0.5].
            test_data: Clean `(x, y)`. Reported as `test_...`; it decides nothing.
            verbose: 0, or "auto" for keras-tuner's display of trials.
            callbacks: Keras callbacks that can be copied. They see no `val_` metrics: `fit` gets no
                validation data.

        Raises:
            ValueError: before the first trial, if the data are no arrays, do not fit together, have invalid
                class labels or differ from those of the search in the folder, or if the model does not report
                the objective. A search that was to be overwritten is restored.
            OSError: if a file cannot be written.
        """
        with folder.kept_if_in_vain(self.project_dir):
            data = self._checked(x, y, validation_data, validation_split, test_data)
        folder.forget(self.project_dir)
        if oracles.is_over(self.oracle):
            return  # otherwise the chief would wait for a worker to ask
        try:
            super().search(verbose=verbose, callbacks=list(callbacks), **data)
        except keras_tuner.errors.FatalRuntimeError as error:
            raise error.__cause__ or error from None

    def _checked(self, x, y, validation_data, validation_split, test_data):
        """Checks the data and the settings; returns the data as arguments of `run_trial`."""
        if not isinstance(validation_split, numbers.Real) or not 0 < validation_split <= 0.5:
            raise ValueError(f"validation_split={validation_split!r} must be a number in (0, 0.5].")
        x, y = checks.check_pair("x and y", (x, y))
        data = {
            "x": x,
            "y": y,
            "validation_data": checks.check_pair("validation_data", validation_data),
            "validation_split": validation_split,
            "test_data": checks.check_pair("test_data", test_data),
        }
        model = self._try_build(self.oracle.get_space())
        held = {name: data[name] for name in ("validation_data", "test_data")}
        checks.check_labels(model, self.hypermodel.loss, {"": (x, y), **held})
        validation = self._parts(0, *list(data.values())[:4])[1]
        known = objectives.noisy_metrics(model, self.hypermodel.loss, *validation)
        if self.oracle.objective.name not in known:
            raise ValueError(
                f"objective={self.oracle.objective.name!r} is not reported; write one of {', '.join(known)}."
            )
        settings = {**self.settings, "data": checks.fingerprint(data)}
        settings |= {"network": checks.describe(model)}
        settings |= {"shape": list(x.shape[1:]), "dtype": x.dtype.name}
        settings |= {"test_data": test_data and checks.checksum(*data["test_data"])}
        path = pathlib.Path(self.project_dir) / folder.SETTINGS
        checks.check_settings(path, settings)
        files.write_json(path, settings)
        self.save()  # so that keras-tuner finds the search after a kill in the first trial
        return data

    def run_trial(
        self, trial: keras_tuner.engine.trial.Trial, *, verbose: int | str, **data: Any
    ) -> list[dict[str, float]]:
        """The metrics of each execution of the trial; keras-tuner calls it."""
        objective, records = self.oracle.objective.name, []
        for index in range(self.executions_per_trial):
            path = pathlib.Path(self.get_trial_dir(trial.trial_id)) / f"execution_{index}.json"
            try:
                if not path.exists():  # otherwise it ended before the search was killed
                    record = self._execution(trial, index, **data)
                    files.write_json(path, record)
                    if verbose:
                        words = in_words(record, objective)
                        print(f"Trial {trial.trial_id}, execution {index}: {words}", flush=True)
                records.append(read_record(path, objective))
            except (OSError, ValueError) as error:  # keras-tuner would take it for a failed trial
                raise keras_tuner.errors.FatalRuntimeError(str(error)) from error
            if FAILED in records[-1]:
                raise keras_tuner.errors.FailedTrialError(records[-1][FAILED])
        # A non-finite metric (never the objective) is null in the file.
        return [{k: v for k, v in record["metrics"].items() if v is not None} for record in records]

    def get_best_models(self, num_models: int = 1) -> list[keras.Model]:
        """The models of the best `num_models` trials, the best first, without failed trials."""
        trials = self.oracle.get_best_trials(num_models)
        return [self.load_model(trial) for trial in trials if trial.status == "COMPLETED"]

    def load_model(self, trial: keras_tuner.engine.trial.Trial) -> keras.Model:
        """The model of the trial's best execution."""
        settings = files.read_json(pathlib.Path(self.project_dir) / folder.SETTINGS, ("shape", "dtype"))
        model = self._try_build(trial.hyperparameters)
        model(np.zeros([1, *settings["shape"]], settings["dtype"]))  # builds layers built on their first call
        weights = self._get_checkpoint_fname(trial.trial_id)
        remedy = "Train anew with the trial's hyperparameters: get_best_hyperparameters() and train_on_all."
        return load_weights(model, weights, remedy)

    def save(self) -> None:
        """Writes the search's state, atomically, unlike keras-tuner."""
        if not oracles.is_worker():
            self.oracle.save()
        files.write_json(self._get_tuner_fname(), self.get_state())

    def reload(self) -> None:
        """Reads the search's state. The tuner's own file holds nothing, so it may be damaged."""
        if not oracles.is_worker():
            self.oracle.reload()

    def pre_create_trial(self) -> None:
        """Waits before asking the oracle again; keras-tuner calls it."""
        if self._has_asked:  # the oracle had no trial yet
            time.sleep(_IDLE_SECONDS)
        self._has_asked = True

    def on_trial_begin(self, trial: keras_tuner.engine.trial.Trial) -> None:
        """Notes that the oracle gave a trial; keras-tuner calls it."""
        self._has_asked = False

    def _try_build(self, hp):
        keras.config.set_dtype_policy(self.dtype_policy)  # keras-tuner clears it with the session
        return super()._try_build(hp)

    def _execution(self, trial, index, x, y, validation_data, validation_split, test_data, callbacks):
        """Trains one execution and returns its record."""
        epochs = trial.hyperparameters.values.get("tuner/epochs", self.epochs)  # hyperband's
        directory = pathlib.Path(self.get_trial_dir(trial.trial_id))
        train, validation = self._parts(index, x, y, validation_data, validation_split)
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
            keep=functools.partial(
                keep_if_best,
                path=self._get_checkpoint_fname(trial.trial_id),  # get_best_models loads these weights
                objective=self.oracle.objective,
                others=directory.glob("execution_*.json"),
            ),
        )

    def _fresh_model(self, trial):
        """An untrained model; after a trial's first execution its traced model, put into a fresh state."""
        if self._traced[0] != trial.trial_id:
            self._traced = (None, None)  # frees the last trial's model
        fresh = self._try_build(trial.hyperparameters)
        traced = self._traced[1]
        if traced is not None and fresh.built:
            start_as(traced, fresh)
            return traced
        self._traced = (trial.trial_id, fresh)
        return fresh

    def _parts(self, index, x, y, validation_data, validation_split):
        """((x, y) to train on, (x, y) to validate on) of execution `index`."""
        if validation_data is not None:
            return (x, y), validation_data
        held_out = max(1, round(validation_split * len(x)))
        # A spawned stream is independent of the seed's own, which may have corrupted the labels: the same
        # permutation would put all the wrong labels into the first part.
        seed = np.random.SeedSequence(self.seed, spawn_key=(_HELD_OUT,))
        order = np.roll(np.random.default_rng(seed).permutation(len(x)), -index * held_out)
        return (x[order[held_out:]], y[order[held_out:]]), (x[order[:held_out]], y[order[:held_out]])


def make_tuner(
    kind: str,
    hypermodel: RobustHyperModel,
    objective: str | keras_tuner.Objective,
    output_dir: pathlib.Path | str,
    *,
    epochs: int,
    max_trials: int | None = None,
    executions_per_trial: int = 1,
    seed: int = 0,
    overwrite: bool = False,
) -> RobustTuner:
    """A `RobustTuner` that searches in `output_dir`, or goes on with the search there.

    Args:
        kind: "random", "bayesian", "hyperband" or "grid".
        hypermodel: A `RobustHyperModel`.
        objective: A name from `objectives`; one of a metric must be among the hypermodel's. Or a
            `keras_tuner.Objective` whose name is "val_" and the name of a metric that `evaluate` reports.
        output_dir: Made if missing.
        epochs: The epochs of a trial; with hyperband of the longest trial.
        max_trials: At least 1; random and bayesian need it. None, for hyperband and grid, runs all the
            trials that they have.
        executions_per_trial: Trainings of a trial, each with its own seed; the trial's score is their mean.
        seed: Seed of the search and the trainings, at least 0.
        overwrite: Replace the search in output_dir once `search` has checked the new one. Other files in the
            folder stay. On several machines only the chief does this.

    Raises:
        ValueError: for an invalid argument, or if output_dir holds a search with other arguments.
        OSError: if output_dir cannot be made.
    """
    if not isinstance(hypermodel, RobustHyperModel):
        raise ValueError(
            f"hypermodel={hypermodel!r} must be a RobustHyperModel. It takes a function that gives a fresh "
            "network; a build function of keras-tuner goes into the build method of a subclass."
        )
    if kind not in oracles.TUNERS:
        raise ValueError(f"tuner={kind!r} is not known; write one of {', '.join(oracles.TUNERS)}.")
    if max_trials is None and kind in ("random", "bayesian"):
        raise ValueError(
            f"max_trials=None: tuner={kind!r} goes on for ever; write the most trials, as in 15."
        )
    if max_trials is not None:
        max_trials = check_integer("max_trials", max_trials, 1)
    epochs, seed = check_integer("epochs", epochs, 1), check_integer("seed", seed, 0)
    executions_per_trial = check_integer("executions_per_trial", executions_per_trial, 1)
    output_dir = pathlib.Path(output_dir)
    objective = objectives.resolve_objective(objective, hypermodel.metrics)
    overwrite = overwrite and not oracles.is_worker()
    settings = {
        "tuner": kind, "objective": objective.name, "direction": objective.direction, "epochs": epochs,
        "executions_per_trial": executions_per_trial, "seed": seed, **hypermodel.settings,
        **{name: repr(value) for name, value in hypermodel.space.items()},
    }  # fmt: skip
    checks.make_folder(output_dir)
    if not oracles.is_worker():
        folder.put_back(output_dir)  # left by a process that was killed before its search was checked
    if overwrite:
        folder.set_aside(output_dir)
    checks.check_settings(output_dir / folder.SETTINGS, settings)
    with folder.kept_if_in_vain(output_dir):
        tuner = RobustTuner(
            oracles.make_oracle(kind, objective, max_trials, epochs, seed),
            hypermodel,
            directory=str(output_dir.parent),
            project_name=output_dir.name,
            executions_per_trial=executions_per_trial,
        )
    tuner.epochs, tuner.seed, tuner.settings = epochs, seed, settings
    tuner.dtype_policy, tuner._has_asked, tuner._traced = keras.config.dtype_policy(), False, (None, None)
    oracles.wait_for_chief(tuner)
    return tuner
