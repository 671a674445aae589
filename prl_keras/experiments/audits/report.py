"""An HTML report of the labels of a run's training data that look wrong, and of their number."""

import dataclasses
import html
import pathlib
import string
import zipfile
from collections.abc import Sequence
from typing import Any

import keras
import pandas as pd

import prl_keras as prl
from prl_keras import files
from prl_keras.auditing.estimate import EpsilonEstimate, estimate_from
from prl_keras.auditing.predictions import predict_beside
from prl_keras.auditing.table import table_of
from prl_keras.experiments.audits import elements, pictures
from prl_keras.experiments.data.load import load
from prl_keras.experiments.runs.config import LATER_FIELDS, RunConfig
from prl_keras.experiments.runs.run import SELECTION
from prl_keras.experiments.runs.training import corrupt

_SHOWN = 50  # most suspect examples
_PAGE = string.Template((pathlib.Path(__file__).parent / "page.html").read_text())


def audit_run(
    run_dir: pathlib.Path | str,
    output: pathlib.Path | str | None = None,
    data_options: dict[str, Any] | None = None,
) -> pathlib.Path:
    """Writes the report of a finished run and, beside it, the table of all its training labels.

    Args:
        run_dir: The folder of a run, written by `run.run`.
        output: The HTML file; None for audit.html in `run_dir`. The table is a CSV file beside it.
        data_options: For `load`.

    Returns:
        The path of the HTML file.

    Raises:
        FileNotFoundError: if the folder has no finished run.
        ValueError: for damaged files, data that differ from the run's, or an invalid output.
    """
    run_dir = pathlib.Path(run_dir)
    output = pathlib.Path(output) if output else run_dir / "audit.html"
    _check_output(output)
    missing = [name for name in ("config.json", "model.keras") if not (run_dir / name).exists()]
    if missing:
        raise FileNotFoundError(
            f"{run_dir} has no {' and no '.join(missing)}, so it is no finished run. Train one with "
            "python -m binaries.train --output_dir=DIR, or finish it with --resume."
        )
    saved = {**LATER_FIELDS, **files.read_json(run_dir / "config.json")}
    missing = [field.name for field in dataclasses.fields(RunConfig) if field.name not in saved]
    if missing:
        raise ValueError(
            f"{run_dir / 'config.json'} has no {', '.join(missing)}: it is damaged, or of another version."
        )
    config = RunConfig(**{field.name: saved[field.name] for field in dataclasses.fields(RunConfig)})
    data = load(config.dataset, **(data_options or {}))
    if data.source != saved.get("source"):
        raise ValueError(f"The run was trained on {saved.get('source')!r}; these data are {data.source!r}.")
    data = data.subset(config.train_size, config.test_size)
    targets, is_corrupted = corrupt(config, data)
    given = data.train_x, targets
    record = None
    if (run_dir / SELECTION).exists():
        record = prl.SelectionRecord(given, run_dir / SELECTION).load()
    model = _load_model(run_dir / "model.keras")
    found = predict_beside(model, given)
    record = record if found.by_element is None else None  # a record holds examples, not elements
    epsilon = estimate_from(found)
    table = table_of(found, record, epsilon.estimate)
    if found.by_element is None:
        page = _page(config, data, table, epsilon, is_corrupted, record)
    else:
        about = f"{_counted(table)}, ranked by {_method(config)}. Data: {data.source}"
        names = data.class_names or None
        page = _page_of_elements(table, epsilon, _title(config, data), about, data.train_x, names, None)
    _write(output, table, page)
    return output


