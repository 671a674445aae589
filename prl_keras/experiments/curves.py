"""Pictures of training curves."""

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

_METRIC_TITLES = {"accuracy": "test accuracy", "r2_score": "test R2"}
_SELECTION_TITLES = {
    "kept_clean": "clean among the kept",
    "drop_precision": "corrupted among the dropped",
    "drop_recall": "dropped among the corrupted",
}


def plot_run(table, result, config, path):
    """Test metric over the epochs, and beside it how clean the kept set is, as a PNG.

    Args:
        table: The run's history, a row per epoch.
        result: What `training.summarize` made of it.
        config: The `RunConfig`.
        path: Where to.
    """
    selection = [name for name in _SELECTION_TITLES if name in table and table[name].notna().any()]
    figure, axes = plt.subplots(
        1, 1 + bool(selection), figsize=(5 + 5 * bool(selection), 3.6), squeeze=False, layout="constrained"
    )
    metric = result["test_metric"]
    axes[0, 0].plot(table["epoch"], table[f"test_{metric}"], color="tab:blue")
    _label(axes[0, 0], _METRIC_TITLES[metric])
    for name in selection:
        axes[0, 1].plot(table["epoch"], table[name], label=_SELECTION_TITLES[name])
        axes[0, 1].legend()
    if selection:
        _label(axes[0, 1], "share")
        axes[0, 1].set_ylim(-0.03, 1.03)
    figure.suptitle(f"{config.method} on {config.dataset}, {config.corruption} {config.epsilon:.0%}")
    figure.savefig(path, format="png", dpi=150)
    plt.close(figure)


def plot_methods(tables, metric, title, path):
    """Test metric over the epochs, one curve for each method, as a PNG.

    Args:
        tables: Mapping from the name in the legend to the history of a run.
        metric: "accuracy" or "r2_score".
        title: Of the picture.
        path: Where to.
    """
    figure, axis = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for name, table in tables.items():
        axis.plot(table["epoch"], table[f"test_{metric}"], label=name, linewidth=2)
    _label(axis, _METRIC_TITLES[metric])
    axis.set_title(title)
    axis.legend(loc="lower right")
    figure.savefig(path, format="png", dpi=150)
    plt.close(figure)


def _label(axis, what):
    axis.set_xlabel("epoch")
    axis.set_ylabel(what)
    axis.grid(alpha=0.3)
