"""A `Comparison` as sections of a Markdown report."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from prl_keras import METHODS
from prl_keras.experiments.markdown import NOTHING, markdown_table, number


def sections(found: Any) -> list[str]:
    """The body of the report of a `Comparison`: headings, texts and tables."""
    table, decimals = found.table, found.table.metric.decimals
    not_finite = int(found.runs["value"].isna().sum())
    body = [
        f"A run's number is its {table.metric.in_paper} on clean test data, mean of the last ten epochs. A "
        "cell is the mean over the seeds ± the standard deviation over the last ten epochs of all seeds (as "
        "in the paper; it mixes the two and is no error of the mean, which the 95% intervals give). The best "
        'of a row is bold; "-" is missing; (n=...) marks a cell with fewer seeds than others of its row.',
        f'{not_finite} runs have last epochs that are not finite: their cells are "not finite".'
        if not_finite
        else "",
        "## Ours",
        in_layout(table, found.cells, decimals),
        on_clean_targets(found.cells, decimals),
        "## Ours / paper",
        beside_paper(table, found.cells, decimals),
        f"![{table.picture.removesuffix('.png')}]({table.picture})",
        "## Best and last epoch",
        "The best epoch's value, then the last epoch's; means over the seeds. The best epoch is chosen with "
        "the clean test data, which nobody has in practice: it says what stopping in time could gain.",
        best_and_last(table, found.cells, decimals),
        *memorized(table, found.cells),
    ]
    if len(table.methods) > 1:
        body += [
            "## Is a PRL variant the best?",
            "The difference is that of the best PRL variant to the best method over the seeds that both "
            "have, with its 95% interval by Student's t; within noise: the interval holds 0 (with two seeds "
            "it is wide). Methods without runs in a row, or with one that is not finite, do not count.",
            best_of_rows(found.best, decimals),
            "## Paired tests",
            "Pairs share the seed, which is that of the network, the batches and the corruption. Two-sided "
            "paired t tests; BH: adjusted for the number of rows by Benjamini and Hochberg; Wilcoxon's "
            "signed-rank test from six pairs on. The last two lines take all rows together: a pair for each "
            "row and seed, then a pair for each row, of its means.",
            paired_tests(found.tests, decimals),
        ]
    return [
        *body,
        "## Agreement with the paper",
        "Spearman's rank correlation and Kendall's tau between our means and the paper's within a row: 1 is "
        "the same order, -1 the reverse.",
        order_of_rows(found.agreement, found.turned, has_pairs=len(table.methods) > 1),
        "## Intervals",
        "95% intervals of the mean over the seeds by Student's t.",
        with_intervals(table, found.cells, decimals),
    ]


def in_layout(table: Any, cells: Any, decimals: int) -> str:
    """Our cells in the paper's layout: mean ± std, the best of each row in bold, ties included."""

    def shown(found):
        best, most = found["mean"].max(), found["seeds"].max()
        for (_, cell), rounded in zip(found.iterrows(), found["mean"].round(decimals)):
            if not cell["seeds"]:
                yield NOTHING
                continue
            text = f"{_mean(cell['mean'], decimals)} ± {number(cell['std'], decimals)}"
            text = f"**{text}**" if rounded == round(best, decimals) else text
            yield text if cell["seeds"] == most else f"{text} (n={cell['seeds']})"

    return _by_row(table, cells, shown)


def beside_paper(table: Any, cells: Any, decimals: int) -> str:
    """The paper's layout with "ours / paper" in each cell, means only."""

    def shown(found):
        for ours, paper in zip(found["mean"], found["paper_mean"]):
            yield f"{number(ours, decimals)} / {number(paper, decimals)}"

    return _by_row(table, cells, shown)


def best_and_last(table: Any, cells: Any, decimals: int) -> str:
    """The paper's layout with "best (its epoch) / last" in each cell."""

    def shown(found):
        for best, epoch, final in zip(found["best"], found["best_epoch"], found["final"]):
            at = "" if np.isnan(epoch) else f" ({epoch:.0f})"
            yield f"{number(best, decimals)}{at} / {number(final, decimals)}"

    return _by_row(table, cells, shown)


def memorized(table: Any, cells: Any) -> list[str]:
    """What part of the wrong labels the network predicts at the end; empty if no run measured it."""
    if cells["memorized"].isna().all():
        return []
    text = (
        "The percentage of the wrong training labels that the network predicts at the end, among at most "
        "1,000 of them; means over the seeds."
    )
    shown = _by_row(table, cells, lambda found: (number(value, 1) for value in found["memorized"]))
    return ["## Memorized wrong labels", text, shown]


def _by_row(table, cells, shown):
    """The paper's layout; `shown` gives the texts of a row from its part of `cells`."""
    lines = [[row.label, *shown(cells[cells["row"] == row.label])] for row in table.rows]
    return markdown_table(["row", *_columns(table)], lines)


def on_clean_targets(cells: Any, decimals: int) -> str:
    """A line per data set: the result of plain training on clean targets."""
    return "\n".join(
        f"Standard on clean targets of {cell['dataset']}: {_mean(cell['mean'], decimals)} ± "
        f"{number(cell['std'], decimals)}, 95% interval {_interval(cell, decimals)}, {cell['seeds']} seeds."
        for _, cell in cells.iterrows()
        if cell["row"].endswith("clean") and cell["seeds"]
    )


def with_intervals(table: Any, cells: Any, decimals: int) -> str:
    """A line per cell: mean, standard deviation, 95% interval, number of seeds, the paper's numbers."""
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


def paired_tests(tests_of_pairs: Mapping[tuple[str, str], Any], decimals: int) -> str:
    """The tests of each pair of methods, per row and over all rows."""
    parts = []
    for (first, second), tests in tests_of_pairs.items():
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
        parts.append(f"### {_title(first)} minus {_title(second)}\n\n{markdown_table(header, lines)}")
    return "\n\n".join(parts)


def best_of_rows(found: Any, decimals: int) -> str:
    """A summary, then the best method of each row and how far the best PRL variant is behind it."""
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


def order_of_rows(found: Any, turned: Sequence[tuple[str, str, str]], has_pairs: bool) -> str:
    """The agreement of each row and its mean, and the pairs in another order than in the paper."""
    lines = [
        [line["row"], str(line["cells"]), number(line["rho"], 2), number(line["tau"], 2)]
        for line in found.to_dict("records")
    ]
    lines.append(["mean", "", number(found["rho"].mean(), 2), number(found["tau"].mean(), 2)])
    text = markdown_table(["row", "cells compared", "Spearman's rho", "Kendall's tau"], lines)
    if not has_pairs:
        return text
    texts = [f"\n- {row}: {_title(first)} and {_title(second)}" for row, first, second in turned]
    listed = "\n" + "".join(texts) if texts else " none."
    return f"{text}\n\nPairs in another order than in the paper:{listed}"


def _columns(table):
    """Column titles: the methods, or, if there is one, the errors of the epsilon that it is told."""
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
