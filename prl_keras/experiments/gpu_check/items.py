"""The measured items of a part, in a file that is written after each item."""

import pathlib
import time
from collections.abc import Callable, Iterable
from typing import Any

from prl_keras import files

_FIELDS = ("found", "total", "current", "note")


class OutOfTime(Exception):
    """An item does not fit in the time that is left."""


class Items:
    """The items of a part and what was measured of them.

    Attributes:
        found: Item -> what was measured, a dict. It has a text "error" if the measurement failed.
        total: How many items there are, None if that is not known yet.
        current: The item at work, or that at which the process ended.
        note: Why the part is skipped, or "".

    Args:
        path: The file, read if it is there.
        attempt: Of this start of the check: what failed in an earlier one is tried again, once.

    Raises:
        ValueError: naming the file, if it is damaged.
    """

    def __init__(self, path: pathlib.Path, attempt: str = "") -> None:
        self.path, self.attempt = path, attempt
        self.found: dict[str, dict[str, Any]] = {}
        self.total: int | None = None
        self.current: str | None = None
        self.note = ""
        if path.exists():
            content = files.read_json(path, _FIELDS, "Remove it to measure that part again.")
            self.__dict__.update({name: content[name] for name in _FIELDS})

    @property
    def errors(self) -> dict[str, str]:
        """Item -> why its measurement failed."""
        return {key: facts["error"] for key, facts in self.found.items() if "error" in facts}

    @property
    def good(self) -> dict[str, dict[str, Any]]:
        """The items that were measured, with what was measured."""
        return {key: facts for key, facts in self.found.items() if "error" not in facts}

    @property
    def is_complete(self) -> bool:
        """Whether every item is measured."""
        return self.total is not None and len(self.good) >= self.total and not self.errors

    def todo(self, keys: Iterable[str]) -> list[str]:
        """The items left in this start of the check: those not measured, then those that failed before."""
        keys = list(keys)
        new = [key for key in keys if key not in self.found]
        before = [key for key in self.errors if self.found[key].get("attempt") != self.attempt]
        return new + [key for key in before if key in keys]

    def measure(
        self,
        keys: Iterable[str],
        function: Callable[[str], dict[str, Any] | None],
        until: float,
        say: Callable[[str], None],
    ) -> None:
        """Measures the items that are left, as long as the time lasts.

        Args:
            keys: All items.
            function: Function of an item that returns what was measured, or None to keep nothing. An error
                is what was measured of that item; `OutOfTime` ends the part.
            until: An item that would end later if it took as long as the longest so far is not begun.
            say: Prints a line of progress.
        """
        keys = list(keys)
        self.total, self.note, longest = len(keys), "", 0.0
        self.write()
        for key in self.todo(keys):
            start = time.monotonic()
            if start + longest > until:
                return
            self.begin(key)
            try:
                facts = function(key)
            except OutOfTime:
                return
            except Exception as error:  # a finding: the other items go on
                facts = {"error": in_words(error)}
                say(f"{key} failed: {facts['error']}")
            self.put(key, facts)
            longest = max(longest, time.monotonic() - start)

    def begin(self, key: str) -> None:
        """Notes which item is at work, so that it is known if it ends the process."""
        self.current = key
        self.write()

    def put(self, key: str, facts: dict[str, Any] | None) -> None:
        """Writes what was measured of an item; with None, nothing of it is kept."""
        self.current = None
        if facts is None:
            self.found.pop(key, None)
        else:
            self.found[key] = facts | ({"attempt": self.attempt} if "error" in facts else {})
        self.write()

    def skip(self, note: str) -> None:
        """Writes why the part is skipped."""
        self.note = note
        self.write()

    def write(self) -> None:
        """Writes the file, atomically."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        files.write_json(self.path, {name: getattr(self, name) for name in _FIELDS})


def in_words(error: BaseException) -> str:
    """The type of an error and the first line of its message, at most 500 characters."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:500].rstrip(": ")
