"""What a search found: tables, and pictures of metrics against epsilon, from its executions' files.

In all functions `table` is that of `executions`.
"""

import math
import pathlib
from typing import Any

import keras_tuner
import matplotlib.figure  # not pyplot, whose windows and backend are the caller's
import pandas as pd

from prl_keras import files
from prl_keras.tuning import objectives
from prl_keras.tuning.trials import read_record

SEARCHED = ("method", "epsilon", "ramp_epochs", "learning_rate", "batch_size", "epochs")


def executions(output_dir: pathlib.Path | str) -> pd.DataFrame:
    """A DataFrame with a row per ended execution of a search: the searched values, metrics, seconds, failure.

    Raises:
        ValueError: if no execution has ended there.
    """
    paths = sorted(pathlib.Path(output_dir).glob("trial_*/execution_*.json"))
    if not paths:
        raise ValueError(f"{output_dir} holds no execution that has ended.")
    records = [read_record(path) for path in paths]
    metrics = [record.pop("metrics", {}) for record in records]
    return pd.DataFrame([{**record, **found} for record, found in zip(records, metrics)])


def trials(table: pd.DataFrame, objective: keras_tuner.Objective) -> pd.DataFrame:
    """A DataFrame with a row per trial, the best first, failed ones last.

    Returns:
        Columns: trial, the searched values, the means of the metrics over the executions, `spread`
        (standard deviation of the objective), executions, seconds (their sum), failure.
    """
    if "failure" not in table:
        table = table.assign(failure=None)
    metrics = [name for name in table if name.startswith(("val_", "test_"))]
    columns = {name: (name, "mean") for name in metrics}
    columns |= {name: (name, "first") for name in (*SEARCHED, "failure") if name in table}
    if objective.name in table:
        columns["spread"] = (objective.name, "std")
    grouped = table.groupby("trial").agg(
        **columns, executions=("execution", "count"), seconds=("seconds", "sum")
    )
    grouped.loc[grouped["failure"].notna(), metrics] = float("nan")
    ascending = objective.direction == "min"
    if objective.name in grouped:
        grouped = grouped.sort_values(objective.name, ascending=ascending, na_position="last", kind="stable")
    order = [
        name
        for name in (*SEARCHED, *metrics, "spread", "executions", "seconds", "failure")
        if name in grouped
    ]
    return grouped[order].reset_index()


def chosen(table: pd.DataFrame, objective: keras_tuner.Objective) -> pd.Series | None:
    """The trial to go on with: the largest epsilon among those within one standard error of the best.

    This is the one standard error rule of Breiman et al. (1984, "Classification and regression trees",
    section 3.4.3): among trials that the validation data cannot tell apart, take the safest. A larger
    epsilon is safer: too large costs little, too small a lot (the paper's table 3).

    Returns:
        A row of `trials`, with `standard_error`: that of the best trial's objective over its executions. A
        single execution gives 0, and the best trial is chosen. None if all failed.
    """
    of_trials = trials(table, objective)
    if objective.name not in of_trials or of_trials[objective.name].isna().all():
        return None
    best = of_trials.iloc[0]
    error = best["spread"] / math.sqrt(best["executions"]) if best["executions"] > 1 else 0.0
    is_close = (of_trials[objective.name] - best[objective.name]).abs() <= error
    row = of_trials[is_close].sort_values("epsilon", ascending=False, kind="stable").iloc[0]
    return pd.concat([row, pd.Series({"standard_error": error})])


def choices(table: pd.DataFrame) -> pd.DataFrame:
    """The trial that each objective would have `chosen`; the clean test metrics are for comparison.

    Returns:
        A DataFrame with a row per metric whose better direction is known: objective, the epsilon of the
        trial, and its test metrics.
    """
    shown = [name for name in table if name.startswith("test_") and not name.endswith("loss")]
    rows = []
    for name in table:
        if not name.startswith(("val_", "test_")):
            continue
        try:
            row = chosen(table, keras_tuner.Objective(name, objectives.direction_of(name)))
        except ValueError:
            continue
        if row is not None:
            rows.append({"objective": name, **row[["epsilon", *shown]]})
    return pd.DataFrame(rows)


def plot_epsilon(
    table: pd.DataFrame,
    objective: keras_tuner.Objective,
    path: pathlib.Path | str,
    true_epsilon: float | None = None,
) -> None:
    """Plots each reported metric against the trials' epsilon, one panel each, as a PNG.

    A dot is an execution, the line joins the trials' means, and a ring marks the `chosen` trial. With test
    data the panels include `test_...`, the paper's table 3. `true_epsilon` is drawn as a vertical line.
    """
    best: Any = chosen(table, objective)
    metrics = [objective.name]
    metrics += [name for name in table if name.startswith(("val_", "test_")) and _is_shown(name, objective)]
    figure = matplotlib.figure.Figure(figsize=(4.2 * len(metrics), 3.4), layout="constrained")
    axes = figure.subplots(1, len(metrics), squeeze=False)
    for axis, metric in zip(axes.flat, metrics):
        for method, part in table.dropna(subset=[metric]).groupby("method"):
            mean = part.groupby("trial").agg(epsilon=("epsilon", "first"), value=(metric, "mean"))
            mean = mean.sort_values("epsilon")
            (line,) = axis.plot(mean["epsilon"], mean["value"], marker="_", markersize=9, label=method)
            axis.plot(part["epsilon"], part[metric], ".", color=line.get_color(), alpha=0.5)
        axis.plot(best["epsilon"], best[metric], "o", markersize=13, fillstyle="none", color="black")
        if true_epsilon is not None:
            axis.axvline(true_epsilon, color="#777777", linestyle="--", linewidth=1)
        axis.set(xlabel="epsilon that the trial was told", title=metric)
        axis.grid(alpha=0.3)
    axes.flat[0].legend(fontsize=8)
    note = "dots: executions; ring: the trial chosen by " + objective.name
    figure.supxlabel(note + "; dashed: the true epsilon" * (true_epsilon is not None), fontsize=8)
    with files.replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def in_markdown(table: pd.DataFrame) -> str:
    """The table of `trials` as Markdown, with messages shortened."""
    shown = table.dropna(axis=1, how="all").copy()
    if "failure" in shown:
        shown["failure"] = shown["failure"].fillna("").str.slice(0, 60)
    return shown.to_markdown(index=False, floatfmt=".4g")


def _is_shown(metric, objective):
    is_loss = metric.endswith("loss")
    return metric != objective.name and (not is_loss or metric == "val_trimmed_loss") and "_all" not in metric
