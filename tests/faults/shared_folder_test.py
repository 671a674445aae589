"""Two runs in one folder."""

import os
import signal

import pytest
from train_process import TINY, start, wait_for_epochs

from prl_keras import files
from prl_keras.experiments.runs.config import RunConfig
from prl_keras.experiments.runs.run import run


@pytest.mark.long
@pytest.mark.fault(25)
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


@pytest.mark.long
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
