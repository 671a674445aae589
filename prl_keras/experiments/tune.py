"""A search on one of the data sets by name: corrupt, search, table, pictures, and the command that trains."""

import contextlib
import dataclasses
import pathlib
import shlex

import numpy as np

from prl_keras import METHODS, files
from prl_keras.experiments import datasets, tuning_folder, tuning_report
from prl_keras.experiments.config import RunConfig
from prl_keras.experiments.hypermodel import RobustHyperModel
from prl_keras.experiments.networks import make_network
from prl_keras.experiments.training import METRICS, corrupt, task_loss
from prl_keras.experiments.tuning import make_tuner
from prl_keras.experiments.tuning_checks import make_folder
from prl_keras.experiments.tuning_final import train_on_all
from prl_keras.experiments.tuning_oracles import is_distributed, is_worker
from prl_keras.validate import check_integer

_TRIALS = 15
_SEARCHED = {
    "method": str,
    "assumed_epsilon": float,
    "ramp_epochs": int,
    "learning_rate": float,
    "batch_size": int,
}


def tune(
    *, tuner, objective, output_dir=None, max_trials=None, executions_per_trial=1, final_trainings=3,
    validation_split=0.2, overwrite=False, data_dir=None, download=False, cache_dir=None,
    method="prl_l", assumed_epsilon="0:0.6", ramp_epochs="0", learning_rate="0.001", batch_size="128",
    **config,
):  # fmt: skip
    """Searches, prints what was found, writes trials.csv, trials.md, epsilon.png, best.json and model.keras.

    Training and validation labels are corrupted alike; the test labels are clean, and reported alone. Started
    again it goes on where it was.

    Args:
        tuner, objective, executions_per_trial, overwrite: As in `make_tuner`.
        max_trials: Trials at most; None is 15 for random and bayesian, and all of the others.
        output_dir: Made if missing.
        final_trainings: How many networks of the chosen trial's setting are trained on all the data at the
            end; model.keras is the best of them (`tuning_final.train_on_all`).
        validation_split: As in `RobustTuner.search`.
        data_dir, download, cache_dir: For `datasets.load`.
        method, assumed_epsilon, ramp_epochs, learning_rate, batch_size: As text: a value, which is fixed,
            "a,b,c" for choices, or "low:high"; of `RobustHyperModel`.
        **config: Further fields of `RunConfig`: the data, their corruption, and what is not searched.

    Returns:
        The command line of binaries/train.py that trains the trial that `tuning_report.chosen` chooses on all
        the data; None for a worker of a search on several machines, which leaves table, pictures and model to
        the chief.

    Raises:
        ValueError: for an argument that does not suit, before the first trial; if all trials failed.
        OSError: if another process is at work in output_dir, or it cannot be written.
    """
    final_trainings = check_integer("final_trainings", final_trainings, 1)
    texts = (method, assumed_epsilon, ramp_epochs, learning_rate, batch_size)
    space = {name: _values(name, text, kind) for (name, kind), text in zip(_SEARCHED.items(), texts)}
    space["epsilon"] = space.pop("assumed_epsilon")
    methods = space["method"] if isinstance(space["method"], list) else [space["method"]]
    config = RunConfig(**config, method=methods[0])
    if output_dir is None:
        name = f"tune-{config.dataset}-{config.corruption}-{config.epsilon:g}-seed{config.seed}"
        output_dir = pathlib.Path("runs") / name
    output_dir = pathlib.Path(output_dir)
    dataset = datasets.load(config.dataset, data_dir=data_dir, download=download, cache_dir=cache_dir)
    for name in methods:
        dataclasses.replace(config, method=name).check_task(dataset.task)
    dataset = dataset.subset(config.train_size, config.test_size)
    targets, _ = corrupt(config, dataset)
    # One network for all the methods: with group norm if one of them needs each example's own gradient.
    needy = [name for name in methods if METHODS[name].score == "gradient"]
    strictest = dataclasses.replace(config, method=[*needy, *methods][0])
    network, norm = strictest.network_and_norm(dataset.train_x.shape[1:])
    config = dataclasses.replace(config, network=network, norm=norm)
    if max_trials is None and tuner in ("random", "bayesian"):
        max_trials = _TRIALS
    make_folder(output_dir)
    with contextlib.nullcontext() if is_worker() else files.locked(output_dir):
        if not is_distributed():
            tuning_folder.remove_unfinished(output_dir)
        search = make_tuner(
            tuner,
            _hypermodel(config, dataset, space, validation_split),
            objective,
            output_dir,
            epochs=config.epochs,
            max_trials=max_trials,
            executions_per_trial=executions_per_trial,
            seed=config.seed,
            overwrite=overwrite,
        )
        test_data = (dataset.test_x, dataset.test_y)
        search.search(dataset.train_x, targets, validation_split=validation_split, test_data=test_data)
        if is_worker():
            return None
        best = _report(output_dir, search, config, {"data_dir": data_dir, "cache_dir": cache_dir})
        trial = search.oracle.get_trial(best["values"]["trial"])
        model, record = train_on_all(
            search.hypermodel,
            trial.hyperparameters,
            dataset.train_x,
            targets,
            pathlib.Path(search.get_trial_dir(trial.trial_id)) / "on_all_data",
            epochs=int(best["values"]["epochs"]),
            trainings=final_trainings,
            seed=config.seed,
            test_data=test_data,
        )
        with files.replacing(output_dir / tuning_folder.MODEL) as temporary:
            model.save(temporary)
        files.write_json(output_dir / tuning_folder.BEST, {**best, "model": record})
    shown = [f"{name} {value:.4g}" for name, value in record["metrics"].items() if value is not None]
    print(f"The best of them, {output_dir / tuning_folder.MODEL}: {', '.join(shown)}")
    return best["command"]


