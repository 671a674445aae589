"""Reads and packs the finished runs of a folder.

A run has a folder of its own, written by `run.run` and named after its config. The runs of a finished table
are packed into one file, such as table2.jsonl, one line each. Both hold the full config, so truncated
or altered runs, and those of another protocol, are recognised and never averaged in.
"""

import contextlib
import hashlib
import json
import math
import pathlib
import shutil
from collections.abc import Iterable
from typing import Any

import pandas as pd

from prl_keras import files
from prl_keras.experiments.runs.config import LATER_FIELDS, RunConfig
from prl_keras.experiments.runs.training import CHECKPOINTS, summarize

RUN_FILES = ("config.json", "history.csv", "result.json")  # of every finished run; result.json comes last
_VERSION = 1  # the format of a packed line
_PLACES = 5  # decimals kept of a history's values
_COLUMNS = (
    "epoch",
    "seconds",
    "loss",
    "kept_clean",
    "memorized",
    "changed",
    "test_accuracy",
    "test_r2_score",
)
_FIELDS = tuple(RunConfig().fields)


def path_of(directory: pathlib.Path | str, config: RunConfig) -> pathlib.Path:
    """The folder of a run: `DATASET-METHOD-CORRUPTION-EPSILON-seedN-HASH`."""
    fields = json.dumps(config.fields, sort_keys=True)
    key = hashlib.sha256(fields.encode()).hexdigest()[:8]
    name = f"{config.dataset}-{config.method}-{config.corruption}-{config.epsilon:g}-seed{config.seed}-{key}"
    return pathlib.Path(directory) / name


def is_finished(path: pathlib.Path | str) -> bool:
    """Whether the folder of a run holds its result."""
    return (pathlib.Path(path) / "result.json").exists()


def read(
    path: pathlib.Path | str, config: RunConfig | None = None, scale: str | None = None
) -> dict[str, Any]:
    """Reads and checks the finished run in a folder; None is for any config or scale.

    Returns:
        dict: `config` (a `RunConfig`), `history` (a DataFrame with a row per epoch), `result` (from
        `summarize`), `place` (the folder), and the other fields of config.json: `scale`, `source`, `device`,
        `versions`.

    Raises:
        ValueError: naming the folder and the fault: a file is missing or truncated, the config or the scale
            differs, the folder's name does not match the config, or the history lacks epochs.
    """
    path = pathlib.Path(path)
    try:
        if not is_finished(path):
            raise ValueError("it has no result.json")
        about = json.loads((path / "config.json").read_text())
        table = pd.read_csv(path / "history.csv", float_precision="round_trip")
        fields = {name: about.pop(name) for name in _FIELDS}
        fields |= {name: about.pop(name) for name in LATER_FIELDS if name in about}
        found = _checked({**about, "config": fields, "history": _columns(table)}, config, scale)
        if path.name != path_of("", found["config"]).name:
            raise ValueError("its name is not that of its config")
    except (ValueError, KeyError, TypeError, AttributeError, OSError, RecursionError) as error:
        raise ValueError(f"{path} is not the result of a run: {_in_words(error)}.") from error
    return {**found, "place": str(path)}


def read_all(directory: pathlib.Path | str) -> tuple[list[dict[str, Any]], list[str]]:
    """Reads all the finished runs of a folder, packed or not.

    Returns:
        (the runs, dicts as from `read`; a message for each unreadable one).
    """
    found: dict[RunConfig, dict[str, Any]] = {}
    problems = []
    for path in sorted(pathlib.Path(directory).glob("*/result.json")):
        try:
            content = read(path.parent)
            found[content["config"]] = content
        except ValueError as error:
            problems.append(str(error))
    for path in sorted(pathlib.Path(directory).glob("*.jsonl")):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            try:
                content = _packed(line) | {"place": f"{path}, line {number}"}
                found.setdefault(content["config"], content)
            except ValueError as error:
                problems.append(f"{path}, line {number}, {error}")
    return list(found.values()), problems


def pack(path: pathlib.Path | str, contents: Iterable[dict[str, Any]]) -> None:
    """Moves runs from their folders into a file of JSON lines; other files in a folder stay.

    A kill before the last folder is removed leaves equal copies of runs in both places. A run that was made
    again replaces its line. When runs are packed, unreadable lines of the file are removed.

    Args:
        path: The file, in the folder of the runs, where `read_all` finds it: its name ends in .jsonl.
        contents: The runs, from `read_all`.
    """
    path = pathlib.Path(path)
    in_folders = [content for content in contents if pathlib.Path(content["place"]).is_dir()]
    if not in_folders:
        return
    lines = {content["config"]: _line_of(content) for content in in_folders}
    for line in path.read_text().splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError):
            lines.setdefault(_packed(line)["config"], line)
    with files.replacing(path) as temporary:
        temporary.write_text("\n".join(sorted(lines.values())) + "\n")
    for folder in (pathlib.Path(content["place"]) for content in in_folders):
        for name in reversed(RUN_FILES):
            (folder / name).unlink()
        shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
        if not any(folder.iterdir()):
            folder.rmdir()


def _line_of(content):
    about = {name: value for name, value in content.items() if name not in ("result", "place", "version")}
    about |= {"config": content["config"].fields, "history": _columns(content["history"])}
    # The config comes first, so that sorted lines are ordered by dataset, method, corruption.
    return json.dumps({"config": about.pop("config"), "version": _VERSION, **about}, allow_nan=False)


def _packed(line):
    """The run of a packed line, checked; a ValueError says what is wrong with the line."""
    try:
        content = json.loads(line)
        if content["version"] != _VERSION:
            raise ValueError(f"version {content['version']!r} is not {_VERSION}")
        return _checked(content)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"is not the result of a run: {_in_words(error)}.") from error


def _checked(content, config=None, scale=None):
    found = RunConfig(**content["config"])
    if config is not None and found != config:
        raise ValueError("it holds the result of another config")
    if scale is not None and content["scale"] != scale:
        raise ValueError(f"it is of scale {content['scale']!r}, not {scale!r}")
    if not isinstance(content.get("source", ""), str):
        raise ValueError(f"its source is {content['source']!r}")
    history = pd.DataFrame(
        {k: [math.nan if v is None else v for v in values] for k, values in content["history"].items()}
    )
    if history["epoch"].tolist() != list(range(1, found.epochs + 1)):
        raise ValueError(f"its history does not hold the epochs 1 to {found.epochs}")
    task = "classification" if "test_accuracy" in history else "regression"
    return {**content, "config": found, "history": history, "result": summarize(history, task)}


def _columns(table):
    """{column: values} of a history, rounded; whole numbers become int, non-finite values None."""

    def short(value):
        value = round(float(value), _PLACES)
        return None if not math.isfinite(value) else int(value) if value.is_integer() else value

    return {name: [short(value) for value in table[name]] for name in _COLUMNS if name in table}


def _in_words(error):
    return f"{error} is missing" if isinstance(error, KeyError) else str(error)
