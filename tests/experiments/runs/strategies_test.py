"""The programs on several devices: what they write is what one device writes."""

import json

import numpy as np
import pandas as pd
import pytest
from processes import python

from prl_keras.experiments.benchmark import measure
from prl_keras.experiments.runs.strategies import is_chief, make_strategy

SWEEP = """
import sys
from prl_keras.experiments.runs import results
from prl_keras.experiments.runs import sweep
from prl_keras.experiments.runs.config import RunConfig

common = ("teacher", "co_prl_l", "signflip", 0.2)
configs = [RunConfig(*common, epochs=2, batch_size=501, seed=seed) for seed in (0, 1)]
strategy = {"name": "auto", "virtual_devices": int(sys.argv[2])}
assert sweep.sweep(configs, sys.argv[1], "cpu", int(sys.argv[3]), strategy=strategy) == {}
for config in configs:
    content = results.read(results.path_of(sys.argv[1], config), config, "cpu")
    print(content["device"].split(",")[0], content["history"]["test_r2_score"].tolist()[-1])
"""


@pytest.mark.long  # a command of README.md trains on two
@pytest.mark.parametrize("method", ["prl_g", "standard"])
def test_training_on_three_devices_is_training_on_one(tmp_path, method):
    # Batches of 100 for three devices, and a last one of 47: shares of 34, 33 and 33, of 16, 16 and 15.
    flags = [
        "--dataset=digits",
        f"--method={method}",
        "--corruption=symmetric",
        "--epsilon=0.3",
        "--epochs=2",
    ]
    flags += ["--batch_size=100", "--network=mlp"]
    for name, devices in (("one", ["--strategy=one"]), ("three", ["--virtual_devices=3"])):
        python("-m", "binaries.train", *flags, *devices, f"--output_dir={tmp_path / name}")
    one, three = (pd.read_csv(tmp_path / name / "history.csv") for name in ("one", "three"))
    assert set(one) <= set(three)
    for name in set(one) - {"seconds"}:
        np.testing.assert_allclose(three[name], one[name], rtol=1e-3, atol=1e-5, err_msg=name)
    config = json.loads((tmp_path / "three" / "config.json").read_text())
    assert (config["strategy"], config["replicas"]) == ("MirroredStrategy", 3)


@pytest.mark.long
@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_sweep_on_two_devices(tmp_path, workers):
    lines = [
        python("-c", SWEEP, tmp_path / devices, devices, count).stdout.splitlines()[-2:]
        for devices, count in (("1", "1"), ("2", workers))
    ]
    devices = [[line.rsplit(" ", 1)[0] for line in each] for each in lines]
    assert devices == [["CPU"] * 2, ["2 replicas"] * 2]
    one, two = [[float(line.rsplit(" ", 1)[1]) for line in each] for each in lines]
    np.testing.assert_allclose(two, one, rtol=1e-3)


_CLUSTER = '{"cluster": {"worker": ["a:1", "b:1"]}, "task": %s}'
_TASKS = (
    '{"type": "worker", "index": 2}',
    '{"type": "worker", "index": null}',
    '{"type": "evaluator", "index": 0}',
)


@pytest.mark.parametrize(
    "config",
    [
        "{",
        "[]",
        '{"task": {}}',
        '{"cluster": {"worker": ["a:1"]}}',
        '"x"',
        *(_CLUSTER % task for task in _TASKS),
    ],
)
def test_a_config_that_is_none_is_shown(monkeypatch, config):
    monkeypatch.setenv("TF_CONFIG", config)
    with pytest.raises(ValueError, match=r"TF_CONFIG is not as TensorFlow wants it.*It looks like"):
        make_strategy("auto")


def test_what_does_not_go_together_is_refused(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    with pytest.raises(ValueError, match=r"strategy='multi_worker' needs the environment variable TF_CONFIG"):
        make_strategy("multi_worker")
    with pytest.raises(ValueError, match=r"strategy='two' is unknown; write one of auto, one, mirrored"):
        make_strategy("two")
    with pytest.raises(ValueError, match="Virtual devices are of one machine"):
        make_strategy("multi_worker", virtual_devices=2)
    with pytest.raises(ValueError, match=r"suites through fit: write --suite=mlp"):
        measure.benchmark(["step"], virtual_devices=2)
    assert is_chief(make_strategy("one"))


@pytest.mark.long
def test_devices_that_come_too_late_are_an_error_on_a_line(tmp_path):
    program = (
        "import tensorflow as tf; tf.constant(1.0) + 1\nfrom prl_keras.experiments.runs.strategies import *"
    )
    done = python("-c", f"{program}\nmake_strategy('auto', 2)", check=False, TF_CONFIG="")
    assert "virtual_devices=2 comes too late: TensorFlow has started." in done.stderr
