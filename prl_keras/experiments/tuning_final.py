"""The setting that a search found, trained on all the data: several networks, and the best of them.

hp = tuner.get_best_hyperparameters()[0]
model, record = train_on_all(hypermodel, hp, x, y, "runs/search/final", epochs=30)
"""

import functools
import pathlib

import keras_tuner

from prl_keras import files
from prl_keras.experiments import tuning_checks
from prl_keras.experiments.tuning_execution import FAILED, execute, keep_if_best
from prl_keras.experiments.tuning_objectives import TRIMMED_LOSS
from prl_keras.keras_gaps.fresh_start import start_as
from prl_keras.validate import check_integer

_OBJECTIVE = keras_tuner.Objective(f"train_{TRIMMED_LOSS}", "min")


def train_on_all(
    hypermodel, hp, x, y, directory, *, epochs, trainings=3, seed=0, test_data=None, verbose=True
):
    """Trains networks of one setting on all the data, and gives the one of the lowest trimmed loss.

    A search holds data out, and networks of one setting differ: with some initial weights a robust method
    takes the wrong labels of a class for the right ones. The trimmed loss (`tuning_objectives.trimmed_loss`)
    of the training data themselves tells such networks, with the labels as given: of one setting, all have
    dropped as much, and what they dropped they have not learnt by heart.

    Each training is a file, written when it has ended. Called again after a kill, it repeats none that ended
    well.

    Args:
        hypermodel: A `RobustHyperModel`.
        hp: The values, as `get_best_hyperparameters` of a tuner gives them.
        x, y: Arrays `[n, ...]`, n >= 2.
        directory: Made if missing.
        epochs: Of each training.
        trainings: How many, at least 1; more that are in the directory count as well.
        seed: Of the first; the next one's is one more.
        test_data: `(x, y)`, clean. Reported as `test_...`; nothing is chosen by it.
        verbose: Whether each training says a line when it has ended.

    Returns:
        The compiled model, and its record: a dict of training, seed, the searched values, metrics, seconds.

    Raises:
        OSError: if a file cannot be written.
        ValueError: for an argument outside of the above; if directory has trainings of another network,
            other data, values, loss or optimizer, or damaged files; if all trainings failed.
    """
    epochs, seed = check_integer("epochs", epochs, 1), check_integer("seed", seed, 0)
    trainings = check_integer("trainings", trainings, 1)
    x, y = tuning_checks.check_pair("x and y", (x, y))
    test_data = tuning_checks.check_pair("test_data", test_data)
    hypermodel, directory = hypermodel.of_size(len(x)), pathlib.Path(directory)
    settings = {**hypermodel.values(hp), **hypermodel.settings, "epochs": epochs, "seed": seed}
    untrained = hypermodel.build(hp)
    untrained(x[:1])  # builds what builds itself when called
    settings |= {
        "network": tuning_checks.describe(untrained),
        "data": f"{len(x)} examples, checksum {tuning_checks.checksum(x, y)}",
        "test_data": test_data and tuning_checks.checksum(*test_data),
    }
    tuning_checks.check_settings(directory / "settings.json", settings, "training", "or take another folder")
    tuning_checks.make_folder(directory)
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
        if path.exists() and FAILED not in files.read_json(path):
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
            keep=functools.partial(_keep, directory, index),
        )
        files.write_json(path, record)
        if verbose:
            print(_in_words(record), flush=True)
    records = [files.read_json(path) for path in sorted(directory.glob("training_*.json"))]
    good = [record for record in records if FAILED not in record]
    if not good:
        raise ValueError(f"All trainings on all the data failed, the first with {records[0][FAILED]}")
    # Of equal ones only the first that ended has weights.
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
    return _load(untrained, weights), best


def _weights(directory, index):
    return directory / f"training_{index}.weights.h5"


def _keep(directory, index, model, metrics):
    """The weights of each that is the best so far have a file; a record is written after its weights."""
    keep_if_best(model, _weights(directory, index), metrics, _OBJECTIVE, directory.glob("training_*.json"))


def _load(model, weights):
    model.optimizer.build(model.trainable_variables)
    try:
        model.load_weights(weights)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{weights} is damaged or missing: {error}. Remove the folder {weights.parent}, to train anew."
        ) from error
    return model


def _in_words(record):
    outcome = record.get(FAILED) or f"{_OBJECTIVE.name} {record['metrics'][_OBJECTIVE.name]:.5g}"
    return f"On all the data, training {record['training']}: {outcome} [{record['seconds']:.1f} s]"
