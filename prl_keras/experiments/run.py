"""One run in a folder of its own, which can be killed and resumed."""

import contextlib
import dataclasses
import functools
import pathlib
import platform
import shutil
import subprocess
import sys
import zlib

import keras
import numpy as np
import tensorflow as tf

from prl_keras import files
from prl_keras.experiments import curves, datasets, strategies
from prl_keras.experiments.training import CHECKPOINTS, Training, summarize

_FILES = ("config.json", "history.csv", "result.json", "model.keras", "curves.png")
SELECTION = "selection.npz"  # a file of runs of methods that drop examples


def run(
    config, output_dir, resume=False, overwrite=False, verbose="auto", callbacks=(), data_options=None,
    strategy=None,
):  # fmt: skip
    """Trains as `config` says and writes everything about it into `output_dir`.

    | file | holds |
    |---|---|
    | config.json | the config, versions, git revision, the achieved corruption rate |
    | history.csv | per epoch: seconds, losses, test metric, precision and recall of what is dropped |
    | result.json | the summary that is returned |
    | model.keras | the trained model |
    | curves.png | test metric, and cleanness of the kept set, over the epochs |
    | selection.npz | which examples training suspected and dropped (`prl_keras.SelectionRecord`) |
    | checkpoints/ | what `resume` needs; removed at the end |

    Args:
        config: A `RunConfig`.
        output_dir: Made if missing.
        resume: Go on with a run of the same config from its last finished epoch, with the result that
            an uninterrupted run has; start if there is none; return the result if it has ended.
        overwrite: Remove a run that is there.
        verbose: As in `keras.Model.fit`; "auto" is a progress bar on a terminal and a line per epoch
            elsewhere.
        callbacks: Further Keras callbacks.
        data_options: For `datasets.load`: where the data lie, and whether to fetch them.
        strategy: A `tf.distribute.Strategy` to train on, TensorFlow's default if None. Batches are global:
            the result is that of one device, to rounding. Of several processes all call this, with the
            same arguments and an output_dir that they share; the chief writes.

    Returns:
        dict: `test_metric` ("accuracy" or "r2_score"), `test_mean` and `test_std` over the last ten
        epochs, `test_final`, `kept_clean`, `drop_precision`, `drop_recall` (mean over those epochs;
        None for methods that drop nothing), `seconds_per_epoch` (median), `epochs`.

    Raises:
        ValueError: for a config that does not fit the data, or a run of another config to resume. Of several
            processes, one that has an error says so and ends, and the others end with it.
        FileExistsError: if there is a run and neither `resume` nor `overwrite` is given, or if another
            process is at work in `output_dir`.
        OSError: before training, if `output_dir` cannot be written to; later, if the disk is full. What was
            written is whole, and `resume` goes on with it.
    """
    strategy = strategy or tf.distribute.get_strategy()
    with strategies.failing_together(strategy):
        return _run(
            config, pathlib.Path(output_dir), resume, overwrite, verbose, callbacks, data_options, strategy
        )


def _run(config, output_dir, resume, overwrite, verbose, callbacks, data_options, strategy):
    is_chief = strategies.is_chief(strategy)
    dataset = datasets.load(config.dataset, **(data_options or {}))
    config.check_task(dataset.task)
    same = zlib.crc32(repr((config, dataset.source)).encode())
    strategies.check_same(strategy, same, "the run's flags and data (a checksum of them)")
    _check_directory(output_dir, config, dataset.source, resume, overwrite)
    present = sum((output_dir / name).exists() for name in _FILES)
    strategies.check_same(strategy, present, f"how many of the run's files are in {output_dir}")
    if resume and not overwrite and all((output_dir / name).exists() for name in _FILES):
        if is_chief:  # killed after the result was written
            shutil.rmtree(output_dir / CHECKPOINTS, ignore_errors=True)
        return files.read_json(output_dir / "result.json")

    with strategy.scope():
        training = Training(config, dataset)  # what can be refused is refused before a file is touched
    with contextlib.ExitStack() as held:
        if is_chief:
            _make(output_dir)
            held.enter_context(files.locked(output_dir))
            _check_directory(
                output_dir, config, dataset.source, resume, overwrite
            )  # one may have ended since
            if overwrite:
                _remove(output_dir)
            about = {
                "corruption_rate": training.corruption_rate,
                "source": dataset.source,
                "versions": versions(),
                "strategy": type(strategy).__name__,
                "replicas": strategy.num_replicas_in_sync,
            }
            files.write_json(output_dir / "config.json", {**dataclasses.asdict(config), **about})
        return _train(training, output_dir, verbose, callbacks, strategy)


def _train(training, output_dir, verbose, callbacks, strategy):
    is_chief = strategies.is_chief(strategy)
    strategies.wait_for_all(strategy)  # what was to be removed is
    verbose = (1 if sys.stdout.isatty() else 2) if verbose == "auto" else verbose
    table = training.fit(
        output_dir, verbose=verbose if is_chief else 0, callbacks=callbacks, selection=output_dir / SELECTION
    )
    result = summarize(table, training.dataset.task)
    with strategies.written_by_chief(strategy, output_dir / "model.keras") as temporary:
        training.model.save(temporary)
    if is_chief:
        with files.replacing(output_dir / "curves.png") as temporary:
            curves.plot_run(table, result, training.config, temporary)
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
    _check_same_config(output_dir, config, source)


def _make(output_dir):
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"{output_dir} cannot be made: {error}. Take another --output_dir.") from error


def _remove(output_dir):
    """Removes a run, and nothing else that lies beside it."""
    for name in (*_FILES, SELECTION):
        (output_dir / name).unlink(missing_ok=True)
    shutil.rmtree(output_dir / CHECKPOINTS, ignore_errors=True)


def _check_same_config(output_dir, config, source):
    path = output_dir / "config.json"
    if not path.exists():
        raise ValueError(f"{output_dir} has a run without config.json. Start anew with --overwrite.")
    saved = files.read_json(path)
    different = {
        name: (saved.get(name), value)
        for name, value in {**dataclasses.asdict(config), "source": source}.items()
        if saved.get(name) != value
    }
    if different:
        listed = "; ".join(f"{name} was {old!r}, is now {new!r}" for name, (old, new) in different.items())
        raise ValueError(
            f"The run in {output_dir} has another config: {listed}. Give the same flags to resume it, "
            "--overwrite to replace it, or take another --output_dir."
        )


@functools.cache
def versions():
    """What a result may depend on beside its config: packages, and the code's git revision."""

    def git(*arguments):
        try:
            folder = pathlib.Path(__file__).parent
            return subprocess.run(
                ["git", *arguments], cwd=folder, capture_output=True, text=True, check=True
            ).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            return None

    return {
        "python": platform.python_version(),
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "numpy": np.__version__,
        "git_revision": git("rev-parse", "HEAD"),
        "git_is_clean": git("status", "--porcelain", "--", "..") == "",  # of the package alone
    }
