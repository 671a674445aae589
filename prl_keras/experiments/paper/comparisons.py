"""The statistics of a table's runs: means, intervals, paired tests, agreement with the paper.

All values are in the paper's units: R2, and accuracy in percent.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from prl_keras.experiments.data.load import DATASETS
from prl_keras.experiments.paper.tables import Row, Table
from prl_keras.experiments.runs.training import LAST_EPOCHS

CONFIDENCE = 0.95
#: Pairs that differ in one choice of PRL: the score by which examples are dropped, or, in the last pair,
#: dropping instead of clipping.
PAIRS = (("prl_l", "spl"), ("co_prl_l", "co_teaching"), ("prl_g", "ignormclip"))
CELL = ["dataset", "row", "method", "epsilon_error"]
_EPOCHS = ["best", "best_epoch", "final", "memorized"]
_FEWEST_FOR_WILCOXON = 6  # with 5 pairs the smallest two-sided p is 2 / 2**5 > 0.05


class Comparison(NamedTuple):
    """All the numbers of a report.

    Attributes:
        table: The `Table`.
        runs: From `run_values`.
        cells: From `cell_values`.
        best: From `best_methods`.
        tests: {(first, second): result of `pair_tests`} for the `PAIRS` that the table has.
        agreement, turned: From `rank_agreement`.
    """

    table: Table
    runs: pd.DataFrame
    cells: pd.DataFrame
    best: pd.DataFrame
    tests: dict[tuple[str, str], pd.DataFrame]
    agreement: pd.DataFrame
    turned: list[tuple[str, str, str]]


def compare(table: Table, contents: Sequence[dict[str, Any]]) -> Comparison:
    """The `Comparison` of the runs of a table that has a metric."""
    runs = run_values(contents, table.metric)
    cells = cell_values(table, runs)
    pairs = [pair for pair in PAIRS if set(pair) <= set(table.methods)]
    return Comparison(
        table,
        runs,
        cells,
        best_methods(table, runs, cells),
        {pair: pair_tests(table, runs, *pair) for pair in pairs},
        *rank_agreement(table, cells),
    )


def cell_of(config: Any) -> tuple[str, str, str, float]:
    """(the paper's dataset, row, method, epsilon_error) of a `RunConfig`."""
    dataset = DATASETS[config.dataset].of or config.dataset
    row = Row(dataset, config.corruption, config.epsilon).label
    return dataset, row, config.method, config.told_error


def run_values(contents: Sequence[dict[str, Any]], metric: Any) -> pd.DataFrame:
    """A DataFrame with a line per run.

    Columns: those of `CELL`; `seed`; `value`, the mean of the test metric over the last 10 epochs, NaN if
    one of them is non-finite; `last`, an array of those (at most 10) epochs' values; `best`, the highest
    value of all epochs, and `best_epoch`; `final`, the value of the last epoch; `memorized`, the percentage
    of wrong labels that the network predicts at the end, NaN if it was not measured.
    """
    lines = []
    for content in contents:
        config, unit, history = content["config"], metric.unit, content["history"]
        values = unit * history[f"test_{metric.name}"].to_numpy(float)
        last, best = values[-LAST_EPOCHS:], np.argmax(np.nan_to_num(values, nan=-np.inf))
        value = unit * content["result"]["test_mean"] if np.isfinite(last).all() else np.nan
        memorized = 100 * history["memorized"].iloc[-1] if "memorized" in history else np.nan
        lines.append((
            *cell_of(config), config.seed, value, last,
            values[best], history["epoch"].iloc[best], values[-1], memorized,
        ))  # fmt: skip
    return pd.DataFrame(lines, columns=[*CELL, "seed", "value", "last", *_EPOCHS])


def cell_values(table: Table, runs: pd.DataFrame) -> pd.DataFrame:
    """Our cells beside the paper's: a DataFrame with a line per cell in table order, clean data last.

    Columns: those of `CELL`; `mean` over the seeds; `std` over the pooled last epochs of all seeds, as in
    the paper (divided by n); `ci_low` and `ci_high`, the interval of the mean over the seeds; `seeds`, their
    number; `best`, `best_epoch`, `final` and `memorized` of `run_values`, means over the seeds; `paper_mean`
    and `paper_std`. Missing values are NaN.
    """
    keys = [
        (row.dataset, row.label, method, error)
        for row in table.rows
        for method in table.methods
        for error in table.epsilon_errors
    ]
    keys += [(row.dataset, row.label, "standard", 0.0) for row in table.clean_rows]
    paper = paper_values(table)
    groups = dict(list(runs.groupby(CELL, sort=False)))
    lines = []
    for key in keys:
        line = dict(zip(CELL, key))
        group = groups.get(key)
        if group is None:
            line |= {"mean": np.nan, "std": np.nan, "ci_low": np.nan, "ci_high": np.nan, "seeds": 0}
            line |= dict.fromkeys(_EPOCHS, np.nan)
        else:
            low, high = interval(group["value"])
            pooled = np.concatenate(list(group["last"]))
            line |= {"mean": group["value"].mean(skipna=False), "std": pooled.std()}
            line |= {"ci_low": low, "ci_high": high, "seeds": len(group)}
            line |= {name: group[name].mean(skipna=False) for name in _EPOCHS}
        lines.append(line | dict(zip(("paper_mean", "paper_std"), paper.get(key, (np.nan, np.nan)))))
    return pd.DataFrame(lines)


def interval(values: Any) -> tuple[Any, Any]:
    """95% interval by Student's t of the mean over the last axis: (low, high), NaN for fewer than two."""
    values = np.asarray(values, float)
    n, mean = values.shape[-1], values.mean(axis=-1)
    if n < 2:
        return mean + np.nan, mean + np.nan
    low, high = stats.t.interval(CONFIDENCE, n - 1)
    error = stats.sem(values, axis=-1)
    return mean + low * error, mean + high * error


def paired(first: pd.Series, second: pd.Series) -> dict[str, Any]:
    """Paired comparison of two Series on their shared index.

    Returns:
        dict: `pairs`, their number; `difference`, the mean of first - second; `ci_low`, `ci_high`, `p`
        (two-sided paired t test, `scipy.stats.ttest_rel`; needs two pairs) and `p_wilcoxon` (needs six).
        NaN with too few pairs; both p are also NaN if all differences are equal.
    """
    first, second = first.dropna().align(second.dropna(), join="inner")
    difference = (first - second).round(9)
    found = {"pairs": len(difference), "difference": difference.mean()}
    found["ci_low"], found["ci_high"] = interval(difference) if len(difference) else (np.nan, np.nan)
    varies = difference.nunique() > 1
    found["p"] = stats.ttest_rel(first, second).pvalue if varies else np.nan
    enough = varies and len(difference) >= _FEWEST_FOR_WILCOXON
    found["p_wilcoxon"] = stats.wilcoxon(difference).pvalue if enough else np.nan
    return found


def pair_tests(table: Table, runs: pd.DataFrame, first: str, second: str) -> pd.DataFrame:
    """Compares two methods: over the seeds of each row of the table, then over all rows in two ways.

    Returns:
        DataFrame: `row`, the results of `paired`, and `p_bh`, the rows' p-values adjusted for the number of
        rows by Benjamini and Hochberg. The last two lines pool all rows: first with a pair per row and seed,
        then with a pair per row, of the means over the seeds that both methods have.
    """
    values = runs.set_index(["row", "seed"])
    ours, theirs = (values.loc[values["method"] == name, "value"] for name in (first, second))
    lines = []
    for row in table.rows:
        pair = (part[part.index.get_level_values("row") == row.label] for part in (ours, theirs))
        lines.append({"row": row.label, **paired(*pair)})
    p = np.array([line["p"] for line in lines])
    adjusted = np.full_like(p, np.nan)
    adjusted[~np.isnan(p)] = stats.false_discovery_control(p[~np.isnan(p)], method="bh")
    for line, value in zip(lines, adjusted):
        line["p_bh"] = value
    both = pd.concat([ours, theirs], axis=1, join="inner", keys=["ours", "theirs"]).dropna()
    means = both.groupby("row").mean()
    lines.append({"row": "all, by row and seed", **paired(both["ours"], both["theirs"]), "p_bh": np.nan})
    lines.append({"row": "all, by row", **paired(means["ours"], means["theirs"]), "p_bh": np.nan})
    return pd.DataFrame(lines)


def best_methods(table: Table, runs: pd.DataFrame, cells: pd.DataFrame) -> pd.DataFrame:
    """Whether a PRL variant, a method with "prl" in its name, is best or close to the best in each row.

    Returns:
        DataFrame: `row`; `best`, the method with the highest mean; `best_prl`, the same among the PRL
        variants; `difference`, `ci_low`, `ci_high` of best_prl - best over the `pairs` seeds of both;
        `verdict`: "best", "behind" (the interval lies below 0), "within noise", "one seed" or "no shared
        seed" (no interval), "not finite" (no PRL variant is finite) or "missing".
    """
    lines = []
    for row in table.rows:
        found = cells[(cells["row"] == row.label) & (cells["seeds"] > 0)].set_index("method")["mean"]
        means = found.dropna()
        variants = means[means.index.str.contains("prl")]
        verdict = "not finite" if found.index.str.contains("prl").any() else "missing"
        line: dict[str, Any] = {"row": row.label, "best": None, "best_prl": None}
        line |= {"verdict": verdict, "pairs": 0}
        line |= {"difference": np.nan, "ci_low": np.nan, "ci_high": np.nan}
        if len(variants):
            line |= {"best": means.idxmax(), "best_prl": variants.idxmax()}
            if variants.max() == means.max():
                line |= {"best": line["best_prl"], "difference": 0.0, "verdict": "best"}
            else:
                values = runs[runs["row"] == row.label].set_index(["method", "seed"])["value"]
                test = paired(values.xs(line["best_prl"]), values.xs(line["best"]))
                line |= {name: test[name] for name in ("pairs", "difference", "ci_low", "ci_high")}
                line["verdict"] = "behind" if test["ci_high"] < 0 else "within noise"
                if test["pairs"] < 2:
                    line["verdict"] = "one seed" if test["pairs"] else "no shared seed"
        lines.append(line)
    return pd.DataFrame(lines)


def rank_agreement(table: Table, cells: pd.DataFrame) -> tuple[pd.DataFrame, list[tuple[str, str, str]]]:
    """Compares our order of a row's cells with the paper's.

    Returns:
        (DataFrame: `row`, `cells` (the number of cells with a mean in both), `rho` and `tau`, Spearman's rank
        correlation and Kendall's tau-b between their means; list of (row, first, second): the `PAIRS` in
        another order than in the paper, without those that are equal in the paper).
    """
    lines, turned = [], []
    for row in table.rows:
        both = cells[cells["row"] == row.label].dropna(subset=["mean", "paper_mean"])
        line = {"row": row.label, "cells": len(both), "rho": np.nan, "tau": np.nan}
        if len(both) > 1:
            line["rho"] = stats.spearmanr(both["mean"], both["paper_mean"]).statistic
            line["tau"] = stats.kendalltau(both["mean"], both["paper_mean"]).statistic
        lines.append(line)
        means = both.set_index("method")[["mean", "paper_mean"]]
        for first, second in PAIRS:
            if first in means.index and second in means.index:
                ours, papers = np.sign(means.loc[first] - means.loc[second])
                if papers and ours != papers:
                    turned.append((row.label, first, second))
    return pd.DataFrame(lines), turned


def paper_values(table: Table) -> dict[tuple[str, str, str, float], tuple[float, float]]:
    """The paper's numbers: (dataset, row, method, epsilon error) -> (mean, std)."""
    assert table.metric is not None, "the paper's seconds are in `timing`"
    name, found = table.metric.column, {}
    for line in table.paper().to_dict("records"):
        row = Row(line.get("dataset", table.rows[0].dataset), line["corruption"], line["epsilon"])
        key = (row.dataset, row.label, line["method"], line.get("epsilon_error", 0.0))
        found[key] = (line[f"{name}_mean"], line[f"{name}_std"])
    return found
