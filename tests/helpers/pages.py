"""The documentation as the tests read it: README.md and the pages in docs/."""

import re

from project import ROOT

PAGES = {path.name: path for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}
_CONTINUES = re.compile(r"[Tt]he\s+code\s+continues\s+that\s+of\s+\[[^\]]+\]\((\w+\.md)\)")


def blocks(name, language):
    """The code blocks of a page in that language."""
    return re.findall(rf"```{language}\n(.*?)```", PAGES[name].read_text(), flags=re.DOTALL)


def commands(name):
    """The lines of a page's bash blocks, without their comments."""
    return [line.split("  #")[0].strip() for block in blocks(name, "bash") for line in block.splitlines()]


def page_before(name):
    """The page whose code must run first, or None."""
    found = _CONTINUES.search(PAGES[name].read_text())
    return found and found[1]


def prose(text):
    """Markdown without its code blocks, code spans and the targets of links."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"^    .*$", "", text, flags=re.MULTILINE)
    text = re.sub(r"`[^`]*`", "``", text)
    return re.sub(r"(?<=\])\([^)]*\)", "", text)
