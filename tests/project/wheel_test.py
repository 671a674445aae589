"""The wheel: the library and the search, without the experiments unless one asks for them."""

import os
import shutil
import subprocess
import sys
import zipfile

import pytest
from project import ROOT

TRAINS = """
import keras, numpy as np, prl_keras as prl
x = np.random.default_rng(0).normal(size=(64, 8)).astype("float32")
model = prl.RobustModel(keras.Sequential([keras.Input((8,)), keras.layers.Dense(3)]), rule=prl.Trim(0.2))
model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
model.fit(x, x[:, :3].argmax(axis=1), verbose=0)
print(prl.__version__, prl.__file__)
"""


def wheel(folder, **environment):
    """What `pip wheel .` gives: the path and the names in it."""
    source = folder / "source"
    shutil.copytree(ROOT / "prl_keras", source / "prl_keras")
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", f"--wheel-dir={folder}", "."]
    subprocess.run(command, cwd=source, check=True, capture_output=True, env={**os.environ, **environment})
    (path,) = folder.glob("*.whl")
    with zipfile.ZipFile(path) as file:
        return path, file.namelist()


@pytest.mark.long  # it installs setuptools into an environment of its own
def test_it_trains_without_the_experiments(tmp_path):
    path, names = wheel(tmp_path / "small")
    assert {"prl_keras/tuning/tuner.py", "prl_keras/py.typed", "prl_keras/audit.py"} <= set(names)
    assert {f"prl_keras/reports/page.{suffix}" for suffix in ("css", "html", "js")} <= set(names)
    assert not any("experiments" in name or name.startswith("tests") for name in names)
    with zipfile.ZipFile(path) as file:
        file.extractall(tmp_path / "site")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    command = [sys.executable, "-c", TRAINS]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    version, file = done.stdout.split()
    assert file.startswith(str(tmp_path)) and version in path.name
    _, names = wheel(tmp_path / "whole", PRL_KERAS_EXPERIMENTS="1")
    assert "prl_keras/experiments/paper/numbers/table1_celeba_r2.csv" in names
