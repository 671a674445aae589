"""The results of a benchmark as pictures.

In each, `cases` is from `report.case_table`, and `about` a line that says where the numbers come from.
"""

import pathlib
import textwrap
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import matplotlib.ticker

from prl_keras.experiments.paper.figures import COLORS

_PEER_COLOR = "#777777"


def plot_ratios(cases: Any, title: str, about: str, path: pathlib.Path | str) -> None:
    """Draws a line per case as a PNG: its ratio to plain training with quartiles; further left is better."""
    figure, axis, shown, colors = _line_per_case(cases[cases["ratio"].notna()], title)
    heights = range(len(shown))
    axis.hlines(heights, shown["ratio_low"], shown["ratio_high"], colors=colors, linewidth=2)
    axis.scatter(shown["ratio"], heights, s=30, c=colors)
    axis.set_xlim(left=0)
    _finish(figure, "seconds a step, as a ratio to plain training (grey: PyTorch's)", about, path)


def plot_memory(cases: Any, title: str, about: str, path: pathlib.Path | str) -> None:
    """Draws a line per case as a PNG: its peak memory as a ratio to plain training; further left is better.

    A dot is the peak of the process, a ring that of the steps after the first.
    """
    figure, axis, shown, colors = _line_per_case(cases[cases["memory_ratio"].notna()], title)
    heights = range(len(shown))
    axis.scatter(shown["memory_ratio"], heights, s=30, c=colors)
    axis.scatter(shown["later_memory_ratio"], heights, s=70, facecolors="none", edgecolors=colors)
    label = "peak memory, as a ratio to plain training (dots: the process; rings: steps after the first)"
    _finish(figure, label, about, path)


def _line_per_case(cases, title):
    """-> (figure, axis with the cases' names, the cases from the bottom up, their colors)."""
    shown = cases.iloc[::-1]
    figure, axis = plt.subplots(figsize=(9, 1.6 + 0.26 * len(shown)), dpi=90, layout="constrained")
    labels = [f"{line['title']}  |  {line['setting']}" for line in shown.to_dict("records")]
    axis.set_yticks(range(len(shown)), labels, fontsize=8)
    axis.set_ylim(-0.7, len(shown) - 0.3)
    axis.axvline(1, color="black", linewidth=0.8)
    axis.grid(alpha=0.3, linewidth=0.5, axis="x")
    axis.set_title(title, fontsize=10)
    return figure, axis, shown, [_color(line) for line in shown.to_dict("records")]


def plot_growth(
    cases: Any, title: str, about: str, path: pathlib.Path | str, column: str, label: str
) -> None:
    """Draws seconds per step and their ratio to plain training over the varied quantity, as a PNG.

    The varied quantity is in `column`; `label` is its name at the x axis.
    """
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.6), dpi=90, layout="constrained")
    keys = [f"{line['title']}, {line['case'].norm} norm" for line in cases.to_dict("records")]
    if len({case.norm for case in cases["case"]}) == 1:
        keys = list(cases["title"])
    for key, lines in cases.groupby(keys, sort=False):
        first = lines.iloc[0]
        style = {"color": _color(first), "linestyle": "--" if first["case"].recompute else "-", "marker": "o"}
        style["fillstyle"] = "none" if first["case"].norm == "group" else "full"
        axes[0].plot(lines[column], lines["seconds"], label=key, **style)
        axes[1].plot(lines[column], lines["ratio"], **style)
        axes[1].fill_between(
            lines[column], lines["ratio_low"], lines["ratio_high"], color=_color(first), alpha=0.13
        )
    axes[0].set(xscale="log", yscale="log", xlabel=label, ylabel="seconds a step")
    axes[1].set(xscale="log", xlabel=label, ylabel="ratio to plain training")
    axes[1].set_ylim(bottom=0)
    for axis in axes:
        values = sorted(set(cases[column].dropna()))
        axis.set_xticks(values, [f"{value:,.0f}" for value in values], fontsize=7)
        axis.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
        axis.grid(alpha=0.3, linewidth=0.5)
    axes[0].yaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 2, 5)))
    axes[0].yaxis.set_minor_locator(matplotlib.ticker.NullLocator())
    axes[0].yaxis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
    axes[0].legend(fontsize=8, frameon=False)
    figure.suptitle(title, fontsize=10)
    _finish(figure, "", about, path)


def _color(line):
    case = line["case"]
    return COLORS[case.method] if case.implementation == "prl_keras" else _PEER_COLOR


def _finish(figure, label, about, path):
    figure.supxlabel("\n\n".join(filter(None, [label, textwrap.fill(about, 130)])), fontsize=8)
    figure.savefig(path, format="png", metadata={"Software": None})
    plt.close(figure)
