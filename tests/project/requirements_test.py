"""requirements.txt, requirements-oldest.txt and pyproject.toml name the same packages and bounds."""

import re
import tomllib

from project import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def lines(name):
    return [line for line in (ROOT / name).read_text().splitlines() if line and not line.startswith("#")]


def test_every_requirement_has_a_lower_and_an_upper_bound():
    for line in lines("requirements.txt"):
        assert re.fullmatch(r"[\w-]+>=[\d.]+,<[\d.]+", line), line


def test_the_oldest_versions_are_the_lower_bounds():
    lowest = [re.sub(r">=([\d.]+),<.*", r"==\1", line) for line in lines("requirements.txt")]
    assert lines("requirements-oldest.txt") == lowest


def test_pyproject_names_the_same_bounds():
    options = PROJECT["optional-dependencies"]
    extras = ("audit", "tuning", "experiments", "test")
    declared = {*PROJECT["dependencies"], *(line for extra in extras for line in options[extra])}
    assert declared - {"prl_keras[audit,tuning]"} == set(lines("requirements.txt"))


def test_the_oldest_python_is_the_one_that_the_lint_checks_for():
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())
    oldest = PROJECT["requires-python"].removeprefix(">=")
    assert config["tool"]["ruff"]["target-version"] == "py" + oldest.replace(".", "")
