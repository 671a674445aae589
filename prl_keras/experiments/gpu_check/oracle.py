"""The second part: the library's own tests of its steps, on this device.

The tests are not part of the package: they need a checkout of the project, and pytest.
"""

import importlib.util
import pathlib
import time
from typing import Any

import prl_keras
from prl_keras.experiments.gpu_check.items import Items
from prl_keras.experiments.gpu_check.job import Job

_ROOT = pathlib.Path(prl_keras.__file__).parents[1]
_FILES = ("tests/promises/oracle_test.py", "tests/promises/promises_test.py")


def run(job: Job) -> None:
    """Runs the tests that have not passed yet, one item each, as long as the time lasts."""
    import pytest

    items = Items(job.path("oracle"), job.attempt)
    items.note = ""
    arguments = [
        *(str(_ROOT / name) for name in _FILES), "-m", "not long", "-qq", "--no-header", "--no-summary",
        f"--rootdir={_ROOT}", "-c", str(_ROOT / "pyproject.toml"), "-p", "no:cacheprovider",
        "-o", "addopts=--import-mode=importlib",
    ]  # fmt: skip
    recorder = Recorder(items, job.until, job.size.most)
    status = pytest.main(arguments, plugins=[recorder])
    if recorder.collected is None:
        raise RuntimeError(f"pytest could not collect {' and '.join(_FILES)} (exit status {int(status)})")
    job.say(f"oracle: {len(items.good)} of {items.total} tests passed, {len(items.errors)} failed")


def lacks_tests() -> str:
    """Why there are no tests to run, or ""."""
    missing = [name for name in _FILES if not (_ROOT / name).exists()]
    if missing:
        return f"{missing[0]} is not beside the package; it comes with a checkout of the project"
    return "" if importlib.util.find_spec("pytest") else "pytest is not installed"


class Recorder:
    """A plugin of pytest: leaves out the tests that passed before, and writes each outcome at once.

    The tests must have ended at `until`. It takes at most `most` of them; None for all.
    """

    def __init__(self, items: Items, until: float, most: int | None) -> None:
        self.items, self.until, self.most = items, until, most
        self.collected: list[str] | None = None
        self._longest = 0.0
        self._session: Any = None

    def pytest_collection_finish(self, session: Any) -> None:
        tests = session.items[: self.most]
        self.collected = [test.nodeid for test in tests]
        self.items.total = len(tests)
        self.items.write()
        left = self.items.todo(self.collected)
        by_name = {test.nodeid: test for test in tests}
        session.items[:] = [by_name[name] for name in left]
        self._session = session

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._start, self._facts = time.monotonic(), {"outcome": "passed"}
        self.items.begin(nodeid)

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            lines = [line for line in report.longreprtext.splitlines() if line.startswith("E ")]
            text = lines[0].removeprefix("E").strip() if lines else report.longreprtext[-200:]
            self._facts = {"outcome": "failed", "error": text[:300]}
        elif report.skipped:
            self._facts = {"outcome": "skipped"}

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        self.items.put(nodeid, self._facts)
        now = time.monotonic()
        self._longest = max(self._longest, now - self._start)
        if now + self._longest > self.until:
            self._session.shouldstop = "the time is up"
