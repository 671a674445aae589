"""One run: its files, its refusals, and going on after a kill."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pandas as pd
import pytest
from processes import python
from project import ROOT

from prl_keras import files
from prl_keras.experiments.data.load import load
from prl_keras.experiments.runs import checkpoints
from prl_keras.experiments.runs.config import RunConfig
from prl_keras.experiments.runs.run import run, versions

TINY = RunConfig("teacher", "prl_l", "signflip", 0.2, epochs=2, batch_size=500)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run, and its result."""
    directory = tmp_path_factory.mktemp("finished") / "run"
    return directory, run(TINY, directory, verbose=0)


@pytest.fixture
def copy(finished, tmp_path):
    """A copy of it, for a test to change."""
    return shutil.copytree(finished[0], tmp_path / "run")


class TestFiles:
    def test_are_whole_and_say_what_was_done(self, finished):
        directory, result = finished
        names = {path.name for path in directory.iterdir()}
        expected = {"config.json", "history.csv", "result.json", "model.keras", "curves.png", "selection.npz"}
        assert names == expected
        config = json.loads((directory / "config.json").read_text())
        assert config["method"] == "prl_l" and config["corruption_rate"] == 0.2
        assert config["versions"]["keras"] == keras.__version__ and "git_revision" in config["versions"]
        rows = list(csv.DictReader((directory / "history.csv").open()))
        assert [row["epoch"] for row in rows] == ["1", "2"]
        assert {"seconds", "loss", "loss_all", "test_r2_score", "drop_precision", "drop_recall"} <= set(
            rows[0]
        )
        assert json.loads((directory / "result.json").read_text()) == result
        assert result["test_mean"] == pytest.approx(np.mean([float(row["test_r2_score"]) for row in rows]))
        assert (directory / "curves.png").read_bytes().startswith(b"\x89PNG")

    def test_the_history_agrees_with_the_saved_model(self, finished):
        directory, result = finished
        data = load("teacher")
        predicted = keras.models.load_model(directory / "model.keras").predict(data.test_x, verbose=0)
        residual = ((data.test_y - predicted) ** 2).sum(axis=0)
        total = ((data.test_y - data.test_y.mean(axis=0)) ** 2).sum(axis=0)
        assert result["test_final"] == pytest.approx(np.mean(1 - residual / total), abs=1e-4)

    def test_interrupted_writing_leaves_the_old_file(self, tmp_path):
        files.write_json(tmp_path / "a.json", {"x": 1.5, "bad": float("nan"), "list": [float("inf")]})
        with pytest.raises(KeyError), files.replacing(tmp_path / "a.json") as temporary:
            temporary.write_text("half")
            raise KeyError
        assert files.read_json(tmp_path / "a.json") == {"x": 1.5, "bad": None, "list": [None]}
        assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
        (tmp_path / "b.json").write_text('{"x": 1')
        with pytest.raises(ValueError, match=r"b\.json is damaged"):
            files.read_json(tmp_path / "b.json")


def test_the_revision_is_clean_if_the_whole_package_is(monkeypatch):
    looked_at = []

    def git(command, cwd, **_):
        looked_at.append((command[1], cwd / command[-1]))
        return subprocess.CompletedProcess(command, 0, stdout="")

    monkeypatch.setattr(subprocess, "run", git)
    assert versions.__wrapped__()["git_is_clean"]
    assert ("status", ROOT / "prl_keras") in looked_at


class TestAnExistingRun:
    @pytest.mark.fault(25)
    def test_is_never_overwritten_unasked(self, copy):
        before = (copy / "model.keras").read_bytes()
        with pytest.raises(FileExistsError, match=r"--resume.*--overwrite.*--output_dir"):
            run(TINY, copy, verbose=0)
        assert (copy / "model.keras").read_bytes() == before

    def test_is_replaced_if_asked_and_foreign_files_stay(self, copy):
        (copy / "notes.txt").write_text("mine")
        other = RunConfig("teacher", "standard", "none", 0.0, epochs=1, batch_size=500)
        assert run(other, copy, overwrite=True, verbose=0)["epochs"] == 1
        assert (copy / "notes.txt").read_text() == "mine"

    def test_that_has_ended_is_returned_by_resume(self, copy, finished):
        before = (copy / "history.csv").stat().st_mtime_ns
        assert run(TINY, copy, resume=True, verbose=0) == finished[1]
        assert (copy / "history.csv").stat().st_mtime_ns == before

    def test_of_another_config_is_not_resumed(self, copy):
        other = RunConfig("teacher", "prl_l", "signflip", 0.3, epochs=2, batch_size=500)
        with pytest.raises(ValueError, match=r"epsilon was 0\.2, is now 0\.3"):
            run(other, copy, resume=True, verbose=0)


