"""docs/api.md has every public name, and every public name has a docstring."""

import ast
import importlib
import inspect
import itertools
import re
import types

import pytest
from project import ROOT

import prl_keras as prl

# The modules beside `prl_keras` itself that the documentation tells users to import.
MODULES = (
    "scores",
    "rules",
    "reports",
    "tuning.hypermodel",
    "tuning.tuner",
    "tuning.objectives",
    "tuning.final",
)
# What Keras's base classes define: their documentation is Keras's.
OF_KERAS = re.compile(r"get_config|from_config|call|set_model|networks|on_(train|epoch)_(begin|end)")
# `prl_keras.audit` is the function, but the file audit.py is what a reader of the sources finds by that name.
ELSEWHERE = {"auditing.table.audit": "audit"}
REFERENCE = [
    ELSEWHERE.get(name, name)
    for name in re.findall(r"^::: prl_keras\.(\S+)", (ROOT / "docs/api.md").read_text(), flags=re.MULTILINE)
]


def public_names():
    """{name after `prl_keras.`: value}; what a module re-exports to `prl_keras` is there once."""
    found = {name: getattr(prl, name) for name in prl.__all__}
    for path in MODULES:
        module = importlib.import_module(f"prl_keras.{path}")
        found[path] = module
        for name, value in vars(module).items():
            own = name in getattr(module, "__all__", ()) or getattr(value, "__module__", 0) == module.__name__
            if own and name[0] != "_" and not any(value is other for other in found.values()):
                found[f"{path}.{name}"] = value
    return found


NAMES = public_names()


def text_after_assignment(name):
    """The string below `name = ...` in the file that assigns it, which the API reference shows."""
    for path in (ROOT / "prl_keras/version.py", ROOT / "prl_keras/methods.py"):
        body = ast.parse(path.read_text()).body
        for node, below in itertools.pairwise(body):
            target = getattr(node, "target", None) or getattr(node, "targets", [None])[0]
            if getattr(target, "id", None) == name and isinstance(below, ast.Expr):
                return below.value.value
    return None


def test_the_reference_has_every_public_name_once():
    shown = [name for name in NAMES if not name.startswith("tuning.") or name.count(".") == 2]
    assert sorted(REFERENCE) == sorted(shown)


@pytest.mark.parametrize("name", NAMES)
def test_every_public_name_has_a_docstring(name):
    value = NAMES[name]
    if name in ("METHODS", "__version__"):
        assert text_after_assignment(name)
        return
    assert value.__doc__ and not value.__doc__.startswith(f"{value.__name__}(")  # a dataclass's own
    if inspect.isclass(value):
        for method, member in vars(value).items():
            kinds = (property, staticmethod, classmethod, types.FunctionType)
            if method[0] != "_" and not OF_KERAS.fullmatch(method) and isinstance(member, kinds):
                assert inspect.getdoc(member) or f"        {method}: " in value.__doc__, f"{name}.{method}"
