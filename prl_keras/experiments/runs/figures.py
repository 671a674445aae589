"""Pictures of training curves, as PNGs. A history is a DataFrame with a row per epoch."""

import pathlib
from collections.abc import Mapping
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from prl_keras.experiments.data.load import DATASETS
from prl_keras.experiments.runs.metrics import METRICS, Metric

_SELECTION_TITLES = {
    "kept_clean": "clean among the kept",
    "drop_precision": "corrupted among the dropped",
    "drop_recall": "dropped among the corrupted",
}


def plot_run(table: Any, config: Any, path: pathlib.Path | str) -> None:
    """Plots the test metric of a run's history over the epochs, and beside it how clean the kept set is."""
    selection = [name for name in _SELECTION_TITLES if name in table and table[name].notna().any()]
    figure, axes = plt.subplots(
        1, 1 + bool(selection), figsize=(5 + 5 * bool(selection), 3.6), squeeze=False, layout="constrained"
    )
    metric = METRICS[DATASETS[config.dataset].task]
    axes[0, 0].plot(table["epoch"], table[f"test_{metric.name}"], color="tab:blue")
    _label(axes[0, 0], metric.title)
    for name in selection:
        axes[0, 1].plot(table["epoch"], table[name], label=_SELECTION_TITLES[name])
        axes[0, 1].legend()
    if selection:
        _label(axes[0, 1], "share")
        axes[0, 1].set_ylim(-0.03, 1.03)
    figure.suptitle(f"{config.method} on {config.dataset}, {config.corruption} {config.epsilon:.0%}")
    figure.savefig(path, format="png", dpi=150)
    plt.close(figure)


def plot_methods(tables: Mapping[str, Any], metric: Metric, title: str, path: pathlib.Path | str) -> None:
    """Plots the test metric over the epochs; `tables` maps the name in the legend to a run's history."""
    figure, axis = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for name, table in tables.items():
        axis.plot(table["epoch"], table[f"test_{metric.name}"], label=name, linewidth=2)
    _label(axis, metric.title)
    axis.set_title(title)
    axis.legend(loc="lower right")
    figure.savefig(path, format="png", dpi=150)
    plt.close(figure)


def _label(axis, what):
    axis.set_xlabel("epoch")
    axis.set_ylabel(what)
    axis.grid(alpha=0.3)
