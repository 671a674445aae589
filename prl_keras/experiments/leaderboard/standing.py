"""The numbers of the leaderboard: a line per run, then means, intervals and paired tests."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from prl_keras.experiments.leaderboard.entries import BASELINE, Setting
from prl_keras.experiments.paper.comparisons import interval, paired
from prl_keras.stopping import first_minimum

#: How the epoch of a run's accuracy is chosen.
CHOICES = ("last", "chosen", "best")


def run_values(
    contents: Iterable[Mapping[str, Any]], wanted: Mapping[Any, tuple[str, Setting]]
) -> pd.DataFrame:
    """A DataFrame with a line per run, in the order of `wanted`.

    Columns: `entry`, `setting` (its label), `dataset`, `noise`, `seed`; the accuracy in percent `last`, of
    the last epoch, `best`, the highest of all epochs, and `chosen`, of the epoch at which `LabelWave` would
    stop, or of the last one if it would not; `best_epoch` and `chosen_epoch`; `memorized`, the percentage of
    wrong labels that the network predicts at the end, NaN for clean labels. A non-finite accuracy is 0.

    Args:
        contents: Finished runs, from `results.read_all`; others than the wanted ones are left out.
        wanted: From `entries.configs`.
    """
    histories, lines = {content["config"]: content["history"] for content in contents}, []
    for config, (name, setting) in wanted.items():
        if config not in histories:
            continue
        history = histories[config]
        accuracy = 100 * np.nan_to_num(history["test_accuracy"].to_numpy(float), nan=0.0)
        best = int(np.argmax(accuracy))
        # LabelWave compares epochs with one another; the first has none before it.
        minimum, is_over = first_minimum(history["changed"].to_numpy(float)[1:])
        chosen = 1 + minimum if is_over else len(accuracy) - 1
        lines.append({
            "entry": name, "setting": setting.label, "dataset": setting.dataset, "noise": setting.noise.label,
            "seed": config.seed,
            "last": accuracy[-1], "best": accuracy[best], "chosen": accuracy[chosen],
            "best_epoch": best + 1, "chosen_epoch": chosen + 1,
            "memorized": 100 * history["memorized"].iloc[-1] if "memorized" in history else np.nan,
        })  # fmt: skip
    return pd.DataFrame(lines)


def complete(runs: pd.DataFrame, wanted: Mapping[Any, tuple[str, Setting]]) -> pd.DataFrame:
    """The runs of the seeds of a data set for which every wanted run is finished, so that means compare.

    If there is no such seed, all runs.
    """
    missing: dict[tuple[str, int], set[tuple[str, str]]] = {
        (setting.dataset, config.seed): set() for config, (_, setting) in wanted.items()
    }
    for config, (name, setting) in wanted.items():
        missing[setting.dataset, config.seed].add((name, setting.label))
    for key, part in runs.groupby(["dataset", "seed"]):
        missing[key] -= set(zip(part["entry"], part["setting"]))
    is_complete = [not missing[pair] for pair in zip(runs["dataset"], runs["seed"])]
    return runs[is_complete] if any(is_complete) else runs


def cells(runs: pd.DataFrame) -> pd.DataFrame:
    """A line per entry and setting: means over the seeds of the columns of `run_values`, `seeds`, their
    number, and `low` and `high`, the 95% interval of `last` by Student's t.
    """
    keys = ["entry", "setting", "dataset", "noise"]
    grouped = runs.groupby(keys, sort=False)
    low, high = zip(*(interval(part) for _, part in grouped["last"]))
    found = grouped.mean(numeric_only=True).drop(columns="seed")
    return found.assign(low=low, high=high, seeds=grouped.size()).reset_index()


def standing(runs: pd.DataFrame, settings: Iterable[str]) -> pd.DataFrame:
    """A line per entry, the highest `last` first: the mean over the settings of their means over the seeds.

    A pair is a setting and a seed that the entry shares with plain training.

    Returns:
        DataFrame: `entry`; `last`, `chosen` and `best`; `gain`, `gain_low`, `gain_high` and `p`: `last` less
        plain training's, paired by setting and seed; `p_bh`, p adjusted by Benjamini and Hochberg for the
        number of entries; `worst`, the lowest gain of a setting; `memorized`; `runs`, their number.

    Args:
        runs: From `run_values`.
        settings: Labels of the settings to take.
    """
    runs = runs[runs["setting"].isin(list(settings))]
    by_pair = runs.set_index(["setting", "seed"])
    plain = by_pair[by_pair["entry"] == BASELINE]
    lines = []
    for name, own in by_pair.groupby("entry", sort=False):
        test = paired(own["last"], plain["last"])
        gains = (own["last"] - plain["last"]).dropna().groupby("setting").mean()
        lines.append({
            "entry": name, **own.groupby("setting")[list(CHOICES)].mean().mean(),
            "gain": test["difference"], "gain_low": test["ci_low"], "gain_high": test["ci_high"],
            "p": test["p"], "worst": gains.min(),
            "memorized": own["memorized"].mean(), "runs": len(own),
        })  # fmt: skip
    found = pd.DataFrame(lines).sort_values("last", ascending=False, ignore_index=True)
    known = found["p"].notna()
    found["p_bh"] = np.nan
    if known.any():
        found.loc[known, "p_bh"] = stats.false_discovery_control(found.loc[known, "p"], method="bh")
    return found


def differences(runs: pd.DataFrame, first: str, second: str, of_first: str, of_second: str) -> pd.DataFrame:
    """A line per setting: `of_first` of an entry less `of_second` of another, paired by the seed.

    Returns:
        DataFrame: `setting` and the results of `comparisons.paired`; a setting without a shared seed is left
        out.
    """
    values = runs.set_index(["setting", "seed"])
    ours, theirs = values[values["entry"] == first][of_first], values[values["entry"] == second][of_second]
    lines = []
    for setting in runs["setting"].unique():
        pair = (part[part.index.get_level_values("setting") == setting] for part in (ours, theirs))
        line = paired(*pair)
        if line["pairs"]:
            lines.append({"setting": setting, **line})
    return pd.DataFrame(lines)
