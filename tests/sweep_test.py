"""The sweep: killed and started again, it redoes nothing, loses nothing, and ends with the same results."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest

from prl_keras.experiments import results, sweep
from prl_keras.experiments.config import RunConfig

ROOT = pathlib.Path(__file__).parent.parent


def configs(epochs=3, methods=("prl_l", "spl"), kinds=("signflip", "linadv")):
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


def test_each_run_has_its_file_and_nothing_else_is_left(undisturbed):
    assert set(histories(undisturbed)) == set(configs())
    assert {path.suffix for path in undisturbed.iterdir()} <= {".json", ""}
    assert not any((undisturbed / ".unfinished").iterdir())
    content = results.read(results.path_of(undisturbed, configs()[0]), configs()[0], "cpu")
    assert content["source"] and content["versions"]["keras"] and content["corruption_rate"] == 0.2
    assert (content["run_seconds"] > 0 and "CPU" in content["device"]) or content["device"]


def test_what_is_done_is_not_pending(undisturbed):
    assert sweep.pending(configs(), undisturbed, "cpu") == ([], [])
    more = [*configs(), RunConfig("teacher", "huber", "linadv", 0.2, epochs=3, batch_size=500)]
    assert sweep.pending(more, undisturbed, "cpu") == (more[-1:], [])


def test_shards_are_disjoint_and_together_everything(tmp_path):
    parts = [sweep.pending(configs(), tmp_path, "cpu", (i, 3))[0] for i in range(3)]
    assert sorted((c for part in parts for c in part), key=str) == sorted(configs(), key=str)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_a_damaged_file_is_reported_and_done_again(tmp_path, undisturbed):
    sweep.sweep(configs(), tmp_path, "cpu")
    path = results.path_of(tmp_path, configs()[1])
    path.write_text(path.read_text()[:100])
    missing, problems = sweep.pending(configs(), tmp_path, "cpu")
    assert missing == [configs()[1]] and len(problems) == 1 and path.name in problems[0]
    sweep.sweep(missing, tmp_path, "cpu")
    assert_same_results(tmp_path, undisturbed, configs())


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


def test_a_damaged_unfinished_run_starts_anew(tmp_path, undisturbed, capsys):
    config = configs()[0]
    unfinished = tmp_path / ".unfinished" / results.path_of(tmp_path, config).stem
    (unfinished / "checkpoints").mkdir(parents=True)
    (unfinished / "checkpoints" / "epoch-00001.weights.h5").write_bytes(b"not a checkpoint")
    assert sweep.sweep([config], tmp_path, "cpu") == {}
    assert "starts anew" in capsys.readouterr().err
    one, two = (results.read(results.path_of(d, config))["history"] for d in (tmp_path, undisturbed))
    pd.testing.assert_frame_equal(one.drop(columns="seconds"), two.drop(columns="seconds"), check_exact=True)


PROGRAM = """
import sys
from prl_keras.experiments import sweep
from sweep_test import configs
if __name__ == "__main__":
    sweep._CHECKPOINT_SECONDS = 0
    missing, _ = sweep.pending(configs(epochs=40), sys.argv[1], "cpu")
    assert not sweep.sweep(missing, sys.argv[1], "cpu", workers=int(sys.argv[2]))
"""


def start(directory, workers):
    program = directory.parent / "program.py"
    program.write_text(PROGRAM)
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    return subprocess.Popen(
        [sys.executable, program, directory, str(workers)],
        cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip


def children_of(pid):
    found = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in found]


def is_alive(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("workers", [1, 2])
def test_killed_in_the_middle_and_started_again_it_ends_the_same(tmp_path, workers):
    """kill -9 once some runs have ended and another is under way."""
    killed, straight = tmp_path / "killed", tmp_path / "straight"
    process = start(killed, workers)
    deadline = time.monotonic() + 120
    while not (list(killed.glob("*.json")) and list(killed.glob(".unfinished/*/checkpoints/*.h5"))):
        assert process.poll() is None and time.monotonic() < deadline, process.stderr.read()
        time.sleep(0.002)
    children = children_of(process.pid)
    process.send_signal(signal.SIGKILL)
    process.wait()
    while any(map(is_alive, children)):  # the workers end by themselves
        assert time.monotonic() < deadline
        time.sleep(0.05)
    finished = {path: path.stat().st_mtime_ns for path in killed.glob("*.json")}
    assert 0 < len(finished) < len(configs())

    again = start(killed, workers)
    assert again.wait(240) == 0, again.stderr.read()
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    assert start(straight, 1).wait(240) == 0
    assert_same_results(killed, straight, configs(epochs=40))
