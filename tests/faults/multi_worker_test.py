"""Two processes on this machine train one model, as several machines would (TF_CONFIG, loopback)."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time

import keras
import numpy as np
import pandas as pd
import pytest
from arrays import assert_all_close
from project import ROOT

import prl_keras as prl

SECONDS = 240  # for any step of a test, on a busy machine
SETUP = """
import json, sys
import keras, numpy as np, tensorflow as tf
from prl_keras.experiments.runs.strategies import make_strategy, sharded_by_data
strategy = make_strategy("auto")
import prl_keras as prl

loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
rng = np.random.default_rng(0)
x, y = rng.normal(size=(21, 5)).astype("float32"), rng.integers(0, 3, 21)
# Batches of 5, uneven for two, and a last one of 1: a process has nothing of it.
data = sharded_by_data(tf.data.Dataset.from_tensor_slices((x, y)).batch(5))

def network(seed, *middle):
    dense = keras.layers.Dense(3, kernel_initializer=keras.initializers.GlorotUniform(seed))
    return keras.Sequential([keras.Input((5,)), *middle, dense])
"""
FIT = """
found = {}
for method in sys.argv[1:]:
    with strategy.scope():
        seeds = iter(range(2))
        model = prl.build(method, lambda: network(next(seeds)), epsilon=0.4, loss=loss,
                          optimizer=keras.optimizers.SGD(0.5, momentum=0.9), metrics=["accuracy"])
    logs = model.fit(data, epochs=2, validation_data=data, verbose=0).history
    found[method] = [[w.tolist() for w in model.get_weights()], logs]
with strategy.scope():
    model = prl.RobustModel(network(0, keras.layers.BatchNormalization()))
    model.compile("sgd", loss)
logs = model.fit(data, epochs=2, validation_data=data, verbose=0).history
found["batch norm"] = [[w.tolist() for w in model.get_weights()], logs]
print(json.dumps(found))
"""
PLAIN_KERAS = """
def error_of_fit(make):
    with strategy.scope():
        model = make()
        model.compile("sgd", loss)
    try:
        model.fit(data, verbose=0)
    except Exception as error:
        return f"{type(error).__name__}: {error}"

class Built(keras.Model):
    def _maybe_symbolic_build(self, **_):
        pass

def built():
    inner = network(0)
    return Built(inner.inputs, inner.outputs)

