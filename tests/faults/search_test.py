"""Searches that are killed: every trial is run, and none twice."""

import os
import re
import signal
import socket
import subprocess
import sys
import time

import pandas as pd
import pytest

from prl_keras import files
from prl_keras.tuning import report

TRIALS, EXECUTIONS = 5, 2
SECONDS = 240  # in which a search ends


class Search:
    """Processes of one search; what they printed is kept."""

    def __init__(self, directory, port=None):
        self.directory, self.port, self.processes = directory, port, {}
        directory.mkdir()

    def start(self, name):
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONUNBUFFERED": "1"}
        if self.port is not None:
            environment |= {
                "KERASTUNER_TUNER_ID": name,
                "KERASTUNER_ORACLE_IP": "127.0.0.1",
                "KERASTUNER_ORACLE_PORT": str(self.port),
            }
        command = [
            sys.executable, "-m", "binaries.tune", "--dataset=teacher", "--corruption=signflip",
            "--epsilon=0.3", "--objective=val_trimmed_loss", "--epochs=3", "--train_size=200",
            f"--max_trials={TRIALS}", f"--executions_per_trial={EXECUTIONS}",
            f"--output_dir={self.directory / 'search'}",
        ]  # fmt: skip
        with open(self.directory / f"{name}.log", "a") as log:
            self.processes[name] = subprocess.Popen(
                command, env=environment, stdout=log, stderr=subprocess.STDOUT
            )

    def kill(self, name):
        self.processes[name].send_signal(signal.SIGKILL)
        self.processes[name].wait()

    def wait(self):
        for process in self.processes.values():
            assert process.wait(SECONDS) == 0, self.said()

    def said(self):
        return "\n".join(path.read_text() for path in sorted(self.directory.glob("*.log")))

    def ended(self):
        """(trial, execution) of every training that ended, as printed by who ran it."""
        return re.findall(r"Trial (\d+), execution (\d+): ", self.said())

    def ended_on_all(self):
        """Index of every training on all the data that ended."""
        return re.findall(r"On all the data, training (\d+): ", self.said())

    def wait_for(self, count, ended=ended):
        """Until so many executions have ended and another one has had time to start."""
        until = time.monotonic() + SECONDS
        while len(ended(self)) < count:
            assert time.monotonic() < until, self.said()
            time.sleep(0.1)

    def check(self):
        """No trial lost, none run twice."""
        expected = [(str(trial), str(i)) for trial in range(TRIALS) for i in range(EXECUTIONS)]
        assert sorted(self.ended()) == expected, self.said()
        assert self.ended_on_all() == ["0", "1", "2"], self.said()
        oracle = files.read_json(self.directory / "search" / "oracle.json")
        assert {trial["status"] for trial in oracle["trials"].values()} == {"COMPLETED"}
        assert sorted(oracle["trials"]) == sorted(oracle["end_order"]) == [str(i) for i in range(TRIALS)]
        assert oracle["ongoing_trials"] == {} and oracle["retry_queue"] == []

    def table(self):
        return report.executions(self.directory / "search").drop(columns="seconds")


@pytest.fixture
def searches(tmp_path):
    started = []

    def search(name, port=None):
        started.append(Search(tmp_path / name, port))
        return started[-1]

    yield search
    for one in started:
        for process in one.processes.values():
            process.kill()
            process.wait()


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.mark.long
def test_a_search_killed_three_times_ends_as_an_undisturbed_one(searches):
    undisturbed, killed = searches("undisturbed"), searches("killed")
    undisturbed.start("alone")
    undisturbed.wait()
    for count in (1, 4):
        killed.start("alone")
        killed.wait_for(count)
        killed.kill("alone")
    killed.start("alone")
    killed.wait_for(2, Search.ended_on_all)
    killed.kill("alone")
    killed.start("alone")
    killed.wait()
    for search in (undisturbed, killed):
        search.check()
    pd.testing.assert_frame_equal(killed.table(), undisturbed.table())
    best = [files.read_json(search.directory / "search" / "best.json") for search in (killed, undisturbed)]
    for each in best:
        del each["values"]["seconds"], each["model"]["seconds"]
    assert best[0] == best[1] and best[0]["command"] in undisturbed.said()
    assert (killed.directory / "search" / "model.keras").exists()
    assert (killed.directory / "search" / "epsilon.png").stat().st_size > 5000


@pytest.mark.long  # a minute
def test_a_chief_and_two_workers_of_which_each_is_killed(searches):
    search = searches("several", free_port())
    for name in ("chief", "worker0", "worker1"):
        search.start(name)
    search.wait_for(2)
    search.kill("worker0")
    search.start("worker0")
    search.wait_for(4)
    search.kill("chief")
    time.sleep(3)  # in which the workers find nobody
    search.start("chief")
    search.wait()
    search.check()
    assert all("Trial" in (search.directory / f"worker{i}.log").read_text() for i in (0, 1))
    assert (search.directory / "search" / "trials.md").exists()
    model = search.directory / "search" / "model.keras"
    assert model.exists()
    model.unlink()  # as if the chief had been killed in the final trainings, when the workers have gone
    search.start("chief")
    search.wait()
    search.check()
    assert model.exists()
