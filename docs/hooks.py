"""Brings the files into the site that pages link outside docs/: README.md as its front page, results/, tests.

In docs/ a link to `../results/README.md` works where the repository is read. The site has the same folders
without `docs/` above, so the links lose `../`, and `docs/` where other files link to a page.
"""

import logging
import pathlib
import re

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = pathlib.Path(__file__).resolve().parents[1]
LOG = logging.getLogger("mkdocs.hooks")
LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)\s#]+)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds README.md, CONTRIBUTING.md, CHANGELOG.md, results/, and every file that a page links."""
    paths = {ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")}
    paths.update(path for path in (ROOT / "results").rglob("*.md"))
    for page in [*paths, *(ROOT / "docs").glob("*.md")]:
        for target in LINK.findall(page.read_text(encoding="utf-8")):
            path = (page.parent / target).resolve()
            if path.is_file() and path.is_relative_to(ROOT) and not path.is_relative_to(ROOT / "docs"):
                paths.add(path)
    for path in sorted(paths):
        name = "index.md" if path == ROOT / "README.md" else path.relative_to(ROOT).as_posix()
        files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """The text with the links as they are in the site."""
    place = (ROOT / ("README.md" if page.file.src_uri == "index.md" else page.file.src_uri)).parent
    if page.file.generated_by is None:
        place = ROOT / "docs"

    def in_site(match: re.Match[str]) -> str:
        path = (place / match[1]).resolve()
        if not path.exists():
            LOG.warning("%s links %s, which does not exist", page.file.src_uri, match[1])
            return match[1]
        if path == ROOT / "README.md":
            name = pathlib.PurePosixPath("index.md")
        elif path.is_relative_to(ROOT / "docs"):
            name = pathlib.PurePosixPath(path.relative_to(ROOT / "docs"))
        else:
            name = pathlib.PurePosixPath(path.relative_to(ROOT))
        above = "../" * page.file.src_uri.count("/")
        return above + str(name)

    return LINK.sub(in_site, markdown)
