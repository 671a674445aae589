"""keras-tuner's oracles, made to survive `kill -9` of the chief, of a worker or of a single-process search.

What keras-tuner 1.4.8 lacks for that; tests/faults/search_test.py has a test for each line:

| keras-tuner | here |
|---|---|
| oracle.json and trial.json are written one after the other, in place | one file, replaced atomically |
| a restarted chief hands a worker's running trial to the next worker too | it stays with its worker |
| a call cut off by the chief's death fails the trial, or the worker | the worker waits and calls again |
| a call repeated in this way ends a trial twice | the second end is ignored |
| grid search forgets its order | the file holds it |
| Bayesian search proposes failed or already tried values again | it does not |
| three failed trials in a row raise in the chief, whose lock stays shut | they are recorded |
| a chief restarted after the last trial waits for a worker to ask | it goes on |
"""

import pathlib
import time

import grpc
import keras_tuner
from keras_tuner.src.distribute import utils as distribution
from keras_tuner.src.distribute.oracle_client import OracleClient
from keras_tuner.src.engine.trial import Trial, TrialStatus

from prl_keras import files

_WAIT_SECONDS = 1


def make_oracle(
    kind: str, objective: keras_tuner.Objective, max_trials: int | None, epochs: int, seed: int
) -> keras_tuner.Oracle:
    """A new oracle of a kind in `TUNERS`; the arguments are those of `make_tuner`."""
    options = {"objective": objective, "seed": seed + 1}  # keras-tuner takes 0 for a random seed
    if kind == "hyperband":
        options["max_epochs"] = epochs
    else:
        options["max_trials"] = max_trials
    oracle: keras_tuner.Oracle = _ORACLES[kind](**options)
    oracle.max_trials = max_trials  # hyperband obeys it but has no such argument
    return oracle


def wait_for_chief(tuner: keras_tuner.Tuner) -> None:
    """Makes a worker repeat its calls while the chief is down, instead of failing. No-op elsewhere."""
    if isinstance(tuner.oracle, OracleClient):
        tuner.oracle.stub = _PatientStub(tuner.oracle.stub)


def is_over(oracle: keras_tuner.Oracle) -> bool:
    """Whether this is the chief of a search on several machines and all its workers know that it ended."""
    if not distribution.is_chief_oracle() or not oracle.has_stopped:
        return False
    is_waited_for = oracle.tuner_ids or oracle.ongoing_trials or oracle._retry_queue
    return not is_waited_for and not (oracle.max_trials and len(oracle.trials) < oracle.max_trials)


def is_distributed() -> bool:
    """Whether this process belongs to a search on several machines."""
    return distribution.has_chief_oracle()


def is_worker() -> bool:
    """Whether this process is a worker of a search on several machines (KERASTUNER_TUNER_ID)."""
    return distribution.has_chief_oracle() and not distribution.is_chief_oracle()


