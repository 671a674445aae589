"""An HTML report of the labels of a run's training data that look wrong, and of their number."""

import dataclasses
import pathlib
import zipfile
from typing import Any

import keras

import prl_keras as prl
from prl_keras import files
from prl_keras.auditing.estimate import estimate_from
from prl_keras.auditing.predictions import predict_beside
from prl_keras.auditing.table import table_of
from prl_keras.experiments.data.load import load
from prl_keras.experiments.runs.config import LATER_FIELDS, RunConfig
from prl_keras.experiments.runs.run import SELECTION
from prl_keras.experiments.runs.training import corrupt
from prl_keras.reports.report import check_output, report_elements, report_examples, write_table


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
    output = check_output(output or run_dir / "audit.html")
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
    what = "labels" if data.task == "classification" else "targets"
    title = f"Which {what} of {config.dataset} are wrong?"
    method = prl.METHODS[config.method].title
    about = f"Ranked by {method}, trained for {config.epochs} epochs{_told(config)}. "
    names = data.class_names or None
    if found.by_element is not None:
        about += f"Data: {data.source}"
        return report_elements(table, output, epsilon, data.train_x, names, title=title, about=about)
    if record is not None:
        about += "The score is the mean of those in the last third of training. "
    about = f"{len(table):,} training examples. {about}Data: {data.source}"
    networks = 1 if record is None else record.dropped.shape[1]
    truth = [("The truth", _truth(table, is_corrupted))] if is_corrupted.any() else []
    inputs = data.train_x if data.train_x.ndim == 4 else None
    write_table(output, table)
    report_examples(
        table, output, epsilon, inputs, names, networks=networks, title=title, about=about, further=truth
    )
    return output


def _load_model(path):
    try:
        return keras.models.load_model(path)
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, zipfile.BadZipFile) as error:
        text = " ".join(str(error).split())
        raise ValueError(f"{path} is damaged: {text}. Train again, with --overwrite.") from error


def _told(config):
    if not prl.METHODS[config.method].drops_a_fraction:
        return ""
    if config.told_epsilon == "auto":
        return " and left to find out how many to drop"
    return f" and told to drop {config.told_epsilon:.0%}"


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
