"""BUILD: every Python file has its target, and each target's deps are the file's real imports."""

import functools

import pytest
import starlark
from build_file import python_files, real_imports, target_name
from project import ROOT


@functools.cache
def targets():
    """-> {name: (rule, attributes)}: what BUILD, run by a Starlark interpreter, tells Bazel."""
    found = {}

    def rule(kind):
        def define(name, **attributes):
            assert name not in found, f"two targets are called {name}"
            found[name] = (kind, attributes)

        return define

    def loaded(path):
        module = starlark.Module()
        for kind in ("py_binary", "py_library", "py_test"):
            module.add_callable(kind, rule(kind))
        module.add_callable("requirement", "pip:{}".format)
        return module.freeze()

    module = starlark.Module()
    module.add_callable("package", lambda **_: None)
    module.add_callable("glob", list)
    program = starlark.parse("BUILD", (ROOT / "BUILD").read_text())
    starlark.eval(module, program, starlark.Globals.standard(), starlark.FileLoader(loaded))
    return found


def test_every_file_has_its_target_and_every_target_its_file():
    assert set(targets()) == {target_name(path) for path in python_files()}


@pytest.mark.parametrize("path", python_files(), ids=target_name)
def test_deps_are_the_real_imports(path):
    rule, attributes = targets()[target_name(path)]
    relative = path.relative_to(ROOT).as_posix()
    assert attributes["srcs"][0] == relative
    is_test = path.name.endswith("_test.py")
    is_binary = path.parent.name in ("binaries", "examples") and "__main__" in path.read_text()
    assert rule == ("py_test" if is_test else "py_binary" if is_binary else "py_library")
    if is_test:  # a test file alone, run as a program, would test nothing and pass
        assert attributes["main"] == "tests/helpers/run_pytest.py" and attributes["args"] == [relative]
        assert attributes["srcs"][1:] == [attributes["main"]]
    deps = attributes["deps"]
    assert deps == sorted(set(deps)), "deps are sorted, each once"
    assert set(deps) == real_imports(path)


def test_every_third_party_dep_is_in_the_requirements():
    files = [ROOT / f"requirements{kind}.txt" for kind in ("", "-peers", "-text")]
    lines = [line for file in files for line in file.read_text().lower().splitlines()]
    listed = {line.split(">")[0].split("<")[0].split("=")[0].strip() for line in lines if line[:1].isalpha()}
    used = {
        label.removeprefix("pip:")
        for _, attributes in targets().values()
        for label in attributes["deps"]
        if label.startswith("pip:")
    }
    assert used <= listed, used - listed


# Packages of the library, each above all that it may import.
LIBRARY = [
    {"audit"},
    {"label_audit", "tuning"},
    {"__init__"},
    {"reports"},
    {"auditing", "methods", "stopping"},
    {"models"},
    {"epsilon"},
    {"scores"},
    {"inputs", "rules"},
    {"keras_gaps", "losses"},
    {"corruption"},
    {"files", "validate", "version"},
]
EXTRAS = {"label_audit", "reports", "tuning"}
EXPERIMENTS = [
    {"programs", "gpu_check", "hypermodel", "tuning"},
    {"audits", "benchmark", "leaderboard"},
    {"paper"},
    {"runs", "markdown"},
    {"data"},
]


def package_and_height(name):
    """The package of a file of prl_keras, and a number that is higher than that of all it may import."""
    _, *parts = name.split("/")
    tree, package = (EXPERIMENTS, parts[1]) if parts[0] == "experiments" else (LIBRARY, parts[0])
    below = next(-i for i, packages in enumerate(tree) if package in packages)
    return "/".join(parts[:2]) if tree is EXPERIMENTS else package, below + 100 * (tree is EXPERIMENTS)


def test_arrows_point_one_way():
    """binaries -> experiments -> tuning -> the library, and downwards in `EXPERIMENTS` and `LIBRARY`.

    The library needs TensorFlow, Keras and NumPy alone. Only `audit` imports pandas, when it is called
    (import_test). `EXTRAS` need an extra of pyproject.toml.
    """
    extras = {"prl_keras/auditing/table": {"pip:pandas"}}
    for path in python_files():
        name = target_name(path)
        if not name.startswith("prl_keras") or name.startswith("prl_keras/experiments/__init__"):
            continue
        package, height = package_and_height(name)
        for label in real_imports(path):
            if label.startswith("pip:"):
                allowed = {"pip:tensorflow", "pip:keras", "pip:numpy"} | extras.get(name, set())
                assert label in allowed or height > 0 or package in EXTRAS, (name, label)
                continue
            assert label.startswith(":prl_keras"), (name, label)
            other, below = package_and_height(label[1:])
            assert package == other or below < height, (name, label)
