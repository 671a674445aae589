"""A search on one of the data sets by name: corrupt, search, table, pictures, and the command that trains."""

import dataclasses
import pathlib
import shlex

import keras
import numpy as np

from prl_keras import METHODS
from prl_keras.experiments import datasets, files, tuning_report
from prl_keras.experiments.hypermodel import RobustHyperModel
from prl_keras.experiments.networks import make_network
from prl_keras.experiments.training import corrupt
from prl_keras.experiments.tuning import make_tuner
from prl_keras.experiments.tuning_oracles import is_worker


def tune(
    config, space, tuner, objective, output_dir, *, max_trials=None, executions_per_trial=1,
    validation_split=0.2, overwrite=False, data_options=None,
):  # fmt: skip
    """Searches, writes trials.csv, trials.md, epsilon.png and best.json into `output_dir`, prints them.

    Training and validation labels are corrupted alike, as `config` says; the test labels are clean, and
    reported alone. Started again it goes on where it was.

    Args:
        config: A `RunConfig`: the data, their corruption, and what is not searched.
        space: The searched hyperparameters of `RobustHyperModel`, a dict.
        tuner, objective, max_trials, executions_per_trial, overwrite: As in `make_tuner`.
        output_dir: Made if missing.
        validation_split: As in `RobustTuner.search`.
        data_options: For `datasets.load`.

    Returns:
        The command line of binaries/train.py that trains the best trial on all the data; None for a worker of
        a search on several machines, which leaves table and pictures to the chief.

    Raises:
        ValueError: for an argument that does not suit, before the first trial; if all trials failed.
    """
    output_dir = pathlib.Path(output_dir)
    dataset = datasets.load(config.dataset, **(data_options or {}))
    space = {
        "method": config.method,
        "learning_rate": config.learning_rate,
        "batch_size": config.batch_size,
        **space,
    }
    methods = space["method"] if isinstance(space["method"], list) else [space["method"]]
    for method in methods:
        if method in METHODS:  # else RobustHyperModel says so
            dataclasses.replace(config, method=method).check_task(dataset.task)
    dataset = dataset.subset(config.train_size, config.test_size)
    targets, _ = corrupt(config, dataset)
    hypermodel = _hypermodel(config, dataset, space, methods, validation_split)
    search = make_tuner(
        tuner,
        hypermodel,
        objective,
        output_dir,
        epochs=config.epochs,
        max_trials=max_trials,
        executions_per_trial=executions_per_trial,
        seed=config.seed,
        overwrite=overwrite,
    )
    search.search(
        dataset.train_x,
        targets,
        validation_split=validation_split,
        test_data=(dataset.test_x, dataset.test_y),
    )
    if is_worker():
        return None
    return _report(output_dir, search.oracle.objective, config)


def _hypermodel(config, dataset, space, methods, validation_split):
    input_shape = dataset.train_x.shape[1:]
    # One network for all the methods: with group norm if one of them needs each example's own gradient.
    needy = [name for name in methods if name in METHODS and METHODS[name].score == "gradient"]
    network, norm = dataclasses.replace(config, method=(needy or [config.method])[0]).network_and_norm(
        input_shape
    )
    if dataset.task == "classification":
        loss, metrics = keras.losses.SparseCategoricalCrossentropy(from_logits=True), ["accuracy"]
    else:
        loss, metrics = keras.losses.MeanSquaredError(), ["r2_score"]
    return RobustHyperModel(
        # The seed is that of the execution, through NumPy's global one.
        lambda: make_network(network, input_shape, dataset.num_outputs, norm, seed=np.random.randint(2**31)),
        loss=loss,
        metrics=metrics,
        train_size=round((1 - validation_split) * len(dataset.train_x)),
        **space,
    )


def _report(output_dir, objective, config):
    executions = tuning_report.executions(output_dir)
    table = tuning_report.trials(executions, objective)
    with files.replacing(output_dir / "trials.csv") as temporary:
        table.to_csv(temporary, index=False)
    text = tuning_report.in_markdown(table)
    (output_dir / "trials.md").write_text(text + "\n")
    print(f"\n{text}\n")
    if objective.name not in table or table[objective.name].isna().all():
        raise ValueError(f"All trials failed, the first with {table['failure'].iloc[0]}")
    tuning_report.plot_epsilon(executions, objective, output_dir / "epsilon.png", config.epsilon)
    command = train_command(config, table.iloc[0])
    best = {
        name: getattr(value, "item", lambda value=value: value)() for name, value in table.iloc[0].items()
    }
    files.write_json(output_dir / "best.json", {"command": command, "values": best})
    print(f"Table and picture: {output_dir}\nThe best trial, on all the data:\n{command}")
    return command


def train_command(config, best):
    """The command line of binaries/train.py for the values of a row of the table of trials."""
    values = {
        **{field.name: getattr(config, field.name) for field in dataclasses.fields(config)},
        "method": best["method"],
        "assumed_epsilon": round(float(best["epsilon"]), 4),
        "ramp_epochs": int(best["ramp_epochs"]),
        "learning_rate": float(f"{best['learning_rate']:.4g}"),
        "batch_size": int(best["batch_size"]),
        "epochs": int(best["epochs"]),
    }
    shown = [f"--{name}={shlex.quote(str(value))}" for name, value in values.items() if value is not None]
    return f"python -m binaries.train {' '.join(shown)}"
