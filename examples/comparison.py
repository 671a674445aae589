"""Shared by the examples: runs over methods and seeds, and a table of means and standard deviations."""

import pathlib
import sys
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from absl import app, flags

from examples.results import SMOKE

SEEDS = flags.DEFINE_integer("seeds", 1, "Number of seeds, of data, noise and network.", lower_bound=1)
OUTPUT = flags.DEFINE_string("output", None, "Markdown file for the table, with the command and the setting.")


def compare(
    name: str,
    argv: Sequence[str],
    methods: Sequence[str],
    run: Callable[[str, int], Mapping[str, float]],
    setting: str,
) -> None:
    """Prints the result of each `run(method, seed)`, a dict of column and number, and finally a table.

    Args:
        name: Name of the example's module in examples/.
        argv: The arguments of `main`.
        methods: Names, in the order of the rows.
        run: A function of `(method, seed)`.
        setting: One paragraph for the head of the file of `--output`.
    """
    if len(argv) > 1:
        raise app.UsageError(f"Unknown arguments {argv[1:]}; flags look like --seeds=5.")
    if SMOKE.value:
        methods = [method for method in methods if method in ("plain", "PRL(L)", "PRL(L), unit=element")]
    start = time.time()
    runs: dict[str, list[Mapping[str, float]]] = {method: [] for method in methods}
    for seed in range(SEEDS.value):
        for method in methods:
            runs[method].append(run(method, seed))
            values = ", ".join(f"{column} {value:.3f}" for column, value in runs[method][-1].items())
            print(f"{time.time() - start:4.0f} s  seed {seed}, {method}: {values}", flush=True)
    table = _table(runs)
    print("\n" + table)
    if OUTPUT.value:
        command = " ".join([f"python -m examples.{name}", *sys.argv[1:]])
        spread = f"Mean and standard deviation of {SEEDS.value} seeds, of data, noise and network."
        paragraph = textwrap.fill(f"{setting} {spread}", 110)
        text = f"# {name}\n\n    {command}\n\n{paragraph}\n\n{table}\n"
        pathlib.Path(OUTPUT.value).write_text(text)


def _table(runs):
    columns = list(next(iter(runs.values()))[0])
    lines = ["| method | " + " | ".join(columns) + " |", "|---" * (1 + len(columns)) + "|"]
    for method, results in runs.items():
        values = np.array([[result[column] for column in columns] for result in results])
        spread = values.std(axis=0, ddof=1) if len(values) > 1 else None
        cells = [f"{mean:.3f}" for mean in values.mean(axis=0)]
        if spread is not None:
            cells = [f"{cell} ± {deviation:.3f}" for cell, deviation in zip(cells, spread)]
        lines.append("| " + " | ".join([method, *cells]) + " |")
    return "\n".join(lines)
