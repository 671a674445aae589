"""binaries/reproduce.py: the choice of runs, and a sweep that is killed and started again."""

import contextlib
import dataclasses
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
import types

import pytest
from processes import python
from project import ROOT

from prl_keras.experiments.paper import tables
from prl_keras.experiments.paper.protocol import Protocol
from prl_keras.experiments.paper.tables import TABLES, Row, Table
from prl_keras.experiments.programs import reproduce
from prl_keras.experiments.runs import results
from prl_keras.experiments.runs.metrics import METRICS
from prl_keras.experiments.runs.results import is_finished

PROTOCOL = Protocol(500, 0.001, "mlp", 12, 0.0, 0.0, seeds=2)
TABLE = Table(
    1,
    "A tiny table",
    (Row("teacher", "linadv", 0.2), Row("teacher", "signflip", 0.2)),
    ("spl", "prl_l"),
    "table1_celeba_r2.csv",
    METRICS["regression"],
    "figure2.png",
)


@contextlib.contextmanager
def tiny_table():
    """Table 1 is 8 small runs on the teacher data, at scale cpu."""
    saved = tables.PROTOCOLS, reproduce.TABLES
    tables.PROTOCOLS = types.MappingProxyType({("teacher", "cpu"): PROTOCOL})
    reproduce.TABLES = types.MappingProxyType({1: TABLE})
    try:
        yield
    finally:
        tables.PROTOCOLS, reproduce.TABLES = saved


PROGRAM = """
import sys
from tests.experiments.programs.reproduce_test import tiny_table
from prl_keras.experiments.programs import reproduce
from prl_keras.experiments.runs import sweep
sweep._CHECKPOINT_SECONDS = 0  # in the worker processes too
if __name__ == "__main__":
    with tiny_table():
        sys.exit(reproduce.reproduce(["1"], [], "cpu", sys.argv[1], workers=int(sys.argv[2])))
"""