class TestCheckpoints:
    @pytest.mark.fault(22)
    def test_a_truncated_newest_falls_back_to_the_one_before(self, tmp_path):
        def model():
            network = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, kernel_initializer="zeros")])
            network.compile("adam", "mse")
            return network

        first = model()
        first.fit(np.ones((8, 2)), np.ones((8, 1)), epochs=3, verbose=0,
                  callbacks=[checkpoints.SaveCheckpoints(tmp_path)])  # fmt: skip
        kept = sorted(path.name for path in tmp_path.iterdir())
        assert kept == ["epoch-00002.weights.h5", "epoch-00003.weights.h5"]
        restored = model()
        assert checkpoints.restore(restored, tmp_path) == 3
        np.testing.assert_array_equal(restored.get_weights()[0], first.get_weights()[0])
        assert int(restored.optimizer.iterations) == 3

        newest = tmp_path / kept[-1]
        newest.write_bytes(newest.read_bytes()[:2000])
        assert checkpoints.restore(model(), tmp_path) == 2
        (tmp_path / kept[0]).write_bytes(b"")
        with pytest.raises(ValueError, match=r"No checkpoint .* can be read.*epoch-00003"):
            checkpoints.restore(model(), tmp_path)
        assert checkpoints.restore(model(), tmp_path / "none") == 0

    def test_dropout_goes_on_where_it_was(self, tmp_path):
        x, y = np.ones((8, 4)), np.ones((8, 2))

        def model():
            inputs = keras.Input((4,))
            dropped = keras.layers.Dropout(0.5, seed=3)(inputs)
            dense = keras.layers.Dense(2, kernel_initializer=keras.initializers.GlorotUniform(0))
            network = keras.Model(inputs, dense(dropped))
            network.compile("adam", "mse")
            return network

        straight, stopped, resumed = model(), model(), model()
        straight.fit(x, y, epochs=4, verbose=0)
        stopped.fit(x, y, epochs=2, verbose=0, callbacks=[checkpoints.SaveCheckpoints(tmp_path)])
        resumed.fit(x, y, epochs=4, initial_epoch=checkpoints.restore(resumed, tmp_path), verbose=0)
        np.testing.assert_equal(resumed.get_weights(), straight.get_weights())


@pytest.mark.long
@pytest.mark.fault(22)
@pytest.mark.parametrize("method", ["prl_l", "co_prl_l", "prl_g"])
def test_a_killed_run_goes_on_to_the_weights_of_an_undisturbed_one(tmp_path, method):
    """SIGKILL in mid-epoch; batch norm's statistics, a drop schedule and Adam's state included."""
    network = "mlp" if method == "prl_g" else "small_cnn"
    program = [
        "-m", "binaries.train", f"--method={method}", f"--network={network}", "--corruption=symmetric",
        "--epsilon=0.35", "--batch_size=64", "--epochs=4", "--ramp_epochs=3",
    ]  # fmt: skip
    python(*program, f"--output_dir={tmp_path / 'straight'}")

    program.append(f"--output_dir={tmp_path / 'killed'}")
    history = tmp_path / "killed" / "history.csv"
    silent = subprocess.DEVNULL
    process = subprocess.Popen([sys.executable, *program], cwd=ROOT, stdout=silent, stderr=silent)
    deadline = time.monotonic() + 120
    while len(history.read_text().splitlines() if history.exists() else []) < 3:  # header and two epochs
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    time.sleep(0.1)  # into the third epoch
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed" / "result.json").exists()

    python(*program, "--resume")
    folders = [tmp_path / "straight", tmp_path / "killed"]
    np.testing.assert_equal(*(keras.models.load_model(f / "model.keras").get_weights() for f in folders))
    tables = [pd.read_csv(folder / "history.csv").drop(columns="seconds") for folder in folders]
    pd.testing.assert_frame_equal(*tables, check_exact=True)
