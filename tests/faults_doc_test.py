"""docs/faults.md: a row for each fault, and every test that it names is there."""

import ast
import pathlib
import re

ROOT = pathlib.Path(__file__).parent.parent
TEXT = (ROOT / "docs" / "faults.md").read_text()
LINK = re.compile(r"\[`(\w+\.py)::([\w:]+)`\]\((\S+)\)")


def names_in(path):
    """`test_x` and `TestY::test_x` of a test file."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef):
            yield node.name
        elif isinstance(node, ast.ClassDef):
            yield from (
                f"{node.name}::{item.name}" for item in node.body if isinstance(item, ast.FunctionDef)
            )


def test_there_are_27_rows_in_order():
    rows = re.findall(r"^\| (\d+) \|", TEXT, flags=re.MULTILINE)
    assert rows == [str(i) for i in range(1, 28)]


def test_every_row_names_a_test_or_is_marked():
    for row in re.findall(r"^\| \d+ \|.*$", TEXT, flags=re.MULTILINE):
        assert LINK.search(row) or "TODO" in row, row


def test_every_named_test_exists():
    links = LINK.findall(TEXT)
    assert len(links) == TEXT.count("](") > 60
    for file, name, target in links:
        path = (ROOT / "docs" / target).resolve()
        assert path == ROOT / "tests" / file
        assert name.split("::")[-1].startswith("test_") and name in set(names_in(path)), f"{file}::{name}"
