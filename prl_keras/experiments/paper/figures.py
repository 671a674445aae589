"""The paper's figures 2 and 3, and table 3 as a picture: small panels, one per row of a table.

In each, `about` is a line that says where the numbers come from.
"""

import itertools
import pathlib
import textwrap
from collections.abc import Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import matplotlib.ticker
import numpy as np
import pandas as pd

from prl_keras import METHODS
from prl_keras.experiments.paper.comparisons import Comparison, cell_of, interval
from prl_keras.experiments.runs.training import LAST_EPOCHS

_PALETTE = (
    "black", "#8c8c8c", "#a6611a", "#b8a000", "#e377c2", "#c7b299",  # plain training and other losses
    "#ff7f0e", "#9467bd", "#2ca02c", "#1f77b4", "#17becf", "#d62728",  # score and rule, from spl on
)  # fmt: skip
COLORS = dict(zip(METHODS, itertools.cycle(_PALETTE)))


def plot(found: Comparison, contents: Sequence[dict[str, Any]], about: str, path: pathlib.Path | str) -> None:
    """Draws a `Comparison` as a PNG: table 3 over epsilon, the others over the epochs."""
    if len(found.table.epsilon_errors) > 1:
        plot_sensitivity(found.table, found.cells, about, path)
    else:
        plot_epochs(found.table, contents, about, path)


def plot_epochs(table: Any, contents: Sequence[dict[str, Any]], about: str, path: pathlib.Path | str) -> None:
    """Draws the test metric over the epochs as a PNG, a panel per row of the table, a curve per method.

    A curve is the mean over the seeds. Its band is the 95% interval by Student's t. With two seeds the band
    is their range, since the interval is 13 times as wide. The y axis begins at -0.2 for R2 and at 0 for
    accuracy; a method whose mean over the last ten epochs lies below that is named instead of drawn. Data
    sets without any run are left out.
    """
    metric, unit, lowest = table.metric, table.metric.unit, table.metric.lowest
    label = f"{metric.title} in percent" if unit == 100 else metric.title
    histories: dict[tuple[str, str], dict[int, pd.Series]] = {}
    for content in contents:
        _, row, method, _ = cell_of(content["config"])
        history = content["history"].set_index("epoch")[f"test_{metric.name}"]
        histories.setdefault((row, method), {})[content["config"].seed] = unit * history
    rows = _rows_of_data_with_runs(table, {row for row, _ in histories})
    figure, axes = _panels(rows)
    for row, axis in zip(rows, axes.flat):
        curves = {
            method: pd.DataFrame(histories[row.label, method])
            for method in table.methods
            if (row.label, method) in histories
        }
        means = {name: values.mean(axis=1, skipna=False) for name, values in curves.items()}
        last = {name: mean.tail(LAST_EPOCHS).mean(skipna=False) for name, mean in means.items()}
        shown = [name for name in means if last[name] >= lowest]
        for name in shown:
            style = {"color": COLORS[name], "linewidth": 1.6 if "prl" in name else 1.0}
            axis.plot(means[name].index, means[name], **style)
            low, high = _band(curves[name])
            axis.fill_between(means[name].index, low, high, color=COLORS[name], alpha=0.13, linewidth=0)
        # The limits follow the curves: the bands are wide with few seeds.
        top = max((means[name].max() for name in shown), default=lowest + unit)
        axis.set_ylim(lowest, top + 0.05 * (top - lowest))
        axis.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(5, integer=True))
        if not means:
            axis.set(xticks=[], yticks=[])
        _note(axis, means, last, lowest)
    lines = [plt.Line2D([], [], color=COLORS[name], linewidth=2) for name in table.methods]
    titles = [METHODS[name].title for name in table.methods]
    bands = "95% intervals of the mean by Student's t, with two seeds from one to the other"
    caption = f"Mean over the seeds; bands: {bands}. {about}"
    _finish(figure, axes, lines, titles, ("epoch", label), caption, path)


