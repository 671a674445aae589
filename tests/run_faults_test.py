"""Faults while a run is written: full disks, folders that are none, two runs in one, SIGTERM."""

import os
import pathlib
import resource
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pytest

from prl_keras import files
from prl_keras.experiments.config import RunConfig
from prl_keras.experiments.run import run

ROOT = pathlib.Path(__file__).parent.parent
TINY = RunConfig("teacher", "prl_l", "signflip", 0.2, epochs=2, batch_size=500)
FLAGS = ["--dataset=teacher", "--corruption=signflip", "--epsilon=0.2", "--batch_size=500"]


def start(output_dir, *flags, **kwargs):
    command = [sys.executable, "-m", "binaries.train", f"--output_dir={output_dir}", *FLAGS, *flags]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=ROOT, **streams, **kwargs)


def wait_for_epochs(output_dir, count, process):
    history, deadline = output_dir / "history.csv", time.monotonic() + 120
    while len(history.read_text().splitlines() if history.exists() else []) <= count:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)


def test_one_at_a_time_in_a_folder_and_a_killed_one_holds_nothing(tmp_path):
    process = start(tmp_path, "--epochs=100000")
    try:
        wait_for_epochs(tmp_path, 1, process)
        for choice in ({}, {"resume": True}, {"overwrite": True}):
            with pytest.raises(FileExistsError, match=r"Another process is at work in|holds a run already"):
                run(RunConfig("teacher", "prl_l", "signflip", 0.2, epochs=100000, batch_size=500), tmp_path,
                    verbose=0, **choice)  # fmt: skip
        with pytest.raises(FileExistsError, match="Another process is at work in"), files.locked(tmp_path):
            pass
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert run(TINY, tmp_path, overwrite=True, verbose=0)["epochs"] == 2
    assert not [path for path in tmp_path.iterdir() if "lock" in path.name]


def test_a_run_that_ended_while_another_came_is_not_replaced(tmp_path, monkeypatch):
    make, done = files.locked, []

    def slow(directory):
        if not done:
            done.append(True)
            run(TINY, tmp_path, verbose=0)
        return make(directory)

    monkeypatch.setattr(files, "locked", slow)
    with pytest.raises(FileExistsError, match="holds a run already"):
        run(TINY, tmp_path, verbose=0)


def test_after_sigterm_what_was_done_is_whole_and_resume_goes_on(tmp_path):
    process = start(tmp_path / "stopped", "--epochs=40")
    wait_for_epochs(tmp_path / "stopped", 2, process)
    process.terminate()
    process.wait()
    rows = (tmp_path / "stopped" / "history.csv").read_text().splitlines()
    assert 3 <= len(rows) < 41 and len({row.count(",") for row in rows}) == 1
    config = RunConfig("teacher", "prl_l", "signflip", 0.2, epochs=40, batch_size=500)
    run(config, tmp_path / "stopped", resume=True, verbose=0)
    run(config, tmp_path / "straight", verbose=0)
    models = [keras.models.load_model(tmp_path / name / "model.keras") for name in ("stopped", "straight")]
    for a, b in zip(*(model.get_weights() for model in models)):
        np.testing.assert_array_equal(a, b)


def test_a_folder_that_cannot_be_is_said_before_training(tmp_path):
    (tmp_path / "file").write_text("")
    for output_dir in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(OSError, match=r"file.* cannot be made: .* Take another --output_dir"):
            run(TINY, output_dir, callbacks=[Fails()], verbose=0)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_said_before_training(tmp_path):
    tmp_path.chmod(0o555)
    with pytest.raises(OSError, match=r"config\.json cannot be written"):
        run(TINY, tmp_path, callbacks=[Fails()], verbose=0)


class Fails(keras.callbacks.Callback):
    def on_train_begin(self, logs=None):
        raise AssertionError("training began")


@pytest.mark.parametrize("at", ["config", "checkpoint"])
def test_a_full_disk_is_a_line_that_names_the_file_and_what_is_there_is_whole(tmp_path, at):
    """Files may have so many bytes and no more, which fails as a full disk does."""
    size = {"config": 100, "checkpoint": 60_000}[at]
    process = start(
        tmp_path, "--epochs=2", preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    )
    output = process.communicate(timeout=300)[0]
    assert process.returncode not in (0, None)
    name = {"config": "config.json", "checkpoint": "epoch-00001.weights.h5"}[at]
    assert f"{name} cannot be written" in output and "Make room" in output
    assert "Traceback (most recent call last):\n  File" not in output
    left = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert left == ({"config.json", "history.csv", "selection.npz"} if at == "checkpoint" else set())
    if at == "checkpoint":
        assert run(TINY, tmp_path, resume=True, verbose=0)["epochs"] == 2
