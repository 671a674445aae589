"""README.md is short, and its table of methods is the one in the code."""

import re

from project import ROOT

import prl_keras as prl

README = (ROOT / "README.md").read_text()


def test_it_is_short():
    assert len(README.splitlines()) <= 130


def test_it_links_every_page():
    for path in (ROOT / "docs").glob("*.md"):
        assert f"(docs/{path.name})" in README, path.name


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
