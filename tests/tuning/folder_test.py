"""The folder of a search: whose it is, what of it is replaced, and what a disk that is full leaves."""

import contextlib
import pathlib
from unittest.mock import Mock

import keras
import keras_tuner
import pytest
import small_search
from small_search import examples, search

from prl_keras import files
from prl_keras.experiments.programs.tune import tune
from prl_keras.tuning import folder, report

NOT_REPORTED = keras_tuner.Objective("val_r2_score", "max")  # which only the search can know
SMALL = {
    "dataset": "teacher", "corruption": "signflip", "epsilon": 0.3, "train_size": 100, "epochs": 1,
    "tuner": "random", "objective": "val_trimmed_loss", "max_trials": 1, "final_trainings": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def data():
    return examples()


@pytest.mark.long
def test_overwriting_leaves_what_is_not_the_searchs(data, tmp_path):
    search(tmp_path, data, max_trials=2)
    (tmp_path / "search" / "thesis.txt").write_text("mine")
    (tmp_path / "search" / "figures").mkdir()
    search(tmp_path, data, max_trials=1, seed=5, overwrite=True)
    assert (tmp_path / "search" / "thesis.txt").read_text() == "mine"
    assert (tmp_path / "search" / "figures").is_dir()
    assert report.executions(tmp_path / "search")["seed"].tolist() == [5]
    assert not list((tmp_path / "search").glob(".*"))


@pytest.mark.daily("option")
@pytest.mark.parametrize(
    "change",
    [
        {"objective": "val_r2_score"},
        {"objective": NOT_REPORTED},
        {"space": {"epsilon": 0.2, "bad_option": 1}},
    ],
    ids=["name", "objective", "option"],
)
def test_what_is_refused_overwrites_nothing(change, data, tmp_path):
    search(tmp_path, data, max_trials=2)
    before = {path: path.stat().st_mtime for path in (tmp_path / "search").rglob("*")}
    with pytest.raises((ValueError, TypeError)):
        search(tmp_path, data, **{"max_trials": 1, "overwrite": True, **change})
    assert {path: path.stat().st_mtime for path in (tmp_path / "search").rglob("*")}.keys() == before.keys()
    search(tmp_path, data, max_trials=2)  # is the search that was there


@pytest.mark.long
@pytest.mark.parametrize("moved", [0, 2, None])
def test_killed_while_it_replaces_a_search_the_old_one_is_there_again(moved, data, tmp_path, monkeypatch):
    """After so many of the files have moved; None: after all, before the new search was seen to fit."""
    search(tmp_path, data, max_trials=2)
    place = tmp_path / "search"
    before = {path.relative_to(place): path.read_bytes() for path in place.rglob("*") if path.is_file()}
    names, rename = [], pathlib.Path.rename

    def killed(path, target):
        if moved is not None and len(names) >= moved:
            raise KeyboardInterrupt
        names.append(path)
        return rename(path, target)

    with monkeypatch.context() as patched:
        patched.setattr(pathlib.Path, "rename", killed)
        with contextlib.suppress(KeyboardInterrupt):
            folder.set_aside(place)
    with pytest.raises(ValueError, match="is not reported"):
        search(tmp_path, data, max_trials=1, objective=NOT_REPORTED, overwrite=True)
    after = {path.relative_to(place): path.read_bytes() for path in place.rglob("*") if path.is_file()}
    assert after == before
    executions = report.executions(place)
    search(tmp_path, data, max_trials=2)
    assert report.executions(place).equals(executions)


def test_another_network_of_as_many_weights_is_another_search(data, tmp_path, monkeypatch):
    def network():
        return keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, "tanh")])

    search(tmp_path, data, max_trials=1)
    monkeypatch.setattr(small_search, "make_network", network)
    with pytest.raises(ValueError, match=r"network was '1 layers, 15 weights.* is now"):
        search(tmp_path, data, max_trials=1)


@pytest.mark.long
def test_a_full_disk_ends_the_search_and_with_room_it_goes_on(data, tmp_path, monkeypatch):
    whole = search(tmp_path / "whole", data, max_trials=2)
    with monkeypatch.context() as patched:
        patched.setattr(keras.Model, "save_weights", Mock(side_effect=OSError(28, "No space left on device")))
        with pytest.raises(OSError, match=r"cannot be written.*No space left"):
            search(tmp_path / "full", data, max_trials=2)
    again = search(tmp_path / "full", data, max_trials=2)
    tables = [report.executions(tmp_path / name / "search") for name in ("whole", "full")]
    assert tables[0].drop(columns="seconds").equals(tables[1].drop(columns="seconds"))
    assert {trial.status for trial in again.oracle.trials.values()} == {"COMPLETED"}
    assert len(whole.oracle.trials) == len(again.oracle.trials)


def test_another_process_in_the_folder_is_refused(tmp_path):
    (tmp_path / "search").mkdir()
    with (
        files.locked(tmp_path / "search"),
        pytest.raises(OSError, match="Another process is at work in"),
    ):
        tune(**SMALL, output_dir=tmp_path / "search")


def test_what_a_killed_one_had_begun_to_write_goes(tmp_path):
    unfinished = tmp_path / "search" / "trial_0" / ".unfinished.1.checkpoint.weights.h5"
    unfinished.parent.mkdir(parents=True)
    unfinished.write_text("half")
    tune(**SMALL, output_dir=tmp_path / "search")
    assert not list(pathlib.Path(tmp_path).rglob(".unfinished.*"))


def test_a_missing_file_of_the_oracle_is_named(data, tmp_path):
    search(tmp_path, data, max_trials=1)
    (tmp_path / "search" / "oracle.json").unlink()
    with pytest.raises(ValueError, match=r"oracle\.json is missing"):
        search(tmp_path, data, max_trials=1)


def test_final_trainings_are_checked_before_the_first_trial(tmp_path):
    with pytest.raises(ValueError, match="final_trainings=0"):
        tune(**{**SMALL, "final_trainings": 0}, output_dir=tmp_path / "search")
    assert not (tmp_path / "search").exists()


def test_other_test_data_are_another_search(data, tmp_path):
    x, y = data
    search(tmp_path, data, max_trials=1, test_data=data)
    with pytest.raises(ValueError, match=r"test_data was .* is now"):
        search(tmp_path, data, max_trials=1, test_data=(x[:20], y[:20]))