def report_elements(
    table: pd.DataFrame,
    output: pathlib.Path | str,
    estimate: EpsilonEstimate | None = None,
    inputs: Any = None,
    class_names: Sequence[str] | None = None,
    attribute_names: Sequence[str] | None = None,
    title: str = "Which labels are wrong?",
    about: str = "",
) -> pathlib.Path:
    """Writes the report of a table with a row per step, pixel or attribute, and the table beside it.

    It shows the most suspect examples. For sequences it shows their steps and marks the flagged ones. For
    pixels it shows the picture, the given and the predicted mask, and the flagged pixels. For attributes and
    all other labels it lists the flagged ones.

    Args:
        table: From `prl_keras.audit`, with several labels per example.
        output: The HTML file. The table is a CSV file beside it.
        estimate: From `prl_keras.estimate_epsilon`; None for the flagged fraction, without an interval.
        inputs: `[n, ...]`, the inputs of all examples, or None. Shown are images
            `[n, height, width, channels]` with 1 or 3 channels, and words or integers `[n, steps]`.
        class_names, attribute_names: A string per class and per attribute; None for their numbers.
        title, about: Title and introduction of the page, plain text.

    Returns:
        The path of the HTML file.

    Raises:
        ValueError: for a table of examples or without rows; fewer inputs or names than the table needs; an
            invalid output.
    """
    output = pathlib.Path(output)
    _check_output(output)
    if table.index.names[0] != "example" or table.index.nlevels < 2:
        raise ValueError(
            "The table has a row for each example, and report_elements takes one with several for each. The "
            "report of a run is written by python -m binaries.audit."
        )
    if not len(table):
        raise ValueError("The table is empty: no label counts.")
    _check_enough("inputs", inputs, table.index.get_level_values("example"))
    if "given_probability" in table:
        _check_enough("class_names", class_names, table["given"])
        _check_enough("class_names", class_names, table["predicted"])
    if "attribute" in table.index.names:
        _check_enough("attribute_names", attribute_names, table.index.get_level_values("attribute"))
    about = f"{_counted(table)}. {about}"
    page = _page_of_elements(table, estimate, title, about, inputs, class_names, attribute_names)
    _write(output, table, page)
    return output


def _check_output(output):
    if output.suffix == ".csv" or output.is_dir():
        raise ValueError(f"output={str(output)!r} must be a file of HTML; the table goes beside it, as CSV.")


def _check_enough(what, given, numbers):
    if given is not None and len(given) <= numbers.max():
        raise ValueError(
            f"{what} are {len(given)}, and the table goes up to {numbers.max()}; they begin at 0."
        )


def _write(output, table, page):
    with files.replacing(output.with_suffix(".csv")) as temporary:
        table.to_csv(temporary)
    with files.replacing(output) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _load_model(path):
    try:
        return keras.models.load_model(path)
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, zipfile.BadZipFile) as error:
        text = " ".join(str(error).split())
        raise ValueError(f"{path} is damaged: {text}. Train again, with --overwrite.") from error


def _page(config, data, table, epsilon, is_corrupted, record):
    is_classes, what = data.task == "classification", _what(data)
    about = (
        f"{len(table):,} training examples, ranked by {_method(config)}. "
        + ("The score is the mean of those in the last third of training." if record is not None else "")
        + f" Data: {data.source}"
    )
    parts = [_section("The scores", _caption_of_scores(what), pictures.histogram(table))]
    if is_classes:
        picture = pictures.confusion(table, data.class_names)
        parts.append(_section("Given and predicted", _CONFUSION.format("Examples"), picture))
    cards = _examples(data, table, 0 if record is None else record.dropped.shape[1])
    parts.append(f"<h2>The {min(_SHOWN, len(table))} most suspect examples</h2>\n{cards}")
    if is_classes:
        parts.append(f"<h2>Class by class</h2>\n{_html_table(_by_class(table, data.class_names))}")
    if is_corrupted.any():
        parts.append(f"<h2>The truth</h2>\n<p class='note'>{_truth(table, is_corrupted)}</p>")
    return _filled(_title(config, data), about, epsilon, _meaning(table, epsilon, what), parts)


def _page_of_elements(table, epsilon, title, about, inputs, class_names, attribute_names):
    is_classes = "given_probability" in table
    what = "labels" if is_classes else "targets"
    parts = [_section("The scores", _caption_of_scores(what), pictures.histogram(table, what))]
    names = class_names
    if is_classes:
        if names is None:
            names = [str(i) for i in range(int(table[["given", "predicted"]].to_numpy().max()) + 1)]
        picture = pictures.confusion(table, names, what)
        parts.append(_section("Given and predicted", _CONFUSION.format("Labels"), picture))
    parts.append(elements.section(table, inputs, class_names, attribute_names))
    if is_classes:
        parts.append(f"<h2>Class by class</h2>\n{_html_table(_by_class(table, names, what))}")
    if epsilon is None:
        share, meaning = (
            float(table["is_flagged"].mean()),
            f"So many of the {what} are flagged, as audit was told.",
        )
        epsilon = EpsilonEstimate(share, share, share)
        return _filled(title, about, epsilon, meaning, parts, interval="")
    return _filled(title, about, epsilon, _meaning(table, epsilon, what), parts)