def start(directory, workers):
    program = directory.parent / "program.py"
    program.write_text(PROGRAM)
    return subprocess.Popen(
        [sys.executable, program, directory, str(workers)],
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests/helpers'}"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def children_of(pid):
    return pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def is_alive(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The output of a sweep that nothing disturbs."""
    directory = tmp_path_factory.mktemp("straight") / "results"
    process = start(directory, 1)
    assert process.wait(240) == 0, process.stdout.read()
    return directory


def seconds_of(runs):
    return {content["config"]: list(content["history"]["seconds"]) for content in results.read_all(runs)[0]}


def without_times(markdown):
    return [line for line in markdown.read_text().splitlines() if "hours in all" not in line]


@pytest.mark.long
@pytest.mark.parametrize("workers", [1, 2])
def test_killed_in_the_middle_and_started_again_it_ends_with_the_same_table(tmp_path, straight, workers):
    """kill -9 once some runs have ended and another is under way."""
    output = tmp_path / "results"
    runs = output / "cpu" / "runs"
    process = start(output, workers)
    deadline = time.monotonic() + 120
    while not (list(runs.glob("*/result.json")) and list(runs.glob("*/checkpoints/*.h5"))):
        assert process.poll() is None and time.monotonic() < deadline, process.stdout.read()
        time.sleep(0.002)
    children = children_of(process.pid)
    process.send_signal(signal.SIGKILL)
    process.wait()
    while any(map(is_alive, children)):  # the workers end by themselves
        assert time.monotonic() < deadline
        time.sleep(0.05)
    finished = {path: path.read_bytes() for path in runs.glob("*/history.csv") if is_finished(path.parent)}
    assert 0 < len(finished) < 8
    for path in finished:  # what is done anew differs in its seconds
        shutil.copytree(path.parent, tmp_path / "kept" / path.parent.name)

    again = start(output, workers)
    printed, _ = again.communicate(timeout=240)
    assert again.returncode == 0, printed
    assert f"{8 - len(finished)} runs to do of 8" in printed
    seconds = seconds_of(runs)
    for config, first in seconds_of(tmp_path / "kept").items():
        assert seconds[config] == first
    for name in ("table1.csv", "figure2.png"):
        assert (output / "cpu" / name).read_bytes() == (straight / "cpu" / name).read_bytes()
    assert without_times(output / "cpu" / "table1.md") == without_times(straight / "cpu" / "table1.md")
    assert [path.name for path in runs.iterdir()] == ["table1.jsonl"]  # the table is finished


@pytest.mark.long
def test_a_damaged_result_is_reported_left_out_and_made_anew(tmp_path, straight, capsys):
    runs = tmp_path / "cpu" / "runs"
    runs.mkdir(parents=True)
    first, *others = (straight / "cpu" / "runs" / "table1.jsonl").read_text().splitlines()
    (runs / "table1.jsonl").write_text("\n".join([first[:200], *others]) + "\n")
    damaged = f"{runs / 'table1.jsonl'}, line 1,"
    with tiny_table():
        reproduce.reproduce(["1"], [], "cpu", tmp_path, report=True)
        printed = capsys.readouterr().out
        assert f"Left out: {damaged}" in printed
        text = (tmp_path / "cpu" / "table1.md").read_text()
        assert "1 of 8 runs are missing" in text and "table1.jsonl, line 1," in text
        assert not reproduce.reproduce(["1"], [], "cpu", tmp_path)
    printed = capsys.readouterr().out
    assert f"To be done again: {damaged}" in printed and "1 runs to do of 8" in printed
    assert results.read_all(runs)[1] == []
    assert (tmp_path / "cpu" / "table1.csv").read_bytes() == (straight / "cpu" / "table1.csv").read_bytes()


def test_a_dry_run_lists_and_does_nothing(tmp_path, capsys):
    with tiny_table():
        reproduce.reproduce(["1"], [], "cpu", tmp_path / "none", methods=["spl"], dry_run=True)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("4 runs to do of 4") and len(lines) == 5
    assert all(line.startswith("teacher-spl-") for line in lines[1:])
    reproduce.reproduce(["4"], ["1"], "cpu", tmp_path / "none", dry_run=True)
    assert not (tmp_path / "none").exists()


@pytest.mark.long
def test_figure_1_makes_its_folder(tmp_path):
    assert not reproduce.reproduce([], ["1"], "cpu", tmp_path / "new")
    assert (tmp_path / "new" / "figure1.png").exists()


def test_a_table_without_runs_stops_no_other(tmp_path, capsys):
    assert reproduce.reproduce(["1", "4"], [], "cpu", tmp_path, report=True)
    assert "Table 1 is not written" in capsys.readouterr().out
    assert (tmp_path / "table4.md").exists()


def test_what_does_not_go_together_and_nothing_are_refused(tmp_path):
    with pytest.raises(ValueError, match="--workers=1"):
        reproduce.reproduce(["6"], [], "cpu", tmp_path, workers=2)
    with pytest.raises(ValueError, match="rows and methods together"):
        reproduce.reproduce(["2"], [], "cpu", tmp_path, rows=["CF10-clean"], methods=["prl_l"])
    with pytest.raises(ValueError, match="--dry_run lists"):
        reproduce.reproduce(["1"], [], "cpu", tmp_path, dry_run=True, report=True)
    with pytest.raises(ValueError, match="--table=1"):
        reproduce.reproduce([], [], "cpu", tmp_path)


def test_table_4_and_5_need_no_runs_of_their_own(tmp_path, capsys):
    reproduce.reproduce(["4"], [], "cpu", tmp_path)
    assert (tmp_path / "table4.md").exists()
    capsys.readouterr()
    reproduce.reproduce(["3"], [], "cpu", tmp_path, seeds=["0"], rows=["CF10-pf-45"], dry_run=True)
    three = capsys.readouterr().out
    reproduce.reproduce(["5"], [], "cpu", tmp_path, seeds=["0"], rows=["CF10-pf-45"], dry_run=True)
    assert capsys.readouterr().out == three and "5 runs to do of 5" in three


@pytest.mark.long
def test_another_precision_has_folders_of_its_own(tmp_path, capsys):
    with tiny_table():
        choice = {"methods": ["spl"], "seeds": ["0"], "rows": ["teacher-linadv-20"]}
        assert not reproduce.reproduce(["1"], [], "cpu", tmp_path, **choice, precision="bfloat16")
        assert [path.name for path in tmp_path.iterdir()] == ["cpu-bfloat16"]
        assert "compute in bfloat16" in (tmp_path / "cpu-bfloat16" / "table1.md").read_text()
        (content,), _ = results.read_all(tmp_path / "cpu-bfloat16" / "runs")
        assert content["config"].precision == "bfloat16" and content["scale"] == "cpu"
        assert not reproduce.reproduce(["1"], [], "cpu", tmp_path, **choice, dry_run=True)
    assert "1 runs to do of 1, scale cpu" in capsys.readouterr().out


class TestSelect:
    def test_rows_methods_and_seeds(self):
        configs = reproduce.select(TABLES[1], "cpu", ["linadv:40"], ["prl_l"], ["0", "7"])
        assert {(c.corruption, c.epsilon, c.method, c.seed) for c in configs} == {
            ("linadv", 0.4, "prl_l", 0),
            ("linadv", 0.4, "prl_l", 7),
        }

    def test_everything_if_nothing_is_chosen(self):
        assert reproduce.select(TABLES[2], "cpu") == TABLES[2].configs("cpu")

    def test_the_precision_is_that_of_every_run(self):
        half = reproduce.select(TABLES[2], "cpu", precision="bfloat16")
        assert half == TABLES[2].configs("cpu", precision="bfloat16")
        assert {config.precision for config in half} == {"bfloat16"}
        assert [dataclasses.replace(c, precision="float32") for c in half] == TABLES[2].configs("cpu")

    def test_clean_runs_are_a_row(self):
        (config,) = reproduce.select(TABLES[2], "cpu", ["CF10-clean"], seeds=["0"])
        assert (config.dataset, config.corruption) == ("cifar10_features", "none")
        configs = reproduce.select(TABLES[1], "cpu", ["clean"], seeds=["0"])
        assert [(c.method, c.corruption) for c in configs] == [("standard", "none")]

    @pytest.mark.parametrize(
        "choice, message",
        [
            ({"rows": ["CF10-pf-99"]}, "--rows=CF10-pf-99 is not in the table; choose of CF10-sym-30"),
            ({"rows": []}, "--rows"),
            ({"methods": ["prl"]}, "--methods=prl is not in the table; choose of standard"),
            ({"methods": ["huber"]}, "--methods=huber is not in the table"),
            ({"seeds": ["1.5"]}, "--seeds=1.5 must be whole numbers"),
            ({"seeds": ["-1"]}, "--seeds=-1"),
            ({"seeds": []}, "--seeds= must be"),
        ],
    )
    def test_what_there_is_not_is_refused(self, choice, message):
        with pytest.raises(ValueError, match=message):
            reproduce.select(TABLES[2], "cpu", **choice)


@pytest.mark.parametrize("text, shard", [("0/1", (0, 1)), ("2/16", (2, 16))])
def test_shards_are_read(text, shard):
    assert reproduce.parse_shard(text) == shard


@pytest.mark.parametrize("text", ["", "1", "1/1", "3/2", "-1/2", "0/0", "a/b", "0/2/3"])
def test_what_is_no_shard_is_refused(text):
    with pytest.raises(ValueError, match="must be i/n with 0 <= i < n"):
        reproduce.parse_shard(text)


@pytest.mark.long
def test_the_program_refuses_missing_data_in_a_line(tmp_path):
    folders = f"--output_dir={tmp_path}/out", f"--cache_dir={tmp_path}/cache", f"--data_dir={tmp_path}"
    done = python("-m", "binaries.reproduce", "--table=1", *folders, check=False)
    assert done.returncode == 1 and "--download" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert not list(pathlib.Path(tmp_path).rglob("config.json"))
