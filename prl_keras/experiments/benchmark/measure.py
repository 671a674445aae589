"""Measures the cases of a suite in turns and writes the results as JSON, Markdown and PNG."""

import dataclasses
import datetime
import gc
import importlib.metadata
import itertools
import math
import os
import pathlib
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import tensorflow as tf
import tqdm

from prl_keras import files
from prl_keras.experiments.benchmark.kernels import KERNELS, write_kernels
from prl_keras.experiments.benchmark.report import write_report
from prl_keras.experiments.benchmark.steps import Work, core_count, uses_xla
from prl_keras.experiments.benchmark.suites import Case, suite_cases
from prl_keras.experiments.benchmark.work import KILLED, make_work, peak_memory
from prl_keras.experiments.runs.strategies import make_strategy

_LEAST_SECONDS = 1.0  # of training of the baseline per round
_PACKAGES = ("tensorflow", "keras", "torch", "opacus")


def benchmark(
    suite: Sequence[str] = ("step",),
    rounds: int = 7,
    memory: bool = True,
    peers: bool = False,
    authors_dir: pathlib.Path | str | None = None,
    output_dir: pathlib.Path | str = "results/benchmark",
    report: bool = False,
    virtual_devices: int | None = None,
) -> list[pathlib.Path]:
    """Measures the suites, or with `report` only reads earlier results, and writes SUITE.json, .md, .png.

    While a suite is measured, SUITE.unfinished.json holds the results so far. It replaces an earlier
    SUITE.json when it is complete. The suite "kernels" measures no time and has no picture (`kernels`).

    The arguments are the flags of binaries/benchmark.py:

        memory           is measured first, in a separate process; a case that is killed there is not timed
        peers            go with the suite "step" only
        virtual_devices  show the cost of exchanging scores between replicas; for suites through `fit` only

    Returns:
        The paths of the Markdown files.

    Raises:
        ValueError: for an unknown suite, peers of a suite that has none, or damaged results.
        ImportError: for peers without PyTorch and Opacus.
        OSError: for an invalid `authors_dir`, or without results to report.
    """
    authors = authors_dir is not None
    if (peers or authors) and "step" not in suite:
        raise ValueError(f"suite={list(suite)} has no peers; they go with the suite 'step'.")
    suites = {
        name: suite_cases(name, peers and name == "step", authors and name == "step")
        for name in dict.fromkeys(suite)
        if name != KERNELS
    }
    is_through_fit = [case.through_fit for cases in suites.values() for case in cases]
    if virtual_devices and (KERNELS in suite or not all(is_through_fit)):
        raise ValueError("Virtual devices go with suites through fit: write --suite=mlp.")
    if not report:
        strategy = make_strategy("auto" if virtual_devices else "one", virtual_devices)
        _prepare(peers, authors_dir)
        pathlib.Path(output_dir).mkdir(parents=True, exist_ok=True)
    paths = []
    for name, cases in suites.items():
        if not report:
            with strategy.scope():
                measure(name, cases, output_dir, rounds, memory and not virtual_devices, authors_dir)
        paths.append(write_report(name, output_dir))
    if KERNELS in suite:
        paths.append(write_kernels(output_dir, report))
    return paths


def measure(
    suite: str,
    cases: Sequence[Case],
    output_dir: pathlib.Path | str,
    rounds: int,
    memory: bool,
    authors_dir: pathlib.Path | str | None = None,
    least_seconds: float = _LEAST_SECONDS,
) -> None:
    """Measures `cases` and writes them into `output_dir` as the results of `suite`.

    The cases of one session (the same network and batch) take turns: each is timed once per round, and round
    r begins with the r-th case. A machine that slows down therefore slows all of them.
    """
    found: dict[Case, dict[str, Any]] = {
        case: {"case": dataclasses.asdict(case), "seconds": [], "memory": None} for case in cases
    }
    content = {"suite": suite, **_about(cases), "cases": list(found.values())}
    path = pathlib.Path(output_dir) / f"{suite}.json"
    unfinished = path.with_suffix(".unfinished.json")
    with tqdm.tqdm(total=len(cases) * (rounds + 1 + memory), desc=suite, unit="measurement") as progress:
        for case in cases if memory else ():
            found[case]["memory"] = peak_memory(case, authors_dir)
            files.write_json(unfinished, content)
            progress.update()
        for _, session in itertools.groupby(cases, key=lambda case: case.session):
            timed = [case for case in session if found[case]["memory"] != KILLED]
            works = {}
            for case in timed:
                works[case] = make_work(case, authors_dir)
                warm_up(works[case])
                progress.update()
            for timings in timed_rounds(works, rounds, least_seconds, progress.update):
                for case, (seconds, about) in timings.items():
                    found[case]["seconds"].append(seconds)
                    found[case].update(about)
                files.write_json(unfinished, content)
            del works
            gc.collect()  # keeps the networks of one session only
    os.replace(unfinished, path)


def rotated(items: Iterable[Any], turn: int) -> list[Any]:
    """The items, beginning with number `turn` and wrapping around."""
    items = list(items)
    start = turn % max(1, len(items))
    return items[start:] + items[:start]


def warm_up(work: Work) -> float:
    """Takes the first steps, which trace and compile. Returns the seconds of the first run."""
    seconds = _seconds(work, 1)
    work.run(1)
    return seconds


def timed_rounds(
    works: Mapping[Case, Work],
    rounds: int,
    least_seconds: float = _LEAST_SECONDS,
    tell: Callable[[], Any] = lambda: None,
) -> Iterator[dict[Case, tuple[float, dict[str, Any]]]]:
    """Times the works in turns; round r begins with the r-th.

    Args:
        works: The `Work` of each case after `warm_up`, the baseline first.
        rounds: How often each is timed.
        least_seconds: How long the baseline trains in a round; the others take as many steps.
        tell: Called after each timing.

    Yields:
        For each round `{case: (seconds per step, its other fields)}`.
    """
    if not works:
        return
    count = max(1, math.ceil(least_seconds / _seconds(next(iter(works.values())), 1)))
    for turn in range(rounds):
        timings = {}
        for case in rotated(works, turn):
            work = works[case]
            about = {"parameters": work.parameters, "steps": count * work.steps}
            timings[case] = (_seconds(work, count) / work.steps, about)
            tell()
        yield timings


def _prepare(peers, authors_dir):
    if peers or authors_dir is not None:
        from prl_keras.experiments.benchmark import peers

        if authors_dir is not None:
            peers.import_authors(authors_dir)
    for gpu in tf.config.list_physical_devices("GPU"):
        tf.config.experimental.set_memory_growth(gpu, True)  # leaves memory for PyTorch


def _seconds(work, count):
    """Mean seconds of `count` runs."""
    start = time.perf_counter()
    work.run(count)
    return (time.perf_counter() - start) / count


def _about(cases):
    """Date, hardware and versions: fields of the JSON file."""
    gpus = tf.config.list_physical_devices("GPU")
    details = [tf.config.experimental.get_device_details(gpu).get("device_name", "GPU") for gpu in gpus]
    needed = _PACKAGES if any(case.implementation != "prl_keras" for case in cases) else _PACKAGES[:2]
    return {
        "date": datetime.date.today().isoformat(),
        "device": ", ".join(details) or "CPU",
        "replicas": tf.distribute.get_strategy().num_replicas_in_sync,
        "cores": core_count(),
        "processor": _processor(),
        "versions": {name: importlib.metadata.version(name) for name in needed},
        "xla": uses_xla(),
    }


def _processor():
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return (names or [platform.processor() or platform.machine()])[0]