class _Lasting:
    """A mixin, placed before an oracle class: the table above."""

    has_stopped = False  # whether a worker has been told that no trial is left

    def get_state(self):
        trials = {name: trial.get_state() for name, trial in self.trials.items()}
        own = {"trials": trials, "tuner_ids": sorted(self.tuner_ids), "has_stopped": self.has_stopped}
        return {**super().get_state(), **own}

    def set_state(self, state):
        self.trials = {name: Trial.from_state(trial) for name, trial in state["trials"].items()}
        running = {
            tuner: name
            for tuner, name in state["ongoing_trials"].items()
            if self.trials[name].status == TrialStatus.RUNNING
        }
        super().set_state({**state, "ongoing_trials": running})
        self.tuner_ids = set(state["tuner_ids"]) - {_TUNER_ALONE}
        self.has_stopped = state["has_stopped"]

    def save(self):
        files.write_json(self._get_oracle_fname(), self.get_state())

    def _save_trial(self, trial):
        """Nothing to do: `save` writes all the trials."""

    def reload(self):
        path = pathlib.Path(self._get_oracle_fname())
        if not path.exists():
            raise ValueError(f"{path} is missing, in which the search is. Start anew with --overwrite.")
        state = files.read_json(path)  # its error names a damaged file
        try:
            super().reload()  # puts all running trials into the queue, for the first worker that asks
        except Exception as error:  # keras-tuner takes the fields as they come
            cause = error.__cause__ or error
            fault = f"{type(cause).__name__}: {cause}"
            raise ValueError(f"{path} is damaged: {fault}. Start anew with --overwrite.") from error
        if not distribution.is_chief_oracle():
            return
        for tuner, name in state["ongoing_trials"].items():
            if name in self._retry_queue and tuner in self.tuner_ids:
                self._retry_queue.remove(name)
                self.ongoing_trials[tuner] = self.trials[name]
                self._display.on_trial_begin(self.trials[name])

    @keras_tuner.synchronized
    def create_trial(self, tuner_id):
        trial = super().create_trial(tuner_id)
        if trial.status == TrialStatus.STOPPED:  # nobody needs to wait for this worker any more
            self.has_stopped = True
            self.save()
        return trial

    @keras_tuner.synchronized
    def update_trial(self, trial_id, metrics, step=0):
        trial = super().update_trial(trial_id, metrics, step)
        self.save()
        return trial

    @keras_tuner.synchronized
    def end_trial(self, trial):
        if trial.trial_id in [running.trial_id for running in self.ongoing_trials.values()]:
            super().end_trial(trial)
            self.save()

    def _check_consecutive_failures(self):
        """Nothing to do: a failed trial is a result, and no number of them ends the search."""


class _Random(_Lasting, keras_tuner.oracles.RandomSearchOracle):
    pass


class _Hyperband(_Lasting, keras_tuner.oracles.HyperbandOracle):
    pass


class _Bayesian(_Lasting, keras_tuner.oracles.BayesianOptimizationOracle):
    """Scores a failed trial as the worst one, and proposes no values twice."""

    def populate_space(self, trial_id):
        proposed = super().populate_space(trial_id)
        if proposed["values"] is not None and self._duplicate(proposed["values"]):
            return self._random_populate_space()
        return proposed

    def _vectorize_trials(self):
        completed = [trial.score for trial in self.trials.values() if trial.status == TrialStatus.COMPLETED]
        failed = [trial for trial in self.trials.values() if trial.status == TrialStatus.FAILED]
        worst = min(completed) if self.objective.direction == "max" else max(completed)
        for trial in failed:
            trial.status, trial.score = TrialStatus.COMPLETED, worst
        try:
            return super()._vectorize_trials()
        finally:
            for trial in failed:
                trial.status, trial.score = TrialStatus.FAILED, None


class _Grid(_Lasting, keras_tuner.oracles.GridSearchOracle):
    """Keeps the order of the trials on the grid over a restart."""

    def get_state(self):
        first = self.start_order[:1]
        ordered = list(first)
        while ordered and (following := self._ordered_ids.next(ordered[-1])) is not None:
            ordered.append(following)
        return {**super().get_state(), "ordered_ids": ordered}

    def set_state(self, state):
        super().set_state(state)
        for name in state["ordered_ids"]:
            self._ordered_ids.insert(name)
        self._populate_next = list(self.start_order)  # skips trials that have a successor


_TUNER_ALONE = "tuner0"  # the worker of a search in one process
_ORACLES = {"random": _Random, "bayesian": _Bayesian, "hyperband": _Hyperband, "grid": _Grid}
TUNERS = tuple(_ORACLES)


class _PatientStub:
    """The chief's functions; each call is repeated until the chief answers."""

    def __init__(self, stub):
        self._stub = stub

    def __getattr__(self, name):
        call = getattr(self._stub, name)

        def call_until_answered(*arguments, **options):
            while True:
                try:
                    return call(*arguments, **options)
                except grpc.RpcError as error:
                    if error.code() != grpc.StatusCode.UNAVAILABLE:
                        raise
                    time.sleep(_WAIT_SECONDS)

        return call_until_answered
