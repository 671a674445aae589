"""Trains a network (or pair) on corrupted targets and writes the run to a folder.

python -m binaries.train --dataset=digits --method=prl_l --corruption=symmetric --epsilon=0.5
python -m binaries.train --dataset=digits --method=prl_l --virtual_devices=2
"""

import dataclasses
import os
from typing import Any

from absl import flags

from binaries import door
from prl_keras import METHODS
from prl_keras.experiments.runs.config import RunConfig
from prl_keras.experiments.runs.run import run
from prl_keras.experiments.runs.strategies import STRATEGIES, is_chief, make_strategy

_DEFAULT = RunConfig()
door.config_flags(_DEFAULT)
flags.DEFINE_enum("method", _DEFAULT.method, list(METHODS), "Training method.")
flags.DEFINE_string(
    "assumed_epsilon", None, "Fraction that the method is told, or auto; the true one if left out."
)
flags.DEFINE_integer("ramp_epochs", _DEFAULT.ramp_epochs, "Epochs over which dropping rises from 0.")
flags.DEFINE_integer("batch_size", _DEFAULT.batch_size, "Examples per step, of all replicas together.")
flags.DEFINE_float("learning_rate", _DEFAULT.learning_rate, "Learning rate of Adam.")
flags.DEFINE_float("ema", 0.0, "Momentum per step of an average of the weights that is tested; 0: none.")
flags.DEFINE_bool("aum_cut", False, "Leave out what the area under the margin flags in two trainings.")
flags.DEFINE_bool("recompute", False, "A second pass: batch norm sees the kept examples alone.")
flags.DEFINE_string("output_dir", None, "Folder of the run; by default runs/DATASET-METHOD-....")
flags.DEFINE_bool("resume", False, "Go on with the run in output_dir.")
flags.DEFINE_bool("overwrite", False, "Replace the run in output_dir.")
door.data_flags()
door.device_flags("auto", STRATEGIES)


def train(
    output_dir: str | None,
    resume: bool,
    overwrite: bool,
    strategy: str,
    virtual_devices: int | None,
    cluster_timeout: int,
    **options: Any,
) -> None:
    values = {field.name: options.pop(field.name) for field in dataclasses.fields(RunConfig)}
    values["assumed_epsilon"] = _fraction(values["assumed_epsilon"])
    config = RunConfig(**values)
    name = f"{config.dataset}-{config.method}-{config.corruption}-{config.epsilon:g}-seed{config.seed}"
    output_dir = output_dir or os.path.join("runs", name)
    made = make_strategy(strategy, virtual_devices, cluster_timeout)
    result = run(config, output_dir, resume, overwrite, data_options=options, strategy=made)
    if is_chief(made):
        print(
            f"{config.method}: test {result['test_metric']} {result['test_mean']:.4f} over the last "
            f"epochs, {result['seconds_per_epoch']:.2f} s per epoch; {output_dir}"
        )


def _fraction(text):
    """The text as a number if it is one. `RunConfig` rejects other text than "auto"."""
    try:
        return None if text is None else float(text)
    except ValueError:
        return text


if __name__ == "__main__":
    door.run(train, "--method=prl_l")
