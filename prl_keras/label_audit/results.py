"""What an audit writes: the report and the list of labels."""

import pathlib
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from prl_keras import files
from prl_keras.auditing.estimate import estimate_from
from prl_keras.auditing.predictions import predict_beside
from prl_keras.auditing.record import SelectionRecord
from prl_keras.auditing.table import table_of
from prl_keras.epsilon.intervals import EpsilonEstimate
from prl_keras.label_audit.examples import Examples
from prl_keras.reports.report import doubts_on, report_examples

_COLUMNS = 12  # of a CSV file that the report shows


class Found(NamedTuple):
    """The table of `prl_keras.audit`, and how many labels are wrong; None if the user said it."""

    table: Any
    estimate: EpsilonEstimate | None


def look(model: Any, record: SelectionRecord, examples: Examples, epsilon: float | None) -> Found:
    """Audits the examples with the trained model; `epsilon` is the share to flag, None to estimate it."""
    found = predict_beside(model, (examples.inputs, examples.targets))
    estimate = None
    if epsilon is None:
        estimate = estimate_from(found)
        epsilon = estimate.estimate
    table = table_of(found, record, epsilon)
    if not examples.class_names:
        mean, deviation = examples.scale
        for name in ("given_0", "predicted_0"):
            table[name] = mean + deviation * table[name].astype(float)
    return Found(table, estimate)


def write_labels(path: pathlib.Path, found: Found, examples: Examples) -> None:
    """Writes all rows of the data in their order, with the columns of `prl_keras.audit` that count most.

    `corrected` is the predicted label where the given one is flagged, and the given one elsewhere. Rows that
    were left out are not flagged, and their other cells are empty.
    """
    table, is_classes = found.table, bool(examples.class_names)
    if is_classes:
        predicted = np.array(examples.class_names, object)[table["predicted"].to_numpy()]
    else:
        predicted = np.array([f"{value:.6g}" for value in table["predicted_0"]], object)
    columns = {
        "given": examples.given,
        "predicted": predicted,
        "corrected": np.where(table["is_flagged"], predicted, examples.given),
        "is_flagged": table["is_flagged"].to_numpy(),
        "rank": table["rank"].astype("Int64").array,
        "score": table["score"].round(6).to_numpy(),
    }
    if is_classes:
        likely = table.filter(regex=r"^probability_\d+$").to_numpy()
        columns["given_probability"] = table["given_probability"].round(6).to_numpy()
        columns["predicted_probability"] = likely.max(axis=1).round(6)
    frame = pd.DataFrame(columns, index=examples.ids).reindex(examples.all_ids or examples.ids)
    frame["is_flagged"] = frame["is_flagged"].eq(True)
    with files.replacing(path) as temporary:
        frame.to_csv(temporary, index_label=examples.id_name)


def write_report(
    path: pathlib.Path, found: Found, examples: Examples, epochs: int, epsilon: float | None
) -> None:
    """Writes the HTML page."""
    told = "" if epsilon is None else f" told that {epsilon:.0%} are wrong,"
    is_image = examples.inputs.ndim == 4
    what = "labels" if examples.class_names else "numbers"
    about = f"{examples.source}. Ranked by Co-PRL(L),{told} trained for {epochs} epochs. "
    if examples.id_name == "row":
        about += "Rows are numbered as in a spreadsheet: the header is row 1. "
    about += "All labels are in labels.csv. A suggestion is a guess: look before you change a label."
    report_examples(
        found.table,
        path,
        found.estimate,
        inputs=examples.inputs if is_image else None,
        class_names=examples.class_names or None,
        ids=examples.ids,
        id_name=examples.id_name,
        cells=None if examples.cells is None else examples.cells.iloc[:, :_COLUMNS],
        networks=2,
        title=f"Which {what} of {examples.source.split(':')[0]} are wrong?",
        about=about,
        further=[("What was left out, or needs a look", " ".join(examples.notes))] if examples.notes else [],
        doubts=doubts(found, examples),
    )


def doubts(found: Found, examples: Examples) -> list[str]:
    """Sentences on the estimate, for the report and the console."""
    if found.estimate is None:
        return []
    inputs = "pictures" if examples.inputs.ndim == 4 else "other columns"
    suggestions = "the column corrected of labels.csv"
    return doubts_on(found.table, found.estimate, inputs=inputs, suggestions=suggestions)


def in_words(found: Found, examples: Examples) -> str:
    """How many labels look wrong."""
    flagged = int(found.table["is_flagged"].sum())
    if found.estimate is None:
        return f"{flagged:,} labels are flagged, as --epsilon says."
    estimate, low, high = found.estimate
    return (
        f"About {estimate:.0%} of the labels look wrong (90% interval {low:.0%} to {high:.0%}): {flagged:,} "
        "are flagged."
    )
