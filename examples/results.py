"""Shared by the examples: --smoke, and the picture and the table that an example leaves in its folder."""

import csv
import pathlib
from collections.abc import Mapping, Sequence

import matplotlib

matplotlib.use("Agg")
from absl import app, flags
from matplotlib.figure import Figure

from prl_keras import files

SMOKE = flags.DEFINE_bool("smoke", False, "Two methods and less work: a try that says little.")
_OUTPUT_DIR = flags.DEFINE_string("output_dir", None, "Folder for the picture and the table; runs/EXAMPLE.")


def make_folder(name: str, argv: Sequence[str]) -> pathlib.Path:
    """The folder of this example's results; an argument that is no flag is refused."""
    if len(argv) > 1:
        raise app.UsageError(f"Unknown arguments {argv[1:]}; flags look like --smoke.")
    folder = pathlib.Path(_OUTPUT_DIR.value or f"runs/{name}")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def write_table(folder: pathlib.Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Prints the rows as Markdown and writes them to results.csv, with the same digits."""
    lines = [[_text(value) for value in row.values()] for row in rows]
    print("\n| " + " | ".join(rows[0]) + " |\n" + "|---" * len(rows[0]) + "|")
    for line in lines:
        print("| " + " | ".join(line) + " |")
    print(f"\nThe picture and the table are in {folder}.")
    with files.replacing(folder / "results.csv") as temporary, temporary.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([list(rows[0]), *lines])


def write_picture(folder: pathlib.Path, name: str, figure: Figure) -> None:
    """Writes the figure as NAME.png, the same bytes for the same pixels."""
    with files.replacing(folder / f"{name}.png") as temporary:
        figure.savefig(temporary, format="png", dpi=90, metadata={"Software": None})


def _text(value):
    return f"{value:.3f}" if isinstance(value, float) else str(value)
