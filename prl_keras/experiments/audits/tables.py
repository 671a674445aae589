"""Runs all cases of the benchmark `label_errors` and writes the tables of their results."""

import importlib.util
import itertools
import pathlib
from collections.abc import Sequence
from typing import Any

import pandas as pd
import tqdm

from prl_keras import files
from prl_keras.experiments.audits import label_errors
from prl_keras.experiments.audits.label_errors import CASES, measure
from prl_keras.experiments.data.load import DATASETS
from prl_keras.experiments.markdown import markdown_table, number

_QUALITIES = {
    "average_precision": "Average precision",
    "roc_auc": "Area under the ROC curve",
    "precision_top": "Precision in the 1% most suspect",
}
_FLAGS = {
    "flagged": "Flagged fraction",
    "precision": "Precision of the flags",
    "recall": "Recall of the flags",
    "f1": "F1 of the flags",
}


def run_all(
    dataset: str,
    corruptions: Sequence[str],
    epsilons: Sequence[float],
    seeds: Sequence[int],
    cases: Sequence[str],
    output_dir: pathlib.Path | str,
    data_options: dict[str, Any] | None = None,
) -> None:
    """Measures every case in every setting that has no result yet.

    Raises:
        ValueError: for an unknown case, before any training.
        ImportError: if cleanlab is needed and missing.
    """
    unknown = [name for name in cases if name not in CASES]
    if unknown:
        raise ValueError(f"cases={unknown} are not known; choose from {', '.join(CASES)}.")
    if DATASETS[dataset].task == "classification" and importlib.util.find_spec("cleanlab") is None:
        raise ImportError("Class labels are ranked by cleanlab: pip install -r requirements-peers.txt.")
    settings = list(itertools.product(seeds, corruptions, epsilons, cases))
    progress = tqdm.tqdm(settings, unit="case")
    for seed, corruption, epsilon, name in progress:
        progress.set_description(f"{dataset} {corruption} {epsilon:g} {name} seed {seed}")
        measure(name, dataset, corruption, epsilon, seed, output_dir, data_options)


def write_report(directory: pathlib.Path | str, path: pathlib.Path | str) -> None:
    """Writes tables of all results in a folder, means over the seeds, and packs the results.

    Raises:
        ValueError: if there are none, or one is damaged.
    """
    results = list(label_errors.results(directory).values())
    if not results:
        raise ValueError(f"{directory} holds no results; run the cases first.")
    sections = []
    for dataset in dict.fromkeys(result["dataset"] for result in results):
        of_dataset = [result for result in results if result["dataset"] == dataset]
        noisy = [result for result in of_dataset if result["epsilon"]]
        flagged = [result for result in noisy if "flags" in result]
        for kind, qualities, found in (("rankings", _QUALITIES, noisy), ("flags", _FLAGS, flagged)):
            sections += [_table(dataset, found, kind, *quality) for quality in qualities.items() if found]
        if estimated := [result for result in of_dataset if "estimate" in result]:
            sections += [_epsilon_summary(dataset, estimated), _epsilon_table(dataset, estimated)]
    with files.replacing(path) as temporary:
        temporary.write_text("\n\n".join(sections) + "\n")
    label_errors.pack(directory)


def _setting(result):
    return f"{result['corruption']} {result['epsilon']:.0%}"


def _table(dataset, results, kind, quality, title):
    """A quality of all "rankings" or "flags", the `kind`: a row for each case, a column for each setting."""
    rows = [
        {
            "case": result["case"], kind: name, "trainings": result["trainings"],
            "setting": _setting(result), "value": values[quality],
        }
        for result in results
        for name, values in result[kind].items()
    ]  # fmt: skip
    table = pd.DataFrame(rows).pivot_table(
        index=["case", kind, "trainings"], columns="setting", values="value", aggfunc="mean", sort=False
    )
    table["mean"] = table.mean(axis=1, skipna=False)
    lines = [
        [f"{case}: {name}", str(trainings), *(number(value, 3) for value in values)]
        for (case, name, trainings), values in zip(table.index, table.to_numpy())
    ]
    seeds = pd.DataFrame([(_setting(r), r["case"], r["seed"]) for r in results]).groupby([0, 1])[2].nunique()
    most = f"{seeds.min()}" if seeds.min() == seeds.max() else f"{seeds.min()} to {seeds.max()}"
    return f"### {title}: {dataset} (means over {most} seeds)\n\n" + markdown_table(
        [f"case: {kind.rstrip('s')}", "trainings", *table.columns], lines
    )


def _epsilon_summary(dataset, results):
    lines = []
    for case in dict.fromkeys(result["case"] for result in results):
        of_case = [result for result in results if result["case"] == case]
        cells = [case, str(len(of_case))]
        for kind in ("estimate", "trusted"):
            errors = [abs(result[kind]["estimate"] - result["achieved_epsilon"]) for result in of_case]
            widths = [result[kind]["high"] - result[kind]["low"] for result in of_case]
            held = sum(_is_held(result, kind) for result in of_case)
            cells += [number(max(errors), 3), f"{held}", number(sum(widths) / len(widths), 3)]
        lines.append(cells)
    header = [
        "case", "runs", "largest error", "90% interval holds the truth", "mean width",
        "with 100 trusted labels: largest error", "holds", "mean width",
    ]  # fmt: skip
    return f"### Epsilon, in short: {dataset}\n\n" + markdown_table(header, lines)


def _is_held(result, kind):
    return result[kind]["low"] <= result["achieved_epsilon"] <= result[kind]["high"]


def _epsilon_table(dataset, results):
    lines = []
    for result in results:
        truth = result["achieved_epsilon"]
        cells = [result["case"], str(result["seed"]), number(truth, 3)]
        for kind in ("estimate", "trusted"):
            found = result[kind]
            is_held = _is_held(result, kind)
            cells += [
                number(found["estimate"], 3),
                f"{number(found['low'], 3)} to {number(found['high'], 3)}{'' if is_held else ' (missed)'}",
            ]
        lines.append([_setting(result), *cells])
    header = [
        "setting", "case", "seed", "true epsilon", "estimate", "90% interval",
        "with 100 trusted labels", "90% interval, trusted",
    ]  # fmt: skip
    return f"### Epsilon: {dataset}\n\n" + markdown_table(header, lines)
