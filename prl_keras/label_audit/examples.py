"""The labels and inputs that were read, whatever they were read from."""

import collections
import dataclasses
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

_FEWEST = 10  # examples
_NAMED = 10  # of those that a note lists


@dataclasses.dataclass
class Examples:
    """Inputs with their labels.

    Attributes:
        inputs: float32 `[n, columns]`, or bytes `[n, height, width, channels]`.
        targets: int32 `[n]`, classes, or float32 `[n, 1]`, numbers.
        given: The labels as they are written, `[n]`.
        class_names: The name of each class; empty if the labels are numbers.
        ids: What identifies each example: its row or its file.
        id_name: "row" or "file".
        source: What was read, in words.
        notes: Sentences on what was left out, or needs a look.
        cells: A pandas `DataFrame` that the report shows, or None.
        scale: Mean and standard deviation of the labels if they are numbers; `targets` are standardized.
        all_ids: The ids of all rows of a table, in order, with those that were left out; empty for files.
    """

    inputs: np.ndarray
    targets: np.ndarray
    given: np.ndarray
    class_names: list[str]
    ids: list[Any]
    id_name: str
    source: str
    notes: list[str]
    cells: Any = None
    scale: tuple[float, float] = (0.0, 1.0)
    all_ids: Sequence[Any] = ()

    def __post_init__(self):
        if len(self.ids) < _FEWEST:
            raise ValueError(
                f"{self.source} has {len(self.ids)} labelled {self.id_name}s; an audit needs at least "
                f"{_FEWEST}."
            )
        self.notes += _on_duplicates(self)

    @property
    def fingerprint(self) -> int:
        """A number that is another one for other inputs or labels."""
        return zlib.crc32(self.targets.tobytes(), zlib.crc32(self.inputs.tobytes()))


def class_numbers(labels: Sequence[str], what: str) -> tuple[np.ndarray, list[str], list[str]]:
    """The classes of labels.

    Args:
        labels: The labels as text.
        what: Where they are from, such as "The column 'kind'".

    Returns:
        `(numbers, names, notes)`: int32 `[n]`, the names in sorted order, and sentences on rare classes and
        on those that differ only in case.

    Raises:
        ValueError: if there is only one class, or nearly as many as labels.
    """
    counts = collections.Counter(labels)
    if len(counts) < 2:
        raise ValueError(
            f"{what} has one label, {labels[0]!r}, everywhere; an audit needs two or more classes."
        )
    alone = [name for name, count in counts.items() if count == 1]
    if 2 * len(alone) >= len(labels) or len(counts) - len(alone) < 2:
        raise ValueError(
            f"{what} has {len(counts):,} different labels in {len(labels):,} examples, and {len(alone):,} of "
            "them occur once: it is no column of classes. A class needs several examples."
        )
    names = sorted(counts, key=_natural)
    numbers = {name: i for i, name in enumerate(names)}
    notes = []
    if alone:
        notes.append(
            f"Labels with one example only, which cannot be checked: {listed(sorted(alone, key=_natural))}."
        )
    notes += _on_case(names)
    return np.array([numbers[label] for label in labels], np.int32), names, notes


def _on_case(names):
    """A sentence on the classes that differ only in case, in a list; empty if there are none."""
    groups = collections.defaultdict(list)
    for name in names:
        groups[name.casefold()].append(name)
    alike = [" and ".join(map(repr, group)) for group in groups.values() if len(group) > 1]
    if not alike:
        return []
    return [
        f"Labels that differ only in case are taken as different classes: {listed(alike)}. Write them alike "
        "if they are one class."
    ]


def listed(things: Sequence[Any]) -> str:
    """The first few of the things, separated by commas, and how many more there are."""
    shown = ", ".join(str(each) for each in things[:_NAMED])
    return shown if len(things) <= _NAMED else f"{shown} and {len(things) - _NAMED:,} more"


def ends(names: Sequence[str]) -> str:
    """The first and the last few of the names, and how many are between them; the label is often the last."""
    half = _NAMED // 2
    between = len(names) - 2 * half
    if between <= 0:
        return ", ".join(names)
    return ", ".join([*names[:half], f"... ({between:,} more)", *names[-half:]])


def _natural(name):
    """Sorts "2" before "10"."""
    try:
        return (0, float(name), name)
    except ValueError:
        return (1, 0.0, name)


def _on_duplicates(examples):
    groups = collections.defaultdict(list)
    for i, row in enumerate(examples.inputs):
        groups[row.tobytes()].append(i)
    copies = [group for group in groups.values() if len(group) > 1]
    if not copies:
        return []
    number = sum(len(group) - 1 for group in copies)
    repeat = " repeats" if number == 1 else "s repeat"
    text = f"{number:,} {examples.id_name}{repeat} the inputs of another one."
    differ = [group for group in copies if len({str(examples.given[i]) for i in group}) > 1]
    if differ:
        shown = [" = ".join(str(examples.ids[i]) for i in group[:4]) for group in differ]
        what = "some of which are wrong" if examples.class_names else "which the inputs cannot tell apart"
        text += f" Copies with different labels, {what}: {listed(shown)}."
    return [text]
