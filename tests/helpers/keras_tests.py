"""Runs Keras's own tests of `fit` and of callbacks with their networks inside a `RobustModel`.

    python tests/helpers/keras_tests.py [--score=loss_layer_gradient] [more arguments of pytest]

Keras installs its tests with the package. This script copies them into a temporary folder, wraps every
network in a `RobustModel` that drops nothing, and runs them. docs/keras.md lists the tests that differ, and
why. Tests of other packages (orbax-checkpoint, tensorboard, jax, torch, grain) need these packages.
"""

import argparse
import importlib.util
import pathlib
import re
import subprocess
import sys
import tempfile

import keras

FOLDER = pathlib.Path(keras.__file__).parent / "src"
FILES = [FOLDER / "trainers" / "trainer_test.py", *sorted((FOLDER / "callbacks").glob("*_test.py"))]

_HEAD = '''
import keras as _keras
import prl_keras as _prl


class _Wrapped(_prl.RobustModel):
    """Without the logs of the selection, and with the attributes and layers of the network."""

    @property
    def layers(self):
        return self.network.layers

    @property
    def metrics(self):
        return [m for m in super().metrics if m.name not in self.step_metrics.names]

    def __getattr__(self, name):
        if name in ("network", "networks") or name.startswith("__") or "network" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self.__dict__["network"], name)


@_keras.saving.register_keras_serializable()
class Wrapped(_Wrapped):
    pass


def wrapped(network):
    return Wrapped(network, score=SCORE, rule=_prl.Trim(0.0))


def wrapped_class(network_class):
    class Robust(_Wrapped):
        def __init__(self, *args, **kwargs):
            super().__init__(network_class(*args, **kwargs), score=SCORE, rule=_prl.Trim(0.0))

    Robust.__name__ = network_class.__name__
    return Robust
'''
_CONFTEST = """
import keras
import pytest


def pytest_configure(config):
    for marker in ("requires_trainable_backend", "multi_device"):
        config.addinivalue_line("markers", marker)


def skip_if_backend(backend, reason):
    return pytest.mark.skipif(keras.backend.backend() == backend, reason=reason)
"""
_CALLS = re.compile(r"(?<![\w.])(?:keras\.|keras\.models\.|models\.)?(?:Sequential|(?<=\.)Model)\(")
_BASES = r"_keras\.Model, .*|layers\.Dense, _keras\.Model|keras\.Model|keras\.src\.Functional"
_CLASS = re.compile(rf"^( *)class \w+\((?:{_BASES})\):$", re.MULTILINE)


def converted(text: str, score: str | None) -> str:
    """A test file in which every network is inside a `RobustModel`."""
    if importlib.util.find_spec("jax") is None:
        text = re.sub(r"^import jax$", "", text, flags=re.MULTILINE)
    # A "Trainer" with a layer is a Keras model, which RobustModel asks for.
    text = text.replace("(Trainer, layers.Dense)", "(layers.Dense, _keras.Model)")
    text = re.sub(r"\(Trainer, (layers|keras\.layers)\.", r"(_keras.Model, \1.", text)
    text = text.replace("layers.Layer.__init__(self", "_keras.Model.__init__(self")
    text = text.replace(
        "Trainer.__init__(self)", "isinstance(self, layers.Dense) and _keras.Model.__init__(self)"
    )
    text = re.sub(r"\bself\.layers\b", "self.parts", text)  # `layers` of a Keras model is a property
    text = _CLASS.sub(lambda found: f"{found[1]}@wrapped_class\n{found[0]}", text)
    done = ""
    while found := _CALLS.search(text):
        is_class = re.search(r"class \w+\($", text[: found.start()])
        end = found.end() if is_class else _closing(text, found.end())
        call = text[found.start() : end]
        done += text[: found.start()] + (call if is_class else f"wrapped({call})")
        text = text[end:]
    return f"SCORE = {score!r}\n{_HEAD}\n{done}{text}"


def _closing(text, start):
    """The place after the bracket that closes the one before `start`."""
    depth, place = 1, start
    while depth:
        depth += (text[place] in "([{") - (text[place] in ")]}")
        place += 1
    return place


def main() -> int:
    """Runs the tests; returns pytest's exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--score", help="a score of RobustModel; without it score=None")
    arguments, rest = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        pathlib.Path(folder, "conftest.py").write_text(_CONFTEST)
        for file in FILES:
            pathlib.Path(folder, file.name).write_text(converted(file.read_text(), arguments.score))
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--tb=short", *rest]
        return subprocess.run(command, cwd=folder, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
