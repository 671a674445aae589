"""Every code block of README.md is run, as written."""

import re
import shlex
import subprocess
import sys

import pytest
from project import ROOT

import prl_keras as prl

README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def commands():
    return [line.split("  #")[0].strip() for block in blocks("bash") for line in block.splitlines()]


def test_there_are_no_blocks_of_other_kinds():
    assert README.count("```") == 2 * (len(blocks("python")) + len(blocks("bash")))


def test_python_blocks_run_one_after_the_other(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    namespace = {}
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), namespace)
    shown = capsys.readouterr().out
    suspect, estimate, low, high, least, most, dropped = (int(n) for n in re.findall(r"(\d+)%", shown))
    assert suspect > 80 and dropped > 80 and abs(estimate - 40) < 5, shown
    assert low <= 40 <= high and least <= 40 <= most, shown
    assert (tmp_path / "network.keras").exists()


def test_the_commands_are_known():
    makefile = (ROOT / "Makefile").read_text()
    for command in commands():
        if command.startswith("make "):
            assert f"\n{command.split()[1]}:" in makefile
        else:
            assert command.startswith(("python -m binaries.", "python -m prl_keras.audit ")), command


@pytest.mark.parametrize("command", [c for c in commands() if "binaries.reproduce" in c])
def test_the_commands_of_the_tables_list_their_runs(command, tmp_path):
    """As written, but that nothing is run."""
    done = subprocess.run(
        [*shlex.split(command.replace("python", sys.executable, 1)), "--dry_run", f"--output_dir={tmp_path}"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "runs to do of" in done.stdout or "--table=4" in command


@pytest.mark.parametrize("command", [c for c in commands() if "binaries.train" in c])
def test_the_commands_run(command, tmp_path):
    """As written, but for two epochs and into a folder of the test's."""
    module, *flags = shlex.split(command)[2:]
    flags = [flag for flag in flags if not flag.startswith("--output_dir")]
    done = subprocess.run(
        [sys.executable, "-m", module, *flags, "--epochs=2", f"--output_dir={tmp_path / 'run'}"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "result.json").exists()


def test_the_table_of_methods_is_the_table_in_the_code():
    lines = [line for line in README.splitlines() if re.match(r"\| `\w+` \|", line)]
    rows = [[cell.strip().strip("`") for cell in line.split("|")[1:6]] for line in lines]
    assert [row[0] for row in rows] == list(prl.METHODS)
    for name, title, score, rule, exchange in rows:
        method = prl.METHODS[name]
        assert title == method.title
        assert score.replace("-", "_").replace(" ", "_") == (method.score or "")
        assert bool(rule) == (method.rule is not None)
        assert exchange == (method.exchange or "")
