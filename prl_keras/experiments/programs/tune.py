"""A search on a named data set: corrupts, searches, writes table and picture, and trains the best trial."""

import contextlib
import dataclasses
import pathlib
import shlex
from typing import Any

import numpy as np

from prl_keras import METHODS, files
from prl_keras.experiments.data.load import load
from prl_keras.experiments.runs.config import RunConfig
from prl_keras.experiments.runs.metrics import METRICS
from prl_keras.experiments.runs.models import task_loss
from prl_keras.experiments.runs.networks import make_network
from prl_keras.experiments.runs.training import corrupt
from prl_keras.tuning import folder, report
from prl_keras.tuning.checks import make_folder
from prl_keras.tuning.final import train_on_all
from prl_keras.tuning.hypermodel import RobustHyperModel
from prl_keras.tuning.oracles import is_distributed, is_worker
from prl_keras.tuning.tuner import make_tuner
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
    *,
    tuner: str,
    objective: Any,
    output_dir: pathlib.Path | str | None = None,
    max_trials: int | None = None,
    executions_per_trial: int = 1,
    final_trainings: int = 3,
    validation_split: float = 0.2,
    overwrite: bool = False,
    data_dir: pathlib.Path | str | None = None,
    download: bool = False,
    cache_dir: pathlib.Path | str | None = None,
    method: str = "prl_l",
    assumed_epsilon: str = "0:0.6",
    ramp_epochs: str = "0",
    learning_rate: str = "0.001",
    batch_size: str = "128",
    **fields: Any,
) -> str | None:
    """Searches, prints the results, writes trials.csv, trials.md, epsilon.png, best.json and model.keras.

    Training and validation labels are corrupted alike. Test labels are clean and are only reported. If it
    is started again, the search resumes.

    The arguments are the flags of binaries/tune.py. Those that are searched are text: a fixed value, "a,b,c"
    for choices, or "low:high". model.keras is the best of `final_trainings` networks that are trained on all
    data with the chosen trial's settings (`final.train_on_all`).

    Returns:
        The command line of binaries/train.py that trains the trial chosen by `report.chosen` on all data.
        None for a worker of a search on several machines, where the chief writes table, picture and model.

    Raises:
        ValueError: for an invalid argument, before the first trial; if all trials failed.
        OSError: if another process uses output_dir, or it cannot be written.
    """
    final_trainings = check_integer("final_trainings", final_trainings, 1)
    texts = (method, assumed_epsilon, ramp_epochs, learning_rate, batch_size)
    space = {name: _values(name, text, kind) for (name, kind), text in zip(_SEARCHED.items(), texts)}
    space["epsilon"] = space.pop("assumed_epsilon")
    methods = space["method"] if isinstance(space["method"], list) else [space["method"]]
    config = RunConfig(**fields, method=methods[0])
    if output_dir is None:
        name = f"tune-{config.dataset}-{config.corruption}-{config.epsilon:g}-seed{config.seed}"
        output_dir = pathlib.Path("runs") / name
    output_dir = pathlib.Path(output_dir)
    dataset = load(config.dataset, data_dir=data_dir, download=download, cache_dir=cache_dir)
    for name in methods:
        dataclasses.replace(config, method=name).check_task(dataset.task)
    dataset = dataset.subset(config.train_size, config.test_size)
    targets, _ = corrupt(config, dataset)
    # One network for all methods: with group norm if one of them needs per-example gradients.
    needy = [name for name in methods if METHODS[name].score == "gradient"]
    strictest = dataclasses.replace(config, method=[*needy, *methods][0])
    network, norm = strictest.network_and_norm(dataset.train_x.shape[1:])
    config = dataclasses.replace(config, network=network, norm=norm)
    if max_trials is None and tuner in ("random", "bayesian"):
        max_trials = _TRIALS
    make_folder(output_dir)
    with contextlib.nullcontext() if is_worker() else files.locked(output_dir):
        if not is_distributed():
            folder.remove_unfinished(output_dir)
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
        with files.replacing(output_dir / folder.MODEL) as temporary:
            model.save(temporary)
        files.write_json(output_dir / folder.BEST, {**best, "model": record})
    shown = [f"{name} {value:.4g}" for name, value in record["metrics"].items() if value is not None]
    print(f"The best of them, {output_dir / folder.MODEL}: {', '.join(shown)}")
    return best["command"]


def train_command(config: RunConfig, best: Any, data_flags: dict[str, Any] | None = None) -> str:
    """The command line of binaries/train.py for `best`, a row of the table of trials.

    `config` has the data; `data_flags` are the flags that locate them, of which None values are left out.
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
    """(low, high) for "low:high", a list for "a,b,c", else the single value."""
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
        # The execution sets NumPy's global seed, which sets this one.
        lambda: make_network(
            config.network,
            dataset.train_x.shape[1:],
            dataset.num_outputs,
            config.norm,
            np.random.randint(2**31),
            config.precision,
        ),
        loss=task_loss(dataset.task),
        metrics=[METRICS[dataset.task].name],
        train_size=round((1 - validation_split) * len(dataset.train_x)),
        **space,
    )


def _report(output_dir, search, config, data_flags):
    """Writes table, picture and best.json; returns the chosen trial's values and its command."""
    objective = search.oracle.objective
    executions = report.executions(output_dir)
    table = report.trials(executions, objective)
    with files.replacing(output_dir / folder.TRIALS) as temporary:
        table.to_csv(temporary, index=False)
    choices = report.choices(executions)
    text = f"{report.in_markdown(table)}\n\n{report.in_markdown(choices)}"
    (output_dir / folder.TABLE).write_text(text + "\n")
    print(f"\n{text}\n")
    chosen = report.chosen(executions, objective)
    if chosen is None:
        raise ValueError(f"All trials failed, the first with {table['failure'].iloc[0]}")
    report.plot_epsilon(executions, objective, output_dir / folder.PICTURE, config.epsilon)
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
    files.write_json(output_dir / folder.BEST, best)
    return best
