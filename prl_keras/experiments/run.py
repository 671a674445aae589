"""One run: corrupt the training targets, train by a method, measure on clean test data."""

import dataclasses
import itertools
import pathlib
import platform
import shutil
import subprocess
import sys

import keras
import numpy as np
import tensorflow as tf

import prl_keras as prl
from prl_keras.experiments import checkpoints, curves, datasets, files, history
from prl_keras.experiments.networks import make_network

LAST_EPOCHS = 10  # the paper averages the test metric over the last ten epochs
_PROBE_SIZE = 2000  # examples on which the cleanness of the kept set is measured
_FILES = ("config.json", "history.csv", "result.json", "model.keras", "curves.png")
_CHECKPOINTS = "checkpoints"


def run(config, output_dir, resume=False, overwrite=False, verbose="auto", callbacks=()):
    """Trains as `config` says and writes everything about it into `output_dir`.

    | file | holds |
    |---|---|
    | config.json | the config, versions, git revision, the achieved corruption rate |
    | history.csv | per epoch: seconds, losses, test metric, precision and recall of what is dropped |
    | result.json | the summary that is returned |
    | model.keras | the trained model |
    | curves.png | test metric, and cleanness of the kept set, over the epochs |
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

    Returns:
        dict: `test_metric` ("accuracy" or "r2_score"), `test_mean` and `test_std` over the last ten
        epochs, `test_final`, `kept_clean`, `drop_precision`, `drop_recall` (mean over those epochs;
        None for methods that drop nothing), `seconds_per_epoch` (median), `epochs`.

    Raises:
        ValueError: for a config that does not fit the data, or a run of another config to resume.
        FileExistsError: if there is a run and neither `resume` nor `overwrite` is given.
    """
    output_dir = pathlib.Path(output_dir)
    dataset = datasets.load(config.dataset)
    config.check_task(dataset.task)
    _check_directory(output_dir, config, resume, overwrite)
    if resume and not overwrite and all((output_dir / name).exists() for name in _FILES):
        return files.read_json(output_dir / "result.json")

    # What can be refused is refused by here, before a file is written or removed.
    targets, is_corrupted = _corrupt(config, dataset)
    model = _build(config, dataset, steps_per_epoch=-(-len(targets) // config.batch_size))
    if overwrite:
        _remove(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    rate = float(np.mean(is_corrupted))
    files.write_json(
        output_dir / "config.json",
        {**dataclasses.asdict(config), "corruption_rate": rate, "versions": _versions()},
    )
    finished = checkpoints.restore(model, output_dir / _CHECKPOINTS)
    train, set_epoch = datasets.shuffled_batches(dataset.train_x, targets, config.batch_size, config.seed)
    record = history.WriteHistory(output_dir / "history.csv", finished)
    callbacks = [set_epoch, record, checkpoints.SaveCheckpoints(output_dir / _CHECKPOINTS), *callbacks]
    if hasattr(model, "example_weights"):
        probe = slice(0, _PROBE_SIZE)
        callbacks.insert(0, prl.SelectionQuality(
            dataset.train_x[probe], targets[probe], is_corrupted[probe], config.batch_size
        ))  # fmt: skip
    model.fit(
        train,
        epochs=config.epochs,
        initial_epoch=finished,
        validation_data=datasets.batches(dataset.test_x, dataset.test_y, 1024),
        callbacks=callbacks,
        shuffle=False,  # the data set shuffles, by seed and epoch
        verbose=(1 if sys.stdout.isatty() else 2) if verbose == "auto" else verbose,
    )
    result = summarize(record.table, dataset.task)
    with files.replacing(output_dir / "model.keras") as temporary:
        model.save(temporary)
    with files.replacing(output_dir / "curves.png") as temporary:
        curves.plot_run(record.table, result, config, temporary)
    files.write_json(output_dir / "result.json", result)
    shutil.rmtree(output_dir / _CHECKPOINTS, ignore_errors=True)
    return result


def summarize(table, task):
    """The summary of a run from its history, as `run` returns it."""
    metric = "accuracy" if task == "classification" else "r2_score"
    last = table.tail(LAST_EPOCHS)
    test = last[f"test_{metric}"]
    selection = {
        name: float(last[name].mean()) if name in last else None
        for name in ("kept_clean", "drop_precision", "drop_recall")
    }
    return {
        "test_metric": metric,
        "test_mean": float(test.mean()),
        "test_std": float(test.std(ddof=0)),
        "test_final": float(test.iloc[-1]),
        **selection,
        "seconds_per_epoch": float(table["seconds"].median()),
        "epochs": len(table),
    }


def _corrupt(config, dataset):
    if config.corruption == "none":
        return dataset.train_y, np.zeros(len(dataset.train_y), bool)
    num_classes = dataset.num_outputs if dataset.task == "classification" else None
    return prl.corrupt(
        config.corruption,
        dataset.train_y,
        config.epsilon,
        np.random.default_rng(config.noise_seed),
        features=dataset.train_x,
        num_classes=num_classes,
    )


def _build(config, dataset, steps_per_epoch):
    keras.utils.set_random_seed(config.seed)
    input_shape = dataset.train_x.shape[1:]
    network, norm = config.network_and_norm(input_shape)
    seeds = itertools.count(2 * config.seed)  # a pair takes two

    if dataset.task == "classification":
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        metric = keras.metrics.SparseCategoricalAccuracy(name="accuracy")
    else:
        loss, metric = keras.losses.MeanSquaredError(), keras.metrics.R2Score()
    return prl.build(
        config.method,
        lambda: make_network(network, input_shape, dataset.num_outputs, norm, seed=next(seeds)),
        epsilon=config.epsilon if config.assumed_epsilon is None else config.assumed_epsilon,
        ramp_steps=config.ramp_epochs * steps_per_epoch,
        loss=loss,
        optimizer=keras.optimizers.Adam(config.learning_rate),
        metrics=[metric],
    )


def _check_directory(output_dir, config, resume, overwrite):
    present = [name for name in (*_FILES, _CHECKPOINTS) if (output_dir / name).exists()]
    if not present or overwrite:
        return
    if not resume:
        raise FileExistsError(
            f"{output_dir} holds a run already ({', '.join(present)}). Write --resume to go on with it, "
            "--overwrite to replace it, or take another --output_dir."
        )
    _check_same_config(output_dir, config)


def _remove(output_dir):
    """Removes a run, and nothing else that lies beside it."""
    for name in _FILES:
        (output_dir / name).unlink(missing_ok=True)
    shutil.rmtree(output_dir / _CHECKPOINTS, ignore_errors=True)


def _check_same_config(output_dir, config):
    path = output_dir / "config.json"
    if not path.exists():
        raise ValueError(f"{output_dir} has a run without config.json. Start anew with --overwrite.")
    saved = files.read_json(path)
    different = {
        name: (saved.get(name), value)
        for name, value in dataclasses.asdict(config).items()
        if saved.get(name) != value
    }
    if different:
        listed = "; ".join(f"{name} was {old!r}, is now {new!r}" for name, (old, new) in different.items())
        raise ValueError(
            f"The run in {output_dir} has another config: {listed}. Give the same flags to resume it, "
            "--overwrite to replace it, or take another --output_dir."
        )


def _versions():
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
        "git_is_clean": git("status", "--porcelain") == "",
    }
