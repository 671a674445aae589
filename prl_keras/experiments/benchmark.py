"""Measures the cases of a suite in turns, and writes what was measured as JSON, Markdown and PNG."""

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

import tensorflow as tf
import tqdm

from prl_keras import files
from prl_keras.experiments.benchmark_cases import suite_cases
from prl_keras.experiments.benchmark_keras import core_count, uses_xla
from prl_keras.experiments.benchmark_kernels import KERNELS, write_kernels
from prl_keras.experiments.benchmark_profile import write_profile
from prl_keras.experiments.benchmark_report import paths_of, write_report
from prl_keras.experiments.benchmark_work import KILLED, make_work, peak_memory
from prl_keras.experiments.strategies import make_strategy

_LEAST_SECONDS = 1.0  # that the baseline trains for in a round
_PACKAGES = ("tensorflow", "keras", "torch", "opacus")


def benchmark(
    suite=("step",),
    rounds=7,
    memory=True,
    peers=False,
    authors_dir=None,
    output_dir="results/benchmark",
    profile=False,
    report=False,
    virtual_devices=None,
):
    """Measures the suites, or with `report` only reads what was measured, and writes SUITE.json, .md, .png.

    While a suite is measured, SUITE.unfinished.json has what there is; it takes the place of an earlier
    SUITE.json only when all of it is there. The suite "kernels" has no clock and no picture
    (`benchmark_kernels`).

    Args:
        suite: Names in `benchmark_cases.SUITES`, or "kernels".
        rounds: How often each case is timed.
        memory: Whether each case's peak memory is measured too, before, in a process of its own. What is
            killed there is not timed.
        peers: Whether the suite "step" has the same work in PyTorch and Opacus.
        authors_dir: A checkout of github.com/illidanlab/PRL; adds the authors' own PRL(L).
        output_dir: Gets the files.
        profile: Whether to profile a step instead (`benchmark_profile`); no suite is measured then.
        report: Whether to measure nothing.
        virtual_devices: Split the CPU into so many devices and share every batch out to them, to see what the
            replicas' exchange of scores takes. For suites through `fit`.

    Returns:
        The paths of the Markdown files.

    Raises:
        ValueError: for an unknown suite, peers of a suite that has none, or damaged results.
        ImportError: for peers without PyTorch and Opacus.
        OSError: for an `authors_dir` that is none, or no results to report.
    """
    if profile:
        return [write_profile(output_dir)]
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


def measure(suite, cases, output_dir, rounds, memory, authors_dir=None, least_seconds=_LEAST_SECONDS):
    """Measures `cases` and writes them into `output_dir` as the results of `suite`.

    The cases of one session (the same network and batch) take turns: in each round each is timed once,
    and round r begins with the r-th case, so that a machine that slows down slows all of them.
    """
    found = {case: {"case": dataclasses.asdict(case), "seconds": [], "memory": None} for case in cases}
    content = {"suite": suite, **_about(cases), "cases": list(found.values())}
    path = paths_of(suite, output_dir)
    with tqdm.tqdm(total=len(cases) * (rounds + 1 + memory), desc=suite, unit="measurement") as progress:
        for case in cases if memory else ():
            found[case]["memory"] = peak_memory(case, authors_dir)
            files.write_json(path.unfinished, content)
            progress.update()
        for _, session in itertools.groupby(cases, key=lambda case: case.session):
            timed = [case for case in session if found[case]["memory"] != KILLED]
            for timings in _rounds(timed, rounds, authors_dir, least_seconds, progress):
                for case, (seconds, about) in timings.items():
                    found[case]["seconds"].append(seconds)
                    found[case].update(about)
                files.write_json(path.unfinished, content)
            gc.collect()  # the networks of one session at a time
    os.replace(path.unfinished, path.json)


def rotated(items, turn):
    """The items from the one numbered `turn` on, and round again."""
    items = list(items)
    start = turn % max(1, len(items))
    return items[start:] + items[:start]


def _prepare(peers, authors_dir):
    if peers or authors_dir is not None:
        from prl_keras.experiments import benchmark_peers

        if authors_dir is not None:
            benchmark_peers.import_authors(authors_dir)
    for gpu in tf.config.list_physical_devices("GPU"):
        tf.config.experimental.set_memory_growth(gpu, True)  # PyTorch needs some too


def _rounds(cases, rounds, authors_dir, least_seconds, progress):
    """Yields for each round `{case: (seconds a step, its other fields)}`."""
    works = {}
    for case in cases:
        works[case] = make_work(case, authors_dir)
        works[case].run(1)  # traces, and makes what the optimizer keeps
        works[case].run(1)
        progress.update()
    if not works:
        return
    # Alike for all the cases: enough that the first, the baseline, takes its time.
    count = max(1, math.ceil(least_seconds / _seconds(works[cases[0]], 1)))
    for turn in range(rounds):
        timings = {}
        for case in rotated(cases, turn):
            work = works[case]
            about = {"parameters": work.parameters, "steps": count * work.steps}
            timings[case] = (_seconds(work, count) / work.steps, about)
            progress.update()
        yield timings


def _seconds(work, count):
    """Seconds of one of `count` runs."""
    start = time.perf_counter()
    work.run(count)
    return (time.perf_counter() - start) / count


def _about(cases):
    """Where the numbers come from: fields of the JSON file."""
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
