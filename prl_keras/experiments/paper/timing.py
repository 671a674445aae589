"""Table 6: seconds per epoch, and their ratio to plain training."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from prl_keras import METHODS
from prl_keras.experiments import markdown
from prl_keras.experiments.paper.comparisons import cell_of


def run_seconds(contents: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """A DataFrame with a line per run: `row`, `method`, `seed`, `seconds`.

    `seconds` is the median over the epochs without the first, in which TensorFlow traces the model. If there
    is only one epoch, it is that one's.
    """
    lines = []
    for content in contents:
        seconds = content["history"]["seconds"]
        _, row, method, _ = cell_of(content["config"])
        seconds = seconds.iloc[1:] if len(seconds) > 1 else seconds
        lines.append((row, method, content["config"].seed, float(seconds.median())))
    return pd.DataFrame(lines, columns=["row", "method", "seed", "seconds"])


def cell_seconds(table: Any, runs: pd.DataFrame) -> pd.DataFrame:
    """Ours beside the paper's, with a line per row and method.

    Columns: `row`, `method`; `seconds`, the median over the seeds, with its range `seconds_low`,
    `seconds_high`; `ratio` to standard with the same seed, with its range; `seeds`; `paper_seconds`,
    `paper_ratio`.
    """
    paper = table.paper().set_index("method")
    lines = []
    for row in table.rows:
        by_seed = runs[runs["row"] == row.label].pivot(index="seed", columns="method", values="seconds")
        by_seed = by_seed.reindex(columns=list(table.methods))
        ratios = by_seed.div(by_seed["standard"], axis=0)
        for method in table.methods:
            line = {"row": row.label, "method": method}
            for name, values in (("seconds", by_seed[method]), ("ratio", ratios[method])):
                line |= {name: values.median(), f"{name}_low": values.min(), f"{name}_high": values.max()}
            line["seeds"] = int(by_seed[method].notna().sum())
            line["paper_seconds"] = paper.at[method, "seconds_per_epoch"]
            line["paper_ratio"] = paper.at[method, "ratio_to_standard"]
            lines.append(line)
    return pd.DataFrame(lines)


def sections(cells: pd.DataFrame) -> list[str]:
    """The body of the report of `cell_seconds`: texts and a table."""
    lines = [
        [
            line["row"],
            METHODS[line["method"]].title,
            _with_range(line, "seconds", 2),
            _with_range(line, "ratio", 2),
            str(line["seeds"]),
            markdown.number(line["paper_seconds"], 2),
            markdown.number(line["paper_ratio"], 2),
        ]
        for line in cells.to_dict("records")
    ]
    header = ["row", "method", "seconds (range)", "ratio (range)", "seeds", "paper seconds", "paper ratio"]
    return [
        "A run's number is the median over its epochs without the first, in which TensorFlow traces the "
        "model. A cell is the median over the seeds with the range; ratios are to Standard of the same seed.",
        "## Ours and the paper's",
        markdown.markdown_table(header, lines),
    ]


def _with_range(line, name, decimals):
    if np.isnan(line[name]):
        return markdown.NOTHING
    low, high = (markdown.number(line[f"{name}_{end}"], decimals) for end in ("low", "high"))
    return f"{markdown.number(line[name], decimals)} ({low} to {high})"
