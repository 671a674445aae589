"""Made-up runs, and what a report says in its tables."""

import dataclasses

import numpy as np
import pandas as pd

from prl_keras import files
from prl_keras.experiments.paper.report import report
from prl_keras.experiments.paper.tables import TABLES
from prl_keras.experiments.runs import results

ROW = "CF10-pf-45"
# Accuracy of the last ten epochs, the same in each, by method and seed.
LEVELS = {
    "standard": (0.40, 0.44), "spl": (0.50, 0.58, 0.51), "prl_l": (0.60, 0.61, 0.65),
    "co_teaching": (0.70, 0.72, 0.73), "co_prl_l": (0.69, 0.71, 0.74),
}  # fmt: skip


def write_run(
    directory,
    config,
    level,
    *,
    scale="cpu",
    spread=0.01,
    seconds=2.0,
    metric="accuracy",
    last=None,
    memorized=None,
):
    """A made-up result: -1 at first, in the last ten epochs `level` plus and minus `spread` in turn."""
    values = level + spread * (-1.0) ** np.arange(config.epochs)
    values[:-10] = -1.0
    if last is not None:
        values[-1] = last
    table = pd.DataFrame({"epoch": np.arange(1, config.epochs + 1), "seconds": seconds})
    table = table.assign(**{f"test_{metric}": values})
    if memorized is not None:
        table["memorized"] = memorized
    return write_folder(directory, config, table, scale=scale, source="made up")


def write_folder(directory, config, history, **about):
    """The folder of a finished run, as `run` leaves it."""
    path = results.path_of(directory, config)
    path.mkdir(parents=True, exist_ok=True)
    files.write_json(path / "config.json", {**dataclasses.asdict(config), **about})
    history.to_csv(path / "history.csv", index=False)
    files.write_json(path / "result.json", {"epochs": config.epochs})
    return path


def row_configs(number, row=ROW, seeds=(0,)):
    """{(method, epsilon error, seed): config} of one row of a table."""
    table = TABLES[number]
    part = dataclasses.replace(table, rows=tuple(r for r in table.rows if r.label == row), clean_data=())
    assert len(part.rows) == 1
    return {
        (config.method, round(config.told_epsilon - config.epsilon, 6), config.seed): config
        for config in part.configs("cpu", seeds)
    }


def page_of(number, runs, folder):
    """The page of a table, which is written into the folder."""
    report(TABLES[number], "cpu", runs, folder)
    return (folder / f"table{number}.md").read_text()


def lines_of(text, section):
    """{first cell: the other cells} of the table below a heading."""
    part = text.split(f"{section}\n", 1)[1]
    rows = part[part.index("|") :].split("\n\n", 1)[0].splitlines()
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    return {row[0]: dict(zip(cells[0][1:], row[1:], strict=True)) for row in cells[2:]}


def csv_line(directory, method, row=ROW, number=2, error=0.0):
    frame = pd.read_csv(directory / f"table{number}.csv")
    found = frame[(frame.row == row) & (frame.method == method) & (frame.epsilon_error == error)]
    assert len(found) == 1
    return found.iloc[0]


def write_levels(directory, levels=None, row=ROW):
    """Runs of one row of table 2, by default those of `LEVELS`."""
    levels = levels or LEVELS
    found = row_configs(2, row, range(max(map(len, levels.values()))))
    for method, values in levels.items():
        for seed, level in enumerate(values):
            write_run(directory, found[method, 0, seed], level)
