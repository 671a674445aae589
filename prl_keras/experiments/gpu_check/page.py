"""All that a check has measured so far, as a page of Markdown: OUTPUT_DIR/gpu_check.md."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from prl_keras import METHODS, files
from prl_keras.experiments.benchmark import kernels
from prl_keras.experiments.benchmark.suites import Case
from prl_keras.experiments.gpu_check import smoke
from prl_keras.experiments.gpu_check.items import Items
from prl_keras.experiments.gpu_check.job import Job, label
from prl_keras.experiments.markdown import NOTHING, markdown_table, number
from prl_keras.experiments.paper.comparisons import paper_values
from prl_keras.experiments.paper.tables import TABLES, Row
from prl_keras.experiments.runs import results
from prl_keras.experiments.runs.training import LAST_EPOCHS

_SHOWN_ERRORS = 3  # items named for each error


def write(job: Job, titles: Mapping[str, str]) -> None:
    """Writes the page of a check with any `Job` of it; `titles` are those of the parts, in order."""
    parts = [f"# A check of the GPU ({job.size.name})"]
    for part, title in titles.items():
        items = Items(job.path(part))
        lines = [_cell_state(job) if part == "cells" else _state(items)]
        if items.good or part == "cells":
            lines.append(_SECTIONS[part](items, job))
        lines.append(_errors(items))
        parts += [f"## {title}", *filter(None, lines)]
    with files.replacing(job.output_dir / "gpu_check.md") as temporary:
        temporary.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _state(items):
    if items.note:
        return items.note
    if items.total is None:
        return "Not begun."
    text = f"{len(items.good)} of {items.total} done."
    if items.errors:
        text += f" Failed: {len(items.errors)}."
    if items.current:
        text += f" At work, or cut off: {items.current}."
    return text


def _errors(items):
    by_text: dict[str, list[str]] = {}
    for key, text in items.errors.items():
        by_text.setdefault(text, []).append(key)
    lines = []
    for text, keys in by_text.items():
        more = f" and {len(keys) - _SHOWN_ERRORS} others" if len(keys) > _SHOWN_ERRORS else ""
        lines.append(f"- {'; '.join(keys[:_SHOWN_ERRORS])}{more}: {text}")
    return "Failed:\n\n" + "\n".join(lines) if lines else ""


def _smoke(items, job):
    facts = items.good.get(smoke.DEVICE, {})
    lines = [[name.replace("_", " "), str(value)] for name, value in facts.items() if name != "versions"]
    lines += [[name, version or "not installed"] for name, version in facts.get("versions", {}).items()]
    lines += [[key, smoke.verdict(found)] for key, found in items.good.items() if key != smoke.DEVICE]
    about = (
        "The comparisons are with float64 on the CPU. The number is the largest difference as a fraction of "
        "the largest value."
    )
    return f"{markdown_table(['what', 'found'], lines)}\n\n{about}"


def _oracle(items, job):
    skipped = sum(facts["outcome"] == "skipped" for facts in items.good.values())
    return f"Passed: {len(items.good) - skipped}. Skipped: {skipped}. Failed: {len(items.errors)}."


def _kernels(items, job):
    return kernels.table(items.good)


def _steps(items, job):
    lines = []
    for facts in items.good.values():
        case = Case(**facts["case"])
        ratios = np.divide(facts["seconds"], facts["base_seconds"]) / case.network_count
        low, middle, high = np.quantile(ratios, (0.25, 0.5, 0.75))
        lines.append([
            case.title, f"{case.norm} norm", case.precision, "yes" if case.is_compiled else "no",
            _milliseconds(facts), f"{middle:.2f} ({low:.2f} to {high:.2f})",
            _mebibytes(facts), number(facts["first_seconds"], 1),
        ])  # fmt: skip
    header = [
        "case",
        "norm",
        "precision",
        "XLA",
        "ms a step",
        "ratio (quartiles)",
        "peak MiB",
        "first step s",
    ]
    about = (
        f"{job.size.network}, batch {job.size.batch_size}. Milliseconds are medians. A ratio is to plain "
        "training of as many networks in the same round, with the same norm, precision and compiler. The "
        "peak is the GPU memory that a step takes with its networks."
    )
    return f"{about}\n\n{markdown_table(header, lines)}"


def _pytorch(items, job):
    ours = {
        (facts["case"]["precision"], facts["case"]["is_compiled"]): np.median(facts["seconds"])
        for facts in Items(job.path("steps")).good.values()
        if facts["case"]["method"] == "standard" and facts["case"]["norm"] == "batch"
    }
    lines = []
    for key, facts in items.good.items():
        precision, how = key.split(", ")
        seconds = ours.get((precision, how != "eager"), math.nan)
        lines.append([
            precision, how, _milliseconds(facts), number(1000 * seconds, 2),
            number(seconds / np.median(facts["seconds"]), 2) if job.size.network == "cnn9" else NOTHING,
            _mebibytes(facts), number(facts["first_seconds"], 1),
        ])  # fmt: skip
    header = ["precision", "how", "ms a step", "our ms", "ours to theirs", "peak MiB", "first step s"]
    version = next(iter(items.good.values()))["version"]
    about = (
        f"PyTorch {version}, cnn9, batch {job.size.batch_size}, batch norm, plain training, channels last, "
        "fused Adam; float32 with TF32, bfloat16 by autocast. Ours is the step of the same precision, with "
        "XLA beside torch.compile, measured in another process."
    )
    return f"{about}\n\n{markdown_table(header, lines)}"


def _milliseconds(facts):
    return number(1000 * np.median(facts["seconds"]), 2)


def _mebibytes(facts):
    return number(None if facts["peak"] is None else facts["peak"] / 2**20, 0)


def _cell_state(job):
    finished = len(_finished(job))
    text = f"{finished} of {len(job.size.cells)} runs are finished, seed 0 first."
    if job.size.name == "paper":
        text += (
            f" `python -m binaries.reproduce --table=2 --scale=paper --output_dir={job.output_dir.name} "
            "--report`, in the folder above, writes the table of the finished ones."
        )
    return text


def _cells(items, job):
    """The runs that have epochs, and epoch by epoch those that are not finished."""
    finished, paper = _finished(job), paper_values(TABLES[2])
    lines, curves = [], []
    for config in job.size.cells:
        if config in finished:
            history, mean = finished[config]["history"], finished[config]["result"]["test_mean"]
        else:
            history, mean = _unfinished(results.path_of(job.runs, config)), None
        if history is None:
            continue
        test = 100 * history["test_accuracy"]
        row = Row(config.dataset, config.corruption, config.epsilon).label
        best = int(test.argmax())
        lines.append([
            f"{row}, {METHODS[config.method].title}", str(config.seed), f"{len(history)} of {config.epochs}",
            number(history["seconds"].median(), 2), f"{test.iloc[best]:.1f} ({best + 1})",
            number(test.iloc[-1], 1), number(None if mean is None else 100 * mean, 1),
            number(paper.get((config.dataset, row, config.method, 0.0), (None,))[0], 1),
        ])  # fmt: skip
        if mean is None:
            curves.append(f"- {label(config)}: {' '.join(f'{value:.1f}' for value in test)}")
    if not lines:
        return ""
    header = ["run", "seed", "epochs", "s an epoch", "best (epoch)", "last", f"last {LAST_EPOCHS}", "paper"]
    text = f"Accuracy on clean test images in percent.\n\n{markdown_table(header, lines)}"
    if curves:
        text += "\n\nNot finished, and in no mean; the next start goes on. By epoch:\n\n" + "\n".join(curves)
    return text


def _finished(job):
    contents, _ = results.read_all(job.runs)
    known = set(job.size.cells)
    return {each["config"]: each for each in contents if each["config"] in known}


def _unfinished(path):
    """The history of a run that has no result, None if it has no epochs."""
    try:
        history = pd.read_csv(path / "history.csv")
        return history if len(history) and history["test_accuracy"].notna().all() else None
    except (OSError, ValueError, KeyError):
        return None


_SECTIONS: dict[str, Callable[[Items, Job], Any]] = {
    "smoke": _smoke,
    "oracle": _oracle,
    "kernels": _kernels,
    "steps": _steps,
    "pytorch": _pytorch,
    "cells": _cells,
}