def _filled(title, about, epsilon, meaning, parts, interval=None):
    """The page; `interval` is the text after the estimate, by default the ends of its interval."""
    if interval is None:
        interval = f"&nbsp; 90% interval {epsilon.low:.0%} to {epsilon.high:.0%}"
    return _PAGE.substitute(
        title=html.escape(title), about=html.escape(about), sections="\n".join(parts),
        style=elements.STYLE, estimate=f"{epsilon.estimate:.0%}", interval=interval, meaning=meaning,
    )  # fmt: skip


def _what(data):
    return "labels" if data.task == "classification" else "targets"


def _title(config, data):
    return f"Which {_what(data)} of {config.dataset} are wrong?"


def _counted(table):
    """The numbers of labels and of examples in a table of elements, in words."""
    examples = table.index.get_level_values("example").nunique()
    return f"{len(table):,} labels of {examples:,} examples"


def _method(config):
    return f"{prl.METHODS[config.method].title}, trained for {config.epochs} epochs{_told(config)}"


def _told(config):
    if not prl.METHODS[config.method].drops_a_fraction:
        return ""
    is_told = config.told_epsilon != "auto"
    return (
        f" and told to drop {config.told_epsilon:.0%}"
        if is_told
        else " and left to find out how many to drop"
    )


_CONFUSION = (
    "{} by their given class and the one that the model predicts, those that agree left out. A dark "
    "cell is a mistake that many labels share."
)


def _meaning(table, epsilon, what):
    flagged = int(table["is_flagged"].sum())
    text = f"{flagged:,} {what} are flagged: the most suspect, as many as the estimate says."
    if epsilon.low == 0 < flagged:
        text += (
            f" But the interval begins at 0: as far as the estimate can tell all the {what} may be right, "
            "and the flagged ones hard. The most suspect, below, say more."
        )
    if epsilon.high - epsilon.low > 0.2:
        text += (
            " The interval is wide: the model itself errs, and its errors cannot be told from wrong labels."
        )
        if table.index.nlevels == 1:  # trusted labels are given per example
            text += (
                " True labels of 100 examples drawn at random (estimate_epsilon, trusted=) make it narrow."
            )
    return text


def _caption_of_scores(what):
    return (
        f"How suspect the {what} are. Right of the line are those that are flagged. Two hills with a gap at "
        "the line are easy to tell apart; one hill is not, and what lies near the line needs a look."
    )


def _examples(data, table, networks):
    worst = table.sort_values("rank").head(_SHOWN)
    if data.train_x.ndim == 4:
        cards = [_card(data, example, row, networks) for example, row in worst.iterrows()]
        return f"<div class='examples'>{''.join(cards)}</div>"
    columns = [name for name in worst if not name.startswith("probability_")]
    return _html_table(worst[columns].reset_index().astype({"example": str}))


def _card(data, example, row, networks):
    names = data.class_names
    dropped = ""
    if networks and row["times_seen"]:
        share = row["times_dropped"] / (networks * row["times_seen"])
        dropped = f"<br>dropped {share:.0%} of the time"
    given, predicted = (html.escape(names[int(row[which])]) for which in ("given", "predicted"))
    picture = pictures.tag(pictures.picture(data.train_x[example]), f"example {example}")
    return (
        f"<figure>{picture}<figcaption>#{example}<br>given <b class='given'>{given}</b><br>"
        f"predicted <b class='predicted'>{predicted}</b>{dropped}</figcaption></figure>"
    )


def _by_class(table, names, unit="examples"):
    groups = table.groupby("given")
    frame = pd.DataFrame({unit: groups.size(), "flagged": groups["is_flagged"].mean()})
    others = table[table["predicted"] != table["given"]].groupby("given")["predicted"]
    frame["most often predicted instead"] = others.agg(lambda column: names[column.mode().iloc[0]])
    frame.insert(0, "given class", [names[i] for i in frame.index])
    frame["flagged"] = frame["flagged"].map("{:.1%}".format)
    return frame.fillna("-")


def _truth(table, is_corrupted):
    flagged = table["is_flagged"].to_numpy()
    found = (
        f"The labels of this run were corrupted on purpose: {is_corrupted.mean():.1%} of them. The report "
        "above does not use that. "
    )
    if not flagged.any():
        return found + "Nothing is flagged."
    return found + (
        f"Of the flagged {is_corrupted[flagged].mean():.1%} are wrong, and of the wrong "
        f"{flagged[is_corrupted].mean():.1%} are flagged."
    )


def _section(heading, note, picture):
    return f"<h2>{heading}</h2>\n<p class='note'>{note}</p>\n{pictures.tag(picture, heading)}"


def _html_table(frame):
    return frame.to_html(index=False, border=0, float_format="{:.3f}".format, na_rep="-", escape=True)
