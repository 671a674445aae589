"""The numbers of `comparisons` as sections of a Markdown report. Each function gives a string."""

import numpy as np
import pandas as pd

from prl_keras import METHODS
from prl_keras.experiments import comparisons

NOTHING = "-"


def markdown_table(header, lines):
    """A Markdown table of strings: its first column to the left, the others to the right."""
    frame = pd.DataFrame(lines, columns=header)
    return frame.to_markdown(
        index=False, disable_numparse=True, colalign=["left"] + ["right"] * (len(header) - 1)
    )


def number(value, decimals):
    """With so many decimals; "-" for None and NaN, and never "-0.00"."""
    if value is None or np.isnan(value):
        return NOTHING
    return f"{round(float(value), decimals) + 0.0:.{decimals}f}"


def in_layout(table, cells, decimals):
    """Ours as the paper has it: mean ± std, the best of each row in bold, ties included."""
    lines = []
    for row in table.rows:
        found = cells[cells["row"] == row.label]
        shown, best, most = found["mean"].round(decimals), found["mean"].max(), found["seeds"].max()
        line = [row.label]
        for (_, cell), rounded in zip(found.iterrows(), shown):
            if not cell["seeds"]:
                line.append(NOTHING)
                continue
            text = f"{_mean(cell['mean'], decimals)} ± {number(cell['std'], decimals)}"
            text = f"**{text}**" if rounded == round(best, decimals) else text
            line.append(text if cell["seeds"] == most else f"{text} (n={cell['seeds']})")
        lines.append(line)
    return markdown_table(["row", *_columns(table)], lines)


def beside_paper(table, cells, decimals):
    """The layout of the paper, each cell "ours / paper", means alone."""
    lines = []
    for row in table.rows:
        found = cells[cells["row"] == row.label]
        pairs = zip(found["mean"], found["paper_mean"])
        lines.append([row.label, *(f"{number(a, decimals)} / {number(b, decimals)}" for a, b in pairs)])
    return markdown_table(["row", *_columns(table)], lines)


def on_clean_targets(cells, decimals):
    """A line per data set: plain training on clean targets, what is to be had without corruption."""
    return "\n".join(
        f"Standard on clean targets of {cell['dataset']}: {_mean(cell['mean'], decimals)} ± "
        f"{number(cell['std'], decimals)}, 95% interval {_interval(cell, decimals)}, {cell['seeds']} seeds."
        for _, cell in cells.iterrows()
        if cell["row"].endswith("clean") and cell["seeds"]
    )


def with_intervals(table, cells, decimals):
    """A line per cell: mean, standard deviation, 95% interval, how many seeds, the paper's numbers."""
    title = dict(zip([(m, e) for m in table.methods for e in table.epsilon_errors], _columns(table)))
    lines = [
        [
            cell["row"],
            title.get((cell["method"], cell["epsilon_error"]), METHODS[cell["method"]].title),
            _mean(cell["mean"], decimals) if cell["seeds"] else NOTHING,
            number(cell["std"], decimals),
            _interval(cell, decimals),
            str(cell["seeds"]),
            NOTHING
            if np.isnan(cell["paper_mean"])
            else f"{number(cell['paper_mean'], decimals)} ± {number(cell['paper_std'], decimals)}",
        ]
        for _, cell in cells.iterrows()
    ]
    told = "method" if len(table.epsilon_errors) == 1 else "told epsilon"
    return markdown_table(["row", told, "mean", "std", "95% interval", "seeds", "paper"], lines)


def paired_tests(table, runs, decimals):
    """For each pair of `comparisons.PAIRS` that the table has: its tests, row by row and together."""
    sections = []
    for first, second in comparisons.PAIRS:
        if first not in table.methods or second not in table.methods:
            continue
        tests = comparisons.pair_tests(table, runs, first, second)
        lines = [
            [
                line["row"],
                str(line["pairs"]),
                number(line["difference"], decimals),
                _interval(line, decimals),
                _p(line["p"]),
                _p(line["p_bh"]),
                _p(line["p_wilcoxon"]),
            ]
            for line in tests.to_dict("records")
        ]
        header = ["row", "pairs", "difference", "95% interval", "p (t)", "p (t, BH)", "p (Wilcoxon)"]
        sections.append(f"### {_title(first)} minus {_title(second)}\n\n{markdown_table(header, lines)}")
    return "\n\n".join(sections)


def best_methods(table, runs, cells, decimals):
    """Which method is best in each row, and how far behind it the best PRL variant is; first a summary."""
    found = comparisons.best_methods(table, runs, cells)
    counts = found["verdict"].value_counts()
    words = {
        "best": "is the best in", "within noise": "within noise of the best in", "behind": "behind it in",
        "one seed": "not the best and not to be told from noise, with one seed, in",
        "no shared seed": "not the best, with no seed that both have, in",
        "not finite": "not finite in", "missing": "missing in",
    }  # fmt: skip
    summary = ", ".join(f"{words[name]} {counts[name]}" for name in words if name in counts)
    lines = [
        [
            line["row"],
            _title(line["best"]),
            _title(line["best_prl"]),
            number(line["difference"], decimals),
            _interval(line, decimals),
            str(line["pairs"] or NOTHING),
            line["verdict"],
        ]
        for line in found.to_dict("records")
    ]
    header = ["row", "best", "best PRL variant", "difference", "95% interval", "pairs", "the PRL variant is"]
    return f"Of {len(found)} rows a PRL variant {summary}.\n\n{markdown_table(header, lines)}"


def rank_agreement(table, cells):
    """Kendall's tau of each row, and the pairs whose order is not the paper's."""
    found, turned = comparisons.rank_agreement(table, cells)
    lines = [[line["row"], str(line["cells"]), number(line["tau"], 2)] for line in found.to_dict("records")]
    text = markdown_table(["row", "cells compared", "Kendall's tau"], lines)
    if len(table.methods) == 1:
        return text
    texts = [f"- {row}: {_title(first)} and {_title(second)}" for row, first, second in turned]
    return f"{text}\n\nPairs in another order than in the paper:{_listed(texts)}"


def _listed(texts):
    return "\n\n" + "\n".join(texts) if texts else " none."


def _columns(table):
    """Titles of the columns: the methods, or with one method what is added to the epsilon it is told."""
    if len(table.methods) > 1:
        return [METHODS[name].title for name in table.methods]
    return [f"e {'-+'[error > 0]} {abs(error):g}" if error else "e" for error in table.epsilon_errors]


def _title(method):
    return NOTHING if not isinstance(method, str) else METHODS[method].title


def _mean(value, decimals):
    return "not finite" if np.isnan(value) else number(value, decimals)


def _interval(line, decimals):
    if np.isnan(line["ci_low"]):
        return NOTHING
    return f"{number(line['ci_low'], decimals)} to {number(line['ci_high'], decimals)}"


def _p(value):
    return NOTHING if np.isnan(value) else f"{value:.2g}"
