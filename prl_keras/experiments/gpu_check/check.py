"""A quarter of an hour on a GPU: the parts in order, each in a process of its own, until the time is up."""

import dataclasses
import pathlib
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from prl_keras import files
from prl_keras.experiments.gpu_check import cells, costs, oracle, page, smoke
from prl_keras.experiments.gpu_check.children import in_child
from prl_keras.experiments.gpu_check.items import Items, in_words
from prl_keras.experiments.gpu_check.job import Job, Size, paper_size, rehearsal_size

_LEAST_SECONDS = 30  # of a part, if its share is shorter
_LAST_SECONDS = 10  # to write the page and to end


class Part(NamedTuple):
    """A part of the check.

    Attributes:
        title: Its heading on the page.
        share: The most of the check's minutes that it takes, in (0, 1]. The last part takes what is left.
        run: Function of a `Job` that writes the part's items; it runs in a child process.
        lacks: Function that returns why the part cannot be done on this machine, or "".
    """

    title: str
    share: float
    run: Callable[[Job], Any]
    lacks: Callable[[], str] = str


#: Name -> `Part`, in order.
PARTS = {
    "smoke": Part("The device", 0.5, smoke.run),
    "oracle": Part("The tests of the steps", 0.12, oracle.run, oracle.lacks_tests),
    "kernels": Part("Kernels of a step", 0.08, costs.kernels),
    "steps": Part("Seconds and memory of a step", 0.25, costs.steps),
    "pytorch": Part("The step of plain training in PyTorch", 0.08, costs.pytorch, costs.lacks_pytorch),
    "cells": Part("Runs of table 2", 1.0, cells.run),
}


_TITLES = {name: part.title for name, part in PARTS.items()}


def gpu_check(
    minutes: float,
    output_dir: pathlib.Path | str,
    rehearsal: bool = False,
    part: Sequence[str] = (),
    begun: float | None = None,
    **data_options: Any,
) -> bool:
    """Does the parts that are missing in `output_dir`, as far as the time lasts.

    The arguments are the flags of binaries/gpu_check.py, and `begun`, when the time began, of
    `time.monotonic()`; now if left out. `output_dir` gets gpu_check.md, gpu_check/PART.json, and the runs in
    paper/runs. There a check that was killed, or ran out of time, is continued. "smoke" is always done.

    Returns:
        Whether anything failed that was measured.

    Raises:
        ValueError: for an invalid argument, without a GPU, or if output_dir is of another device or size.
        OSError, ImportError, ValueError: if the data of the first run are missing or damaged.
        FileExistsError: if another process is at work in output_dir.
    """
    begun = time.monotonic() if begun is None else begun
    unknown = [name for name in part if name not in PARTS]
    if unknown:
        raise ValueError(f"part={unknown[0]!r} is unknown; write one of {', '.join(PARTS)}.")
    if not minutes >= 1:
        raise ValueError(f"minutes={minutes!r} must be a number of at least 1, such as 15.")
    size = rehearsal_size() if rehearsal else paper_size()
    return check(size, pathlib.Path(output_dir), 60 * minutes, begun, part, data_options)


def check(
    size: Size,
    output_dir: pathlib.Path,
    seconds: float,
    begun: float,
    asked: Sequence[str],
    data_options: Any,
) -> bool:
    """As `gpu_check`, of a `Size` and in seconds."""
    end = begun + seconds - _LAST_SECONDS
    names = [name for name in PARTS if name in asked or not asked or name == "smoke"]
    job = Job(size, output_dir, begun, end, uuid.uuid4().hex, data_options)
    job.path("smoke").parent.mkdir(parents=True, exist_ok=True)
    with files.locked(job.path("smoke").parent):
        started = 0.0  # seconds in which a child starts
        for name in names:
            now = time.monotonic()
            if why := _why_not(name, job, now + started > end):
                job.say(f"{name}: {why}")
                continue
            share = 1.0 if name == names[-1] else PARTS[name].share
            until = min(end, now + max(share * seconds, _LEAST_SECONDS))
            job = dataclasses.replace(job, until=until)
            value = _do(name, job)
            if name == "smoke":
                started = value - now
        page.write(job, _TITLES)
    written = {name: Items(job.path(name)) for name in names}
    print(f"Written: {output_dir / 'gpu_check.md'}")
    differs = [key for key, facts in written["smoke"].good.items() if not facts.get("agrees", True)]
    return bool(differs) or any(items.errors for items in written.values())


def _why_not(name, job, is_late):
    """Why a part is not begun, or ""."""
    items = Items(job.path(name))
    if lacks := PARTS[name].lacks():
        items.skip(f"Skipped: {lacks}.")
        return items.note
    if name not in ("smoke", "cells") and items.is_complete:
        return f"all {items.total} items are there"
    return "no time is left" if is_late else ""


def _do(name, job):
    """Runs a part in children until it is done or its time is up; returns what it returns."""
    while True:
        ended = in_child(PARTS[name].run, job, job.until, lambda: page.write(job, _TITLES))
        items = Items(job.path(name), job.attempt)
        if ended.how != "died" or not items.current:
            break
        # An item that ends the process is a finding; the next child goes on with the others.
        items.put(items.current, {"error": f"the process ended with exit code {ended.value}"})
    page.write(job, _TITLES)
    if ended.how == "done":
        return ended.value
    if ended.how == "raised" and isinstance(ended.value, (ValueError, OSError, ImportError)):
        raise ended.value
    what = {
        "stopped": "its time is up",
        "died": f"its process ended with exit code {ended.value}",
        "raised": in_words(ended.value) if ended.how == "raised" else "",
    }[ended.how]
    job.say(f"{name}: {what}")
    if name == "smoke":
        raise OSError(
            f"The device has not done its first work: {what}. Give more --minutes, or try nvidia-smi."
        )
    return None
