"""What the runs of a table say, as numbers: means, intervals, paired tests, agreement with the paper.

Everything is in the paper's units: R2, and accuracy in percent.
"""

import numpy as np
import pandas as pd
from scipy import stats

from prl_keras.experiments.tables import Row
from prl_keras.experiments.training import LAST_EPOCHS

CONFIDENCE = 0.95
#: What PRL changes, everything else being equal: the score by which examples are dropped, or, in the last
#: pair, dropping instead of clipping.
PAIRS = (("prl_l", "spl"), ("co_prl_l", "co_teaching"), ("prl_g", "ignormclip"))
CELL = ["dataset", "row", "method", "epsilon_error"]
_UNITS = {"accuracy": 100, "r2_score": 1}
_FEWEST_FOR_WILCOXON = 6  # of 5 pairs the smallest two-sided p is 2 / 2**5 > 0.05


def metric_of(table):
    """The metric in which the paper gives a `Table`: "accuracy", "r2_score", or None for seconds."""
    columns = table.paper().columns
    return "accuracy" if "accuracy_mean" in columns else "r2_score" if "r2_mean" in columns else None


def cell_of(config):
    """(dataset, row, method, epsilon_error) of a `RunConfig`."""
    row = Row(config.dataset, config.corruption, config.epsilon).label
    return config.dataset, row, config.method, config.told_error


def run_values(contents, metric):
    """The runs, a DataFrame with a line for each.

    Columns: those of `CELL`, `seed`, `value` (the mean of the test metric over the last 10 epochs, NaN if
    one of them is not finite) and `last` (those up to 10 values, an array).
    """
    lines = []
    for content in contents:
        config, unit = content["config"], _UNITS[metric]
        last = unit * content["history"][f"test_{metric}"].tail(LAST_EPOCHS).to_numpy(float)
        value = unit * content["result"]["test_mean"] if np.isfinite(last).all() else np.nan
        lines.append((*cell_of(config), config.seed, value, last))
    return pd.DataFrame(lines, columns=[*CELL, "seed", "value", "last"])


def cell_values(table, runs, metric):
    """Ours beside the paper's, a DataFrame with a line per cell in the order of the table, then clean data.

    Columns: those of `CELL`; `mean` over the seeds; `std` over the pooled last epochs of all seeds, as the
    paper has it (divided by n); `ci_low`, `ci_high` of the mean over seeds; `seeds`, how many; `paper_mean`
    and `paper_std`. NaN where there is nothing.
    """
    keys = [
        (row.dataset, row.label, method, error)
        for row in table.rows
        for method in table.methods
        for error in table.epsilon_errors
    ]
    keys += [(row.dataset, row.label, "standard", 0.0) for row in table.clean_rows]
    paper = _paper_values(table, metric)
    groups = dict(list(runs.groupby(CELL, sort=False)))
    lines = []
    for key in keys:
        line = dict(zip(CELL, key))
        group = groups.get(key)
        if group is None:
            line |= {"mean": np.nan, "std": np.nan, "ci_low": np.nan, "ci_high": np.nan, "seeds": 0}
        else:
            low, high = interval(group["value"])
            pooled = np.concatenate(list(group["last"]))
            line |= {"mean": group["value"].mean(skipna=False), "std": pooled.std()}
            line |= {"ci_low": low, "ci_high": high, "seeds": len(group)}
        lines.append(line | dict(zip(("paper_mean", "paper_std"), paper.get(key, (np.nan, np.nan)))))
    return pd.DataFrame(lines)


def interval(values):
    """95% interval of the mean over the last axis by Student's t: (low, high), NaN for fewer than two."""
    values = np.asarray(values, float)
    n, mean = values.shape[-1], values.mean(axis=-1)
    if n < 2:
        return mean + np.nan, mean + np.nan
    low, high = stats.t.interval(CONFIDENCE, n - 1)
    error = stats.sem(values, axis=-1)
    return mean + low * error, mean + high * error


def paired(first, second):
    """Paired comparison of two Series on what their indices share.

    Returns:
        dict: `pairs`, how many; `difference`, the mean of first - second; `ci_low`, `ci_high`, `p`
        (two-sided paired t test, `scipy.stats.ttest_rel`; from two pairs on) and `p_wilcoxon` (from six
        on). NaN where there are too few pairs; also p where all differences are the same.
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


def pair_tests(table, runs, first, second):
    """Two methods compared: a line per row of the table over its seeds, then all rows together, in two ways.

    Returns:
        DataFrame: `row`, what `paired` gives, and `p_bh`, the p-values of the rows adjusted for their
        number by Benjamini and Hochberg. The last two lines pool all rows: a pair for each row and seed,
        and a pair for each row, of the means over the seeds that both methods have.
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


def best_methods(table, runs, cells):
    """For each row of the table: is a PRL variant, a method with "prl" in its name, the best or near it?

    Returns:
        DataFrame: `row`; `best`, the method with the highest mean; `best_prl`, the same among the PRL
        variants; `difference`, `ci_low`, `ci_high` of best_prl - best over the `pairs` seeds of both;
        `verdict`: "best", "behind" (the interval lies below 0), "within noise", "one seed" or "no shared
        seed" (no interval), "not finite" (no PRL variant is) or "missing".
    """
    lines = []
    for row in table.rows:
        found = cells[(cells["row"] == row.label) & (cells["seeds"] > 0)].set_index("method")["mean"]
        means = found.dropna()
        variants = means[means.index.str.contains("prl")]
        verdict = "not finite" if found.index.str.contains("prl").any() else "missing"
        line = {"row": row.label, "best": None, "best_prl": None, "verdict": verdict, "pairs": 0}
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


def rank_agreement(table, cells):
    """How far our order of a row's cells is the paper's.

    Returns:
        (DataFrame: `row`, `cells` (how many of the row have a mean in both), `tau`, Kendall's tau-b
        between their means; list of (row, first, second): the pairs of `PAIRS` whose order is another
        than the paper's, those left out that are even in the paper).
    """
    lines, turned = [], []
    for row in table.rows:
        both = cells[cells["row"] == row.label].dropna(subset=["mean", "paper_mean"])
        tau = stats.kendalltau(both["mean"], both["paper_mean"]).statistic if len(both) > 1 else np.nan
        lines.append({"row": row.label, "cells": len(both), "tau": tau})
        means = both.set_index("method")[["mean", "paper_mean"]]
        for first, second in PAIRS:
            if first in means.index and second in means.index:
                ours, papers = np.sign(means.loc[first] - means.loc[second])
                if papers and ours != papers:
                    turned.append((row.label, first, second))
    return pd.DataFrame(lines), turned


def _paper_values(table, metric):
    """-> {cell: (mean, std)} of the paper."""
    paper, name = table.paper(), {"accuracy": "accuracy", "r2_score": "r2"}[metric]
    found = {}
    for line in paper.to_dict("records"):
        row = Row(line.get("dataset", table.rows[0].dataset), line["corruption"], line["epsilon"])
        key = (row.dataset, row.label, line["method"], line.get("epsilon_error", 0.0))
        found[key] = (line[f"{name}_mean"], line[f"{name}_std"])
    return found
