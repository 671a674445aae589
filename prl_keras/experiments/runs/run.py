"""One run in its own folder, which can be killed and resumed."""

import contextlib
import dataclasses
import functools
import pathlib
import platform
import shutil
import subprocess
import sys
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from prl_keras import files
from prl_keras.experiments.data.load import load
from prl_keras.experiments.runs import figures, strategies
from prl_keras.experiments.runs.config import LATER_FIELDS
from prl_keras.experiments.runs.results import RUN_FILES
from prl_keras.experiments.runs.training import CHECKPOINTS, Training, summarize
from prl_keras.validate import differences

_FILES = (*RUN_FILES, "model.keras", "curves.png")
SELECTION = "selection.npz"  # only for methods that drop examples


def run(
    config: Any,
    output_dir: pathlib.Path | str,
    resume: bool = False,
    overwrite: bool = False,
    verbose: int | str = "auto",
    callbacks: Sequence[keras.callbacks.Callback] = (),
    data_options: Mapping[str, Any] | None = None,
    strategy: tf.distribute.Strategy | None = None,
    *,
    dataset: Any = None,
    models: dict[Any, keras.Model] | None = None,
    checkpoint_seconds: float = 0,
    with_model: bool = True,
    about: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Trains as `config` says and writes the run's files into `output_dir`.

    | file | holds |
    |---|---|
    | config.json | the config, versions, git revision, the achieved corruption rate |
    | history.csv | per epoch: seconds, losses, test metric, precision and recall of the dropped examples |
    | result.json | the summary that is returned |
    | model.keras | the trained model |
    | curves.png | test metric, and cleanness of the kept set, over the epochs |
    | selection.npz | which examples training suspected and dropped (`prl_keras.SelectionRecord`) |
    | checkpoints/ | what `resume` needs; removed at the end |

    Args:
        config: A `RunConfig`.
        output_dir: Made if missing.
        resume: Continue a run of the same config from its last finished epoch, with the result of an
            uninterrupted run. Without such a run, start one; if it is finished, return its result.
        overwrite: Remove an existing run.
        verbose: As in `keras.Model.fit`; "auto" is a progress bar on a terminal and a line per epoch
            elsewhere.
        callbacks: Further Keras callbacks.
        data_options: Arguments of `load`: the data folder, and whether to download.
        strategy: The `tf.distribute.Strategy` to train on; None for TensorFlow's default. Batches are
            global: the result equals that of one device up to rounding. In a cluster all processes call
            this with the same arguments and a shared output_dir; the chief writes.
        dataset: The `Dataset`, if already loaded.
        models: As in `Training`.
        checkpoint_seconds: As in `Training.fit`.
        with_model: Whether to write model.keras, curves.png and selection.npz too.
        about: A dict of further facts for config.json.

    Returns:
        dict: `test_metric` ("accuracy" or "r2_score"), `test_mean` and `test_std` over the last ten
        epochs, `test_final`, `kept_clean`, `drop_precision`, `drop_recall` (mean over those epochs;
        None for methods that drop nothing), `seconds_per_epoch` (median), `epochs`.

    Raises:
        ValueError: for a config that does not fit the data, or if the run to resume has another config. In a
            cluster the process with an error prints it and exits, and the others exit too.
        FileExistsError: if there is a run and neither `resume` nor `overwrite` is given, or if another
            process is using `output_dir`.
        OSError: before training, if `output_dir` cannot be written to; later, if the disk is full. The files
            already written are complete, and `resume` continues from them.
    """
    output_dir, strategy = pathlib.Path(output_dir), strategy or tf.distribute.get_strategy()
    names = _FILES if with_model else RUN_FILES
    with strategies.failing_together(strategy):
        is_chief = strategies.is_chief(strategy)
        dataset = dataset or load(config.dataset, **(data_options or {}))
        config.check_task(dataset.task)
        same = zlib.crc32(repr((config, dataset.source)).encode())
        strategies.check_same(strategy, same, "the run's flags and data (a checksum of them)")
        _check_directory(output_dir, config, dataset.source, resume, overwrite)
        present = sum((output_dir / name).exists() for name in names)
        strategies.check_same(strategy, present, f"how many of the run's files are in {output_dir}")
        if resume and not overwrite and present == len(names):
            if is_chief:  # a kill after the result was written leaves checkpoints
                shutil.rmtree(output_dir / CHECKPOINTS, ignore_errors=True)
            return files.read_json(output_dir / "result.json")

        with strategy.scope():
            training = Training(config, dataset, models)  # raises before any file is touched
        with contextlib.ExitStack() as held:
            if is_chief:
                _make(output_dir)
                held.enter_context(files.locked(output_dir))
                _check_directory(output_dir, config, dataset.source, resume, overwrite)  # it may have changed
                if overwrite:
                    _remove(output_dir)
                facts = {
                    "corruption_rate": training.corruption_rate,
                    "source": dataset.source,
                    "device": strategies.describe(strategy),
                    "versions": versions(),
                    "strategy": type(strategy).__name__,
                    "replicas": strategy.num_replicas_in_sync,
                    **(about or {}),
                }
                files.write_json(output_dir / "config.json", {**dataclasses.asdict(config), **facts})
            strategies.wait_for_all(strategy)  # until the chief has removed the old run
            verbose = (1 if sys.stdout.isatty() else 2) if verbose == "auto" else verbose
            table = training.fit(
                output_dir,
                checkpoint_seconds,
                verbose if is_chief else 0,
                callbacks,
                output_dir / SELECTION if with_model else None,
            )
            return _write(training, table, output_dir, strategy, with_model)


def _write(training, table, output_dir, strategy, with_model):
    """Writes the files of a finished training, result.json last, and returns the result."""
    is_chief = strategies.is_chief(strategy)
    result = summarize(table, training.dataset.task)
    if with_model:
        with strategies.written_by_chief(strategy, output_dir / "model.keras") as temporary:
            training.model.save(temporary)
    if is_chief and with_model:
        with files.replacing(output_dir / "curves.png") as temporary:
            figures.plot_run(table, training.config, temporary)
    if is_chief:
        files.write_json(output_dir / "result.json", result)
    strategies.wait_for_all(strategy)
    if is_chief:
        shutil.rmtree(output_dir / CHECKPOINTS, ignore_errors=True)
    return result


def _check_directory(output_dir, config, source, resume, overwrite):
    present = [name for name in (*_FILES, CHECKPOINTS) if (output_dir / name).exists()]
    if not present or overwrite:
        return
    if not resume:
        raise FileExistsError(
            f"{output_dir} holds a run already ({', '.join(present)}). Write --resume to go on with it, "
            "--overwrite to replace it, or take another --output_dir."
        )
    path = output_dir / "config.json"
    if not path.exists():
        raise ValueError(f"{output_dir} has a run without config.json. Start anew with --overwrite.")
    saved = {**LATER_FIELDS, **files.read_json(path)}
    different = differences(saved, {**dataclasses.asdict(config), "source": source})
    if different:
        raise ValueError(
            f"The run in {output_dir} has another config: {different}. Give the same flags to resume it, "
            "--overwrite to replace it, or take another --output_dir."
        )


def _make(output_dir):
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"{output_dir} cannot be made: {error}. Take another --output_dir.") from error


def _remove(output_dir):
    """Removes a run's files and no others."""
    for name in (*_FILES, SELECTION):
        (output_dir / name).unlink(missing_ok=True)
    shutil.rmtree(output_dir / CHECKPOINTS, ignore_errors=True)


@functools.cache
def versions() -> dict[str, Any]:
    """What a result may depend on besides its config: package versions and the code's git revision."""

    def git(*arguments):
        try:
            package = pathlib.Path(files.__file__).parent
            return subprocess.run(
                ["git", *arguments], cwd=package, capture_output=True, text=True, check=True
            ).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            return None

    return {
        "python": platform.python_version(),
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "numpy": np.__version__,
        "git_revision": git("rev-parse", "HEAD"),
        "git_is_clean": git("status", "--porcelain", "--", ".") == "",  # only the package
    }
