"""Trains the setting that a search found on all the data: several networks, of which the best is kept.

hp = tuner.get_best_hyperparameters()[0]  # hp.values are what was found
model, record = train_on_all(hypermodel, hp, x, y, "runs/search/final", epochs=30)
"""

import functools
import pathlib
from collections.abc import Sequence
from typing import Any

import keras_tuner

from prl_keras import files
from prl_keras.keras_gaps.fresh_start import start_as
from prl_keras.tuning import checks
from prl_keras.tuning.objectives import TRIMMED_LOSS
from prl_keras.tuning.trials import FAILED, execute, in_words, keep_if_best, load_weights, read_record
from prl_keras.validate import check_integer

_OBJECTIVE = keras_tuner.Objective(f"train_{TRIMMED_LOSS}", "min")


def train_on_all(
    hypermodel: keras_tuner.HyperModel,
    hp: keras_tuner.HyperParameters,
    x: Any,
    y: Any,
    directory: pathlib.Path | str,
    *,
    epochs: int,
    trainings: int = 3,
    seed: int = 0,
    test_data: Sequence[Any] | None = None,
    verbose: bool = True,
) -> tuple[Any, dict[str, Any]]:
    """Trains networks of one setting on all the data and returns the one with the lowest trimmed loss.

    A search holds data out, and networks of one setting differ: from some initial weights a robust method
    takes the wrong labels of a class for the right ones. The trimmed loss of the training data
    (`objectives.trimmed_loss`), with the labels as given, exposes such networks: within one setting all
    networks drop the same fraction, and a dropped label is not memorised.

    Each training writes a file when it ends. Called again after a kill, this repeats no training that
    succeeded.

    Args:
        hypermodel: A `RobustHyperModel`.
        hp: The hyperparameters, from a tuner's `get_best_hyperparameters`.
        x: Array `[n, ...]`, n >= 2.
        y: Array `[n, ...]`, the labels as given.
        directory: Made if missing.
        epochs: The epochs of each training.
        trainings: The number of trainings, at least 1. Further ones already in the directory count too.
        seed: The seed of the first training; each next training adds 1.
        test_data: Clean `(x, y)`. Reported as `test_...`; it decides nothing.
        verbose: Whether to print a line after each training.

    Returns:
        The compiled model and its record: a dict of training, seed, the searched values, metrics, seconds.

    Raises:
        OSError: if a file cannot be written.
        ValueError: for an invalid argument or class label; if directory has trainings of another network,
            other data, values, loss or optimizer, or damaged files; if all trainings failed.
    """
    epochs, seed = check_integer("epochs", epochs, 1), check_integer("seed", seed, 0)
    trainings = check_integer("trainings", trainings, 1)
    x, y = checks.check_pair("x and y", (x, y))
    test_data = checks.check_pair("test_data", test_data)
    hypermodel, directory = hypermodel.of_size(len(x)), pathlib.Path(directory)
    settings = {**hypermodel.values(hp), **hypermodel.settings, "epochs": epochs, "seed": seed}
    untrained = hypermodel.build(hp)
    # Its call also builds the layers that are built on their first call.
    checks.check_labels(untrained, hypermodel.loss, {"": (x, y), "test_data": test_data})
    settings |= {
        "network": checks.describe(untrained),
        "data": f"{len(x)} examples, checksum {checks.checksum(x, y)}",
        "test_data": test_data and checks.checksum(*test_data),
    }
    checks.check_settings(directory / "settings.json", settings, "training", "or take another folder")
    checks.make_folder(directory)
    files.write_json(directory / "settings.json", settings)
    traced = None

    def fresh():
        nonlocal traced
        model = hypermodel.build(hp)
        if traced is None or not model.built:
            traced = model
        else:
            start_as(traced, model)
        return traced

    for index in range(trainings):
        path = directory / f"training_{index}.json"
        if path.exists() and FAILED not in read_record(path, _OBJECTIVE.name):
            continue
        record = execute(
            {"training": index, "seed": seed + index, "epochs": epochs},
            hypermodel,
            hp,
            fresh,
            (x, y),
            (x, y),
            _OBJECTIVE.name,
            prefix="train_",
            test_data=test_data,
            keep=functools.partial(
                keep_if_best,
                path=_weights(directory, index),
                objective=_OBJECTIVE,
                others=directory.glob("training_*.json"),
            ),
        )
        files.write_json(path, record)
        if verbose:
            words = in_words(record, _OBJECTIVE.name)
            print(f"On all the data, training {index}: {words}", flush=True)
    records = [read_record(path, _OBJECTIVE.name) for path in sorted(directory.glob("training_*.json"))]
    good = [record for record in records if FAILED not in record]
    if not good:
        raise ValueError(f"All trainings on all the data failed, the first with {records[0][FAILED]}")
    # Among equals only the one that ended first has weights.
    best = min(
        good,
        key=lambda record: (
            record["metrics"][_OBJECTIVE.name],
            not _weights(directory, record["training"]).exists(),
        ),
    )
    weights = _weights(directory, best["training"])
    for other in directory.glob("training_*.weights.h5"):
        if other != weights:
            other.unlink()
    return load_weights(untrained, weights, f"Remove the folder {directory}, to train anew."), best


def _weights(directory, index):
    return directory / f"training_{index}.weights.h5"