print(json.dumps([error_of_fit(lambda: network(0)), error_of_fit(built)]))
"""


def free_ports(count):
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


class Member:
    """A process of a cluster. What it prints goes into a file: a full pipe would stop it, and all others."""

    def __init__(self, command, config, log):
        self.log = log
        with open(log, "w") as file:
            environment = os.environ | {"TF_CONFIG": json.dumps(config)}
            self.process = subprocess.Popen(
                [sys.executable, *command], env=environment, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT
            )

    def end(self):
        """-> (return code, all that it printed), when it has ended."""
        self.process.wait(timeout=SECONDS)
        return self.process.returncode, self.log.read_text()

    def succeed(self):
        """-> all that it printed."""
        code, text = self.end()
        assert code == 0, text[-3000:]
        return text

    def results(self):
        """-> all the JSON that it printed, each on a line of its own."""
        return [json.loads(line) for line in self.succeed().splitlines() if line.startswith(("{", "["))]


@contextlib.contextmanager
def cluster(command, folder, started=2, size=2):
    """The first `started` members of a cluster; killed at the end if they are still there."""
    workers = [f"127.0.0.1:{port}" for port in free_ports(size)]
    members = []
    try:
        for index in range(started):
            config = {"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}}
            members.append(Member(command, config, folder / f"{index}.log"))
        yield members
    finally:
        for member in members:
            member.process.kill()
            member.process.wait()


@pytest.fixture(scope="module", params=[("co_prl_l", "prl_g"), ("prl_l", "normclip")])
def told(request, tmp_path_factory):
    """Methods, and what the two processes of a cluster print: of `FIT`, and of `PLAIN_KERAS` after it."""
    methods = request.param
    with cluster(["-c", SETUP + FIT + PLAIN_KERAS, *methods], tmp_path_factory.mktemp("cluster")) as members:
        return methods, [member.results() for member in members]


@pytest.mark.long
@pytest.mark.fault(19)
def test_two_processes_learn_what_one_learns(told, monkeypatch):
    methods, ((first, _), (second, _)) = told
    assert first["batch norm"] == second["batch norm"]  # its moving statistics, too
    monkeypatch.setattr(sys, "argv", ["alone", *methods])
    here = {}
    exec(SETUP + FIT, here)
    alone = here["found"]
    for method in methods:
        (weights, logs), (others, other_logs), (expected, expected_logs) = (
            found[method] for found in (first, second, alone)
        )
        for a, b, c in zip(weights, others, expected, strict=True):
            np.testing.assert_array_equal(a, b, err_msg=method)
            np.testing.assert_allclose(a, c, rtol=0, atol=1e-5, err_msg=method)
        for name, values in expected_logs.items():
            np.testing.assert_allclose(logs[name], values, rtol=1e-4, err_msg=f"{method} {name}")
            assert logs[name] == other_logs[name]


@pytest.mark.long
def test_plain_keras_still_stops_in_both_places(told):
    """If this fails, `prl_keras/keras_gaps/replicas.py` can lose what its points 1 and 2 are for."""
    for _, (building, reducing) in told[1]:
        assert building is not None and reducing is not None, (building, reducing)


def train(output_dir, *flags):
    return ["-m", "binaries.train", "--dataset=digits", "--method=prl_l", "--corruption=symmetric",
            "--epsilon=0.3", "--epochs=6", f"--output_dir={output_dir}", *flags]  # fmt: skip


@pytest.mark.long
def test_a_killed_process_and_all_resumed_end_as_if_undisturbed(tmp_path):
    with cluster(train(tmp_path / "whole"), tmp_path) as members:
        assert ["test accuracy" in member.succeed() for member in members] == [
            True,
            False,
        ]  # the chief's word

    with cluster(train(tmp_path / "killed"), tmp_path) as members:
        wait_for((tmp_path / "killed" / "checkpoints" / "epoch-00002.weights.h5").exists)
        members[1].process.kill()
        assert members[0].end()[0] != 0  # an error, and no waiting for ever
    assert not (tmp_path / "killed" / "result.json").exists()

    with cluster(train(tmp_path / "killed", "--resume"), tmp_path) as members:
        for member in members:
            member.succeed()
    models = [keras.saving.load_model(tmp_path / name / "model.keras") for name in ("whole", "killed")]
    assert all(isinstance(model, prl.RobustModel) for model in models)
    assert_all_close(*(model.get_weights() for model in models), rtol=0)
    whole, killed = (
        pd.read_csv(tmp_path / name / "history.csv").drop(columns="seconds") for name in ("whole", "killed")
    )
    pd.testing.assert_frame_equal(whole, killed, rtol=1e-5)


# As `binaries.train`: first of different flags, where a process goes on instead of ending by `os._exit`; then
# with the second process unable to read its data.
FAILS = """
import json, os, sys
from prl_keras.experiments.runs import run
from prl_keras.experiments.runs.config import RunConfig
from prl_keras.experiments.runs.strategies import make_strategy
strategy = make_strategy("multi_worker")
index, folder = json.loads(os.environ["TF_CONFIG"])["task"]["index"], sys.argv[1]

leave, os._exit = os._exit, sys.exit
try:
    run.run(RunConfig(epochs=2, learning_rate=[0.1, 0.2][index]), folder, strategy=strategy)
except SystemExit as end:
    print("ended with", end.code, "folder is there:", os.path.exists(folder), flush=True)
os._exit = leave

def missing(*_, **__):
    raise FileNotFoundError("no such data here")

if index == 1:
    run.load = missing
run.run(RunConfig(epochs=2), folder, strategy=strategy)
"""


@pytest.mark.long
def test_different_flags_or_an_error_in_one_process_end_all(tmp_path):
    with cluster(["-c", FAILS, str(tmp_path / "run")], tmp_path) as members:
        ends = [member.end() for member in members]
    for _, text in ends:
        assert "do not agree on the run's flags and data" in text
        assert "ended with 1 folder is there: False" in text
    assert ends[1][0] == 1 and "FileNotFoundError: no such data here" in ends[1][1]
    assert ends[0][0] != 0 and not (tmp_path / "run" / "result.json").exists()


@pytest.mark.long
def test_a_process_that_never_comes_is_an_error_in_time(tmp_path):
    start = time.monotonic()
    with cluster(train(tmp_path / "run", "--cluster_timeout=5"), tmp_path, started=1) as (member,):
        code, text = member.end()
    assert code == 1 and "Waiting at most 5 seconds for the 2 processes of TF_CONFIG." in text
    assert time.monotonic() - start < 120 and not (tmp_path / "run").exists()


def wait_for(condition):
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.02)
