"""The tests that are marked with `@pytest.mark.fault(n)`, and docs/faults.md, which links them.

python tests/helpers/fault_marks.py   writes the index and the `Tests:` lines of docs/faults.md
"""

import ast
import collections
import re

from project import ROOT

DOC = ROOT / "docs" / "faults.md"
_SECTION = re.compile(
    r"^## (\d+)\. (.+?)\n\n(.+?)\n+(?:Tests: [^\n]*\n+)?(?=^## |\Z)", re.MULTILINE | re.DOTALL
)
_INDEX = re.compile(r"(?<=\|---\|---\|---\|\n)(?:\|.*\n)*")


def fault_marks():
    """-> `{fault: [(path, name)]}` in order of file and line; the name is "test_x" or "TestY::test_x"."""
    found = collections.defaultdict(list)
    for path in sorted((ROOT / "tests").rglob("*_test.py")):
        for node in ast.parse(path.read_text()).body:
            inside = node.body if isinstance(node, ast.ClassDef) else []
            for test in inside or [node]:
                if isinstance(test, ast.FunctionDef) and test.name.startswith("test"):
                    name = f"{node.name}::{test.name}" if inside else test.name
                    for fault in sorted({*_numbers(test), *_numbers(node)}):
                        found[fault].append((path, name))
    return found


def _numbers(node):
    """The arguments of the marks on a function or class."""
    for call in node.decorator_list:
        if isinstance(call, ast.Call) and ast.unparse(call.func) == "pytest.mark.fault":
            yield from map(ast.literal_eval, call.args)


def fault_titles(text):
    """-> `{fault: title}`, in the document's order."""
    return {int(number): title for number, title, _ in _SECTION.findall(text)}


def rewritten(text, marks):
    """The text of docs/faults.md with the index and the `Tests:` lines of today's sections and marks."""

    def section(match):
        number, title, body = match.groups()
        links = (f"[`{name}`](../{path.relative_to(ROOT)})" for path, name in marks.get(int(number), []))
        return f"## {number}. {title}\n\n{body}\n\nTests: {', '.join(links)}\n\n"

    rows = []
    for number, title, body in _SECTION.findall(text):
        anchor = re.sub(r"[^\w -]", "", f"{number} {title}".lower()).replace(" ", "-")
        outcome = re.split(r"(?<=\.)\s", body, maxsplit=1)[0].replace("|", r"\|")
        rows.append(f"| {number} | [{title}](#{anchor}) | {outcome} |\n")
    return _INDEX.sub(lambda _: "".join(rows), _SECTION.sub(section, text), count=1).rstrip() + "\n"


if __name__ == "__main__":
    DOC.write_text(rewritten(DOC.read_text(), fault_marks()))
