"""Every code block of README.md and docs/ is run, as written."""

import math
import pathlib
import re
import shlex

import numpy as np
import pandas as pd
import pytest
from pages import PAGES, blocks, commands, page_before
from processes import python
from project import ROOT

from prl_keras.label_audit.command import main

COMMANDS = [(name, command) for name in PAGES for command in commands(name)]


def with_program(program):
    return [
        pytest.param(command, id=f"{name}-{number}")
        for number, (name, command) in enumerate(COMMANDS)
        if f"binaries.{program} " in command
    ]


@pytest.mark.parametrize("name", PAGES)
def test_there_are_no_blocks_of_other_kinds(name):
    text = PAGES[name].read_text()
    assert text.count("```") == 2 * (len(blocks(name, "python")) + len(blocks(name, "bash")))


@pytest.fixture(scope="module")
def namespaces():
    """{page: the names after its code} of the pages that others continue."""
    return {}


def run(name, namespaces):
    namespace = {"__name__": "__main__"}
    before = page_before(name)
    if before and before not in namespaces:
        namespaces[before] = run(before, namespaces)
    namespace.update(namespaces.get(before, {}))
    for block in blocks(name, "python"):
        exec(compile(block, name, "exec"), namespace)
    return namespace


def most_suspect_are_wrong(percent, names):
    return percent[0] > 80


def drops_are_wrong(percent, names):
    return percent[0] > 80


def estimates_hold(percent, names):
    estimate, low, high = percent[-3:]
    return abs(estimate - 40) < 6 and low <= 40 <= high


def audited_flowers():
    """flowers.csv, with a row that has no label, and the folder that the command makes of it."""
    rng = np.random.default_rng(0)
    lines = [f"{kind + rng.normal():.3f},{'ab'[kind]}" for kind in rng.integers(2, size=40)]
    lines[7] = "1.5,"
    pathlib.Path("flowers.csv").write_text("\n".join(["size,species", *lines]))
    assert main(["flowers.csv", "--label=species", "--epochs=2", "--epsilon=0.2"]) == 0


def flowers_are_corrected(percent, names):
    before = pd.read_csv("flowers.csv")["species"]
    changed = names["flowers"]["species"].fillna("") != before.fillna("")
    return 0 < changed.sum() <= 8 and not changed[7]


# Page -> what makes the files that its code reads.
FILES = {"audit.md": audited_flowers}


def found_network_is_good(percent, names):
    """On clean data of the same kind."""
    x = names["rng"].normal(size=(4000, 20)).astype("float32")
    predicted = names["model"].network.predict(x, verbose=0).argmax(axis=1)
    return (predicted == x[:, :4].argmax(axis=1)).mean() > 0.8


# Page -> what the printed percentages and the names at its end must fulfil.
OUTCOMES = {
    "README.md": [most_suspect_are_wrong],
    "getting_started.md": [drops_are_wrong, lambda percent, names: pathlib.Path("network.keras").exists()],
    "audit.md": [most_suspect_are_wrong, estimates_hold, flowers_are_corrected],
    "epsilon.md": [lambda percent, names: percent[0] <= 40 <= percent[1], estimates_hold],
    "searching.md": [
        lambda percent, names: len(names["tuner"].oracle.trials) == 3,
        lambda percent, names: names["chosen"]["epsilon"] == names["best"]["epsilon"] == 0.3,
        found_network_is_good,
    ],
    "elements.md": [
        lambda percent, names: (
            names["is_wrong"][
                [12 * row + step for row, step in names["table"].sort_values("rank").index[:100]]
            ].mean()
            > 0.6
        )
    ],
    "scaling.md": [lambda percent, names: math.isfinite(names["model"].history.history["loss"][-1])],
    "extending.md": [drops_are_wrong],
}


def test_every_page_with_code_has_an_outcome():
    assert set(OUTCOMES) == {name for name in PAGES if blocks(name, "python")}


@pytest.mark.daily("README.md", "getting_started.md")
@pytest.mark.parametrize("name", OUTCOMES)
def test_python_blocks_run_one_after_the_other(name, namespaces, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    if page_before(name):
        namespaces.setdefault(page_before(name), run(page_before(name), namespaces))
    FILES.get(name, lambda: None)()
    capsys.readouterr()
    names = run(name, namespaces)
    shown = capsys.readouterr().out
    percent = [int(number) for number in re.findall(r"(\d+)%", shown)]
    for number, fulfilled in enumerate(OUTCOMES[name]):
        assert fulfilled(percent, names), (number, shown)


def test_the_commands_are_known():
    makefile = (ROOT / "Makefile").read_text()
    for name, command in COMMANDS:
        if command.startswith("make "):
            assert f"\n{command.split()[1]}:" in makefile, name
        else:
            known = ("python -m binaries.", "python -m examples.", "pip install .")
            assert command.startswith(known), (name, command)


@pytest.mark.daily("paper.md-17")
@pytest.mark.parametrize("command", with_program("reproduce"))
def test_the_commands_of_the_tables_list_their_runs(command, tmp_path):
    """As written, but that nothing is run."""
    done = python(*shlex.split(command)[1:], "--dry_run", f"--output_dir={tmp_path}")
    assert "runs to do of" in done.stdout or "--table=4" in command


@pytest.mark.daily("getting_started.md-14")
@pytest.mark.parametrize("command", with_program("train"))
def test_the_commands_run(command, tmp_path):
    """As written, but for two epochs and into a folder of the test's."""
    module, *flags = shlex.split(command)[2:]
    flags = [flag for flag in flags if not flag.startswith("--output_dir")]
    python("-m", module, *flags, "--epochs=2", f"--output_dir={tmp_path / 'run'}")
    assert (tmp_path / "run" / "result.json").exists()