def train_command(config, best, data_flags=None):
    """The command line of binaries/train.py for the values of a row of the table of trials.

    Args:
        config: The `RunConfig` of the data.
        best: The row.
        data_flags: Where the data are, by name of the flag; None is left out.
    """
    values = {
        **{field.name: getattr(config, field.name) for field in dataclasses.fields(config)},
        "method": best["method"],
        "assumed_epsilon": round(float(best["epsilon"]), 4),
        "ramp_epochs": int(best["ramp_epochs"]),
        "learning_rate": float(f"{best['learning_rate']:.4g}"),
        "batch_size": int(best["batch_size"]),
        "epochs": int(best["epochs"]),
        **(data_flags or {}),
    }
    shown = [f"--{name}={shlex.quote(str(value))}" for name, value in values.items() if value is not None]
    return f"python -m binaries.train {' '.join(shown)}"


def _values(name, text, kind):
    """(low, high) of "low:high", a list of "a,b,c", else the value itself."""
    try:
        if ":" in text:
            return tuple(kind(part) for part in text.split(":"))
        values = [kind(part.strip()) for part in text.split(",")]
    except ValueError:
        raise ValueError(
            f"{name}={text!r} must be a value, low:high, or values separated by commas."
        ) from None
    return values if len(values) > 1 else values[0]


def _hypermodel(config, dataset, space, validation_split):
    return RobustHyperModel(
        # The seed is that of the execution, through NumPy's global one.
        lambda: make_network(
            config.network,
            dataset.train_x.shape[1:],
            dataset.num_outputs,
            config.norm,
            seed=np.random.randint(2**31),
        ),
        loss=task_loss(dataset.task),
        metrics=[METRICS[dataset.task]],
        train_size=round((1 - validation_split) * len(dataset.train_x)),
        **space,
    )


def _report(output_dir, search, config, data_flags):
    """Table and picture; gives the chosen trial's values and its command, and writes them."""
    objective = search.oracle.objective
    executions = tuning_report.executions(output_dir)
    table = tuning_report.trials(executions, objective)
    with files.replacing(output_dir / tuning_folder.TRIALS) as temporary:
        table.to_csv(temporary, index=False)
    choices = tuning_report.choices(executions)
    text = f"{tuning_report.in_markdown(table)}\n\n{tuning_report.in_markdown(choices)}"
    (output_dir / tuning_folder.TABLE).write_text(text + "\n")
    print(f"\n{text}\n")
    chosen = tuning_report.chosen(executions, objective)
    if chosen is None:
        raise ValueError(f"All trials failed, the first with {table['failure'].iloc[0]}")
    tuning_report.plot_epsilon(executions, objective, output_dir / tuning_folder.PICTURE, config.epsilon)
    command = train_command(config, chosen, data_flags)
    values = chosen.to_dict()
    values = {
        name: value.item() if isinstance(value, np.generic) else value for name, value in values.items()
    }
    print(f"Table and picture: {output_dir}")
    print(
        f"Chosen: trial {chosen['trial']}, of those within one standard error of the best "
        f"({chosen['standard_error']:.3g}) that of the largest epsilon. "
        f"Now it is trained on all the data. A command for one such training:\n{command}"
    )
    best = {"command": command, "values": values}
    files.write_json(output_dir / tuning_folder.BEST, best)
    return best
