"""The pages in results/ are those that their programs write from the runs beside them."""

import shutil

import pandas as pd
import pytest
from project import ROOT

from prl_keras.experiments.audits import tables as audits
from prl_keras.experiments.benchmark import kernels, published, report
from prl_keras.experiments.leaderboard.entries import UNSEEN
from prl_keras.experiments.paper import report as paper
from prl_keras.experiments.paper.tables import TABLES
from prl_keras.experiments.programs.leaderboard import leaderboard

RESULTS = ROOT / "results"
SUITES = [path for path in (RESULTS / "benchmark").rglob("*.json") if path.stem != "kernels"]
AUDITS = {"digits": "runs", "digits-epsilon": "epsilon", "cifar10": "cifar10", "faces": "faces"}


def assert_written(page, again):
    """Every line of a page is in the one that its runs give now; a program may have learned to say more."""
    now = set(again.read_text().splitlines())
    missing = [line for line in page.read_text().splitlines() if line not in now]
    assert not missing, f"{page.relative_to(ROOT)} is not what its runs give; report it again"


@pytest.mark.parametrize("path", SUITES, ids=lambda path: path.relative_to(RESULTS).as_posix())
def test_the_pages_of_the_benchmarks(path, tmp_path):
    shutil.copy(path, tmp_path)
    assert_written(path.with_suffix(".md"), report.write_report(path.stem, tmp_path))


def test_the_page_of_the_kernels(tmp_path):
    shutil.copy(RESULTS / "benchmark/kernels.json", tmp_path)
    assert_written(RESULTS / "benchmark/kernels.md", kernels.write_kernels(tmp_path, report=True))


@pytest.mark.parametrize("name", AUDITS)
def test_the_pages_of_the_audits(name, tmp_path):
    shutil.copytree(RESULTS / "audit" / AUDITS[name], tmp_path / "runs")
    audits.write_report(tmp_path / "runs", tmp_path / "page.md")
    assert_written(RESULTS / f"audit/{name}.md", tmp_path / "page.md")


def test_the_page_of_the_published_code(tmp_path):
    found = pd.read_json(RESULTS / "published/runs.jsonl", lines=True)
    assert_written(RESULTS / "published/README.md", published.write_page(tmp_path / "page.md", found))


@pytest.mark.long
def test_the_page_of_the_leaderboard(tmp_path):
    shutil.copytree(RESULTS / "leaderboard", tmp_path, dirs_exist_ok=True)
    leaderboard(tmp_path, report=True)
    for name in ("README.md", "cells.csv"):
        assert_written(RESULTS / "leaderboard" / name, tmp_path / name)


def test_the_page_of_data_that_the_default_has_not_seen(tmp_path):
    shutil.copytree(RESULTS / "leaderboard/unseen", tmp_path, dirs_exist_ok=True)
    leaderboard(tmp_path, ["standard", "gce", "prl_l", "auto"], UNSEEN, report=True)
    for name in ("README.md", "cells.csv"):
        assert_written(RESULTS / "leaderboard/unseen" / name, tmp_path / name)


@pytest.mark.daily("6")
@pytest.mark.parametrize("number", [1, 2, 3, 6])
def test_the_tables_of_the_paper(number, tmp_path):
    runs = shutil.copytree(RESULTS / "cpu/runs", tmp_path / "runs")  # tables share runs
    (page, cells, *_), problems = paper.report(TABLES[number], "cpu", runs, tmp_path)
    assert not problems
    assert_written(RESULTS / f"cpu/table{number}.md", page)
    kept, now = (pd.read_csv(file) for file in (RESULTS / "cpu" / cells.name, cells))
    pd.testing.assert_frame_equal(kept, now[kept.columns], check_exact=False)


def test_the_table_of_the_hyperparameters(tmp_path):
    for path in paper.report_protocols(tmp_path):
        assert_written(RESULTS / path.name, path)
