"""The result of a run as one JSON file, and the results of a folder as tables.

A folder holds one scale. A file is named after its run's config, and holds that config in full: what was
cut, altered or made by another protocol is told apart, and never averaged in.
"""

import contextlib
import dataclasses
import hashlib
import json
import math
import pathlib

import pandas as pd

from prl_keras import files
from prl_keras.experiments.config import RunConfig
from prl_keras.experiments.training import summarize

VERSION = 1
_PLACES = 5  # decimals kept of what the history holds
_COLUMNS = ("epoch", "seconds", "loss", "kept_clean", "test_accuracy", "test_r2_score")


def path_of(directory, config):
    """The file of a run: `DATASET-METHOD-CORRUPTION-EPSILON-seedN-HASH.json`."""
    fields = json.dumps(dataclasses.asdict(config), sort_keys=True)
    key = hashlib.sha256(fields.encode()).hexdigest()[:8]
    name = f"{config.dataset}-{config.method}-{config.corruption}-{config.epsilon:g}-seed{config.seed}-{key}"
    return pathlib.Path(directory) / f"{name}.json"


def write(path, config, scale, table, about):
    """Writes the result of a run, atomically.

    Args:
        path: From `path_of`.
        config: The `RunConfig`.
        scale: "paper" or "cpu".
        table: The history of `Training.fit`, a row per epoch.
        about: A dict with more on the run: source of the data, versions, device.
    """
    kept = [name for name in _COLUMNS if name in table]
    history = {name: _short(round(float(value), _PLACES) for value in table[name]) for name in kept}
    content = {"version": VERSION, "scale": scale, "config": dataclasses.asdict(config), **about}
    files.write_json(path, {**content, "history": history}, indent=None)


def read(path, config=None, scale=None):
    """The content of a result file, checked.

    Args:
        path: The file.
        config: What it must be the result of; None for the config that it holds.
        scale: The scale that it must be of; None for any.

    Returns:
        dict: `config` (a `RunConfig`), `scale`, `history` (a DataFrame with a row per epoch), `result`
        (what `summarize` makes of it), and what else the file holds.

    Raises:
        ValueError: naming the file and what is wrong: it is cut, has an unknown version, another config
            or scale, a name that is not its config's, or a history without every epoch.
    """
    path = pathlib.Path(path)
    try:
        content = json.loads(path.read_text())
        if content["version"] != VERSION:
            raise ValueError(f"it has version {content['version']!r}, this program reads {VERSION}")
        found = RunConfig(**content["config"])
        if config is not None and found != config:
            raise ValueError("it holds the result of another config")
        if scale is not None and content["scale"] != scale:
            raise ValueError(f"it is of scale {content['scale']!r}, not {scale!r}")
        if not isinstance(content.get("source", ""), str):
            raise ValueError(f"its source is {content['source']!r}")
        if path.name != path_of(path.parent, found).name:
            raise ValueError("its name is not that of its config")
        history = pd.DataFrame(
            {k: [math.nan if v is None else v for v in values] for k, values in content["history"].items()}
        )
        if history["epoch"].tolist() != list(range(1, found.epochs + 1)):
            raise ValueError(f"its history does not hold the epochs 1 to {found.epochs}")
        task = "classification" if "test_accuracy" in history else "regression"
        result = summarize(history, task)
    except (ValueError, KeyError, TypeError, AttributeError, OSError, RecursionError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{path} is not the result of a run: {what}.") from error
    return {**content, "config": found, "history": history, "result": result}


def read_all(directory):
    """-> (the contents of the readable result files, what is wrong with the others as strings)."""
    contents, problems = [], []
    for path in _paths(directory):
        try:
            contents.append(read(path))
        except ValueError as error:
            problems.append(str(error))
    return contents, problems


def sources(directory, dataset):
    """The set of the data that the results of a data set, in this folder, were made from."""
    found = set()
    for path in _paths(directory, f"{dataset}-"):
        with contextlib.suppress(ValueError):
            found.add(read(path).get("source"))
    return found


def _paths(directory, prefix=""):
    """The result files; one that is being written begins with a dot."""
    paths = sorted(pathlib.Path(directory).glob(f"{prefix}*.json"))
    return [path for path in paths if not path.name.startswith(".")]


def _short(values):
    """Whole numbers without their decimals, NaN and infinities as None."""
    finite = [value if math.isfinite(value) else None for value in values]
    return [value if value is None or not value.is_integer() else int(value) for value in finite]
