"""The sweep: a folder for each run, whatever happens to the others."""

import shutil

import pandas as pd
import pytest

from prl_keras.experiments.paper.tables import TABLES
from prl_keras.experiments.runs import results, sweep
from prl_keras.experiments.runs.config import RunConfig


def configs(epochs=3, methods=("prl_l", "spl"), kinds=("signflip",)):
    return [
        RunConfig("teacher", method, kind, 0.2, epochs=epochs, batch_size=500, seed=seed)
        for method in methods
        for kind in kinds
        for seed in (0, 1)
    ]


def histories(directory):
    contents, problems = results.read_all(directory)
    assert not problems
    return {content["config"]: content["history"].drop(columns="seconds") for content in contents}


def assert_same_results(directory, other, expected):
    one, two = histories(directory), histories(other)
    assert set(one) == set(two) == set(expected)
    for config in expected:
        pd.testing.assert_frame_equal(one[config], two[config], check_exact=True)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    directory = tmp_path_factory.mktemp("undisturbed")
    assert sweep.sweep(configs(), directory, "cpu") == {}
    return directory


def test_each_run_has_its_folder_and_nothing_else_is_left(undisturbed):
    assert set(histories(undisturbed)) == set(configs())
    assert set(undisturbed.iterdir()) == {results.path_of(undisturbed, config) for config in configs()}
    assert {path.name for path in undisturbed.glob("*/*")} == set(results.RUN_FILES)
    content = results.read(results.path_of(undisturbed, configs()[0]), configs()[0], "cpu")
    assert content["source"] and content["versions"]["keras"] and content["corruption_rate"] == 0.2
    assert content["device"]


def test_what_is_done_is_not_pending(undisturbed):
    assert sweep.pending(configs(), undisturbed, "cpu") == ([], [])
    more = [*configs(), RunConfig("teacher", "huber", "linadv", 0.2, epochs=3, batch_size=500)]
    assert sweep.pending(more, undisturbed, "cpu") == (more[-1:], [])


def test_shards_are_disjoint_and_together_everything(tmp_path):
    parts = [sweep.pending(configs(), tmp_path, "cpu", (i, 3))[0] for i in range(3)]
    assert sorted((c for part in parts for c in part), key=str) == sorted(configs(), key=str)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("name", ["config.json", "history.csv"])
def test_a_damaged_run_is_reported_and_done_again(tmp_path, undisturbed, name):
    shutil.copytree(undisturbed, tmp_path / "runs")
    path = results.path_of(tmp_path / "runs", configs()[1])
    (path / name).write_text((path / name).read_text()[:50])
    missing, problems = sweep.pending(configs(), tmp_path / "runs", "cpu")
    assert missing == [configs()[1]] and len(problems) == 1 and path.name in problems[0]
    assert sweep.sweep(missing, tmp_path / "runs", "cpu") == {}
    assert_same_results(tmp_path / "runs", undisturbed, configs())


def test_what_is_packed_is_not_pending(tmp_path, undisturbed):
    shutil.copytree(undisturbed, tmp_path / "runs")
    results.pack(tmp_path / "runs" / "table1.jsonl", results.read_all(tmp_path / "runs")[0])
    assert sweep.pending(configs(), tmp_path / "runs", "cpu") == ([], [])
    assert_same_results(tmp_path / "runs", undisturbed, configs())


@pytest.mark.long
def test_several_processes_give_what_one_gives(tmp_path, undisturbed):
    assert sweep.sweep(configs(), tmp_path, "cpu", workers=2) == {}
    assert_same_results(tmp_path, undisturbed, configs())


def test_a_run_that_fails_stops_no_other(tmp_path, capsys):
    bad = RunConfig("teacher", "spl", "symmetric", 0.2, epochs=1)
    good = RunConfig("teacher", "spl", "signflip", 0.2, epochs=1, batch_size=1000)
    failures = sweep.sweep([bad, good], tmp_path, "cpu")
    assert list(failures) == [bad] and "not for regression" in failures[bad]
    assert set(histories(tmp_path)) == {good}
    assert "failed" in capsys.readouterr().err


def test_data_that_are_not_there_are_said_before_any_run(tmp_path):
    config = RunConfig("cifar10", "spl", "symmetric", 0.5, epochs=1)
    with pytest.raises((ValueError, OSError), match="--data_dir"):
        sweep.sweep([config], tmp_path, "cpu", data_options={"data_dir": str(tmp_path / "nothing")})


def test_results_of_other_data_are_not_mixed_with(tmp_path):
    one, other = configs()[:2]
    sweep.sweep([one], tmp_path, "cpu")
    path = results.path_of(tmp_path, one) / "config.json"
    path.write_text(path.read_text().replace("random network and inputs", "measured"))
    with pytest.raises(ValueError, match="holds results of 'measured, seed 0'; these data are 'random"):
        sweep.sweep([other], tmp_path, "cpu")


def test_every_shard_has_runs_of_every_method(tmp_path):
    table = TABLES[1].configs("cpu")
    for n in (2, 4, 8):
        for i in range(n):
            missing, _ = sweep.pending(table, tmp_path, "cpu", (i, n))
            assert {config.method for config in missing} == set(TABLES[1].methods)


def test_a_damaged_unfinished_run_starts_anew(tmp_path, undisturbed, capsys):
    config = configs()[0]
    unfinished = results.path_of(tmp_path, config)
    (unfinished / "checkpoints").mkdir(parents=True)
    (unfinished / "checkpoints" / "epoch-00001.weights.h5").write_bytes(b"not a checkpoint")
    assert sweep.sweep([config], tmp_path, "cpu") == {}
    assert "starts anew" in capsys.readouterr().err
    one, two = (results.read(results.path_of(d, config))["history"] for d in (tmp_path, undisturbed))
    pd.testing.assert_frame_equal(one.drop(columns="seconds"), two.drop(columns="seconds"), check_exact=True)