def plot_sensitivity(table: Any, cells: pd.DataFrame, about: str, path: pathlib.Path | str) -> None:
    """Draws the `cell_values` of table 3 as a PNG: accuracy over the error of the epsilon that is told."""
    rows = _rows_of_data_with_runs(table, set(cells.loc[cells["seeds"] > 0, "row"]))
    figure, axes = _panels(rows)
    color = COLORS[table.methods[0]]
    for row, axis in zip(rows, axes.flat):
        found = cells[cells["row"] == row.label]
        error = found["epsilon_error"]
        axis.fill_between(error, found["ci_low"], found["ci_high"], color=color, alpha=0.15, linewidth=0)
        axis.plot(error, found["mean"], color=color, marker="o", markersize=4)
        axis.plot(error, found["paper_mean"], color="#777777", linestyle="--", marker="s", markersize=4)
        axis.set_xticks(table.epsilon_errors)
    lines = [
        plt.Line2D([], [], color=color, marker="o"),
        plt.Line2D([], [], color="#777777", linestyle="--", marker="s"),
    ]
    titles = [f"{METHODS[table.methods[0]].title}, ours with 95% interval", "paper"]
    what = ("added to the true epsilon", "test accuracy in percent")
    _finish(figure, axes, lines, titles, what, about, path)


def _band(curves):
    """(low, high) of the curves, one column per seed."""
    if curves.shape[1] == 2:
        return curves.min(axis=1, skipna=False), curves.max(axis=1, skipna=False)
    return interval(curves)


def _rows_of_data_with_runs(table, labels):
    datasets = {row.dataset for row in table.rows if row.label in labels}
    return [row for row in table.rows if row.dataset in datasets]


def _panels(rows):
    """A row of panels for each data set and corruption."""
    groups = itertools.groupby(rows, lambda row: (row.dataset, row.corruption))
    columns = max(3, *(len(list(group)) for _, group in groups))
    count = -(-len(rows) // columns)
    figure, axes = plt.subplots(
        count,
        columns,
        figsize=(2.6 * columns, 1.9 * count + 1.1),
        dpi=90,
        squeeze=False,
        layout="constrained",
    )
    for row, axis in itertools.zip_longest(rows, axes.flat):
        if row is None:
            axis.set_axis_off()
            continue
        axis.set_title(row.label, fontsize=9)
        axis.grid(alpha=0.3, linewidth=0.5)
        axis.tick_params(labelsize=7)
    return figure, axes


def _note(axis, means, last, lowest):
    """Names the methods that the panel does not show."""
    below = [METHODS[name].title for name in means if last[name] < lowest]
    broken = [METHODS[name].title for name in means if np.isnan(last[name])]
    notes = [f"below: {', '.join(below)}"] * bool(below)
    notes += [f"not finite: {', '.join(broken)}"] * bool(broken)
    text = "\n".join(textwrap.fill(note, 36) for note in notes) if means else "no runs"
    box = {"facecolor": "white", "alpha": 0.7, "linewidth": 0, "pad": 1}
    axis.text(0.03, 0.03, text, transform=axis.transAxes, fontsize=7, color="#444444", bbox=box)


def _finish(figure, axes, lines, titles, what, caption, path):
    most = 2 * axes.shape[1]
    columns = -(-len(titles) // -(-len(titles) // most))
    figure.legend(lines, titles, loc="outside upper center", ncols=columns, fontsize=9, frameon=False)
    figure.supxlabel(f"{what[0]}\n\n{textwrap.fill(caption, 35 * axes.shape[1])}", fontsize=8)
    figure.supylabel(what[1], fontsize=9)
    figure.canvas.draw()
    pixels = np.asarray(figure.canvas.buffer_rgba())[..., :3]
    plt.close(figure)
    # 52 shades instead of 256 halve the file. Without matplotlib's version only the pixels set the bytes.
    pixels = (np.round(pixels / 5) * 5).astype(np.uint8)
    options = {"metadata": {"Software": None}, "pil_kwargs": {"optimize": True}}
    plt.imsave(path, pixels, format="png", **options)
