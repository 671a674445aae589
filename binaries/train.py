"""Trains one network (or pair) on corrupted targets and writes the run into a folder.

python -m binaries.train --dataset=digits --method=prl_l --corruption=symmetric --epsilon=0.5
python -m binaries.train --dataset=digits --method=prl_l --virtual_devices=2
"""

import dataclasses
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from absl import app, flags

from prl_keras import METHODS
from prl_keras.experiments.config import CORRUPTIONS, RunConfig
from prl_keras.experiments.datasets import DATASETS
from prl_keras.experiments.networks import NETWORKS, NORMS
from prl_keras.experiments.run import run
from prl_keras.experiments.strategies import STRATEGIES, is_chief, make_strategy

_DEFAULT = RunConfig()
flags.DEFINE_enum("dataset", _DEFAULT.dataset, list(DATASETS), "Data set.")
flags.DEFINE_enum("method", _DEFAULT.method, list(METHODS), "Training method.")
flags.DEFINE_enum("corruption", _DEFAULT.corruption, CORRUPTIONS, "Corruption of the training targets.")
flags.DEFINE_float("epsilon", _DEFAULT.epsilon, "Fraction of the training targets to corrupt, in [0, 1).")
flags.DEFINE_string(
    "assumed_epsilon", None, "Fraction that the method is told, or auto; the true one if left out."
)
flags.DEFINE_integer("ramp_epochs", _DEFAULT.ramp_epochs, "Epochs over which dropping rises from 0.")
flags.DEFINE_integer("epochs", _DEFAULT.epochs, "Passes over the training data.")
flags.DEFINE_integer("batch_size", _DEFAULT.batch_size, "Examples per step, of all replicas together.")
flags.DEFINE_float("learning_rate", _DEFAULT.learning_rate, "Learning rate of Adam.")
flags.DEFINE_enum("network", _DEFAULT.network, ["auto", *NETWORKS], "Network; auto fits the data.")
flags.DEFINE_enum("norm", _DEFAULT.norm, ["auto", *NORMS], "Normalization; auto fits the method.")
flags.DEFINE_integer("train_size", None, "Train on so many examples, a fixed random choice; all if left out.")
flags.DEFINE_integer("test_size", None, "Test on so many examples; all if left out.")
flags.DEFINE_integer("seed", _DEFAULT.seed, "Seed of initial weights, dropout and batches.")
flags.DEFINE_integer("noise_seed", _DEFAULT.noise_seed, "Seed of the corruption.")
_OUTPUT_DIR = flags.DEFINE_string(
    "output_dir", None, "Folder of the run; by default runs/DATASET-METHOD-...."
)
_DATA = {
    "data_dir": flags.DEFINE_string("data_dir", None, "Folder of TensorFlow Datasets; else their default."),
    "download": flags.DEFINE_bool("download", False, "Let TensorFlow Datasets fetch what is missing."),
    "cache_dir": flags.DEFINE_string("cache_dir", None, "Where features are kept; else ~/.cache/prl_keras."),
}
_STRATEGY = {
    "name": flags.DEFINE_enum(
        "strategy", "auto", STRATEGIES, "Devices to train on; see experiments/strategies."
    ),
    "virtual_devices": flags.DEFINE_integer(
        "virtual_devices", None, "Split the CPU into so many devices, to try replicas.", lower_bound=1
    ),
    "cluster_timeout": flags.DEFINE_integer(
        "cluster_timeout", 600, "Seconds in which all machines of TF_CONFIG must come.", lower_bound=1
    ),
}
_RESUME = flags.DEFINE_bool("resume", False, "Go on with the run in output_dir.")
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace the run in output_dir.")


def _fraction(text):
    """A number, or what is none, for `RunConfig` to look at."""
    try:
        return None if text is None else float(text)
    except ValueError:
        return text


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unknown arguments {argv[1:]}; flags look like --method=prl_l.")
    values = {field.name: flags.FLAGS[field.name].value for field in dataclasses.fields(RunConfig)}
    try:
        values["assumed_epsilon"] = _fraction(values["assumed_epsilon"])
        config = RunConfig(**values)
        name = f"{config.dataset}-{config.method}-{config.corruption}-{config.epsilon:g}-seed{config.seed}"
        output_dir = _OUTPUT_DIR.value or os.path.join("runs", name)
        data_options = {name: flag.value for name, flag in _DATA.items()}
        strategy = make_strategy(**{name: flag.value for name, flag in _STRATEGY.items()})
        result = run(
            config,
            output_dir,
            _RESUME.value,
            _OVERWRITE.value,
            data_options=data_options,
            strategy=strategy,
        )
    except (ValueError, OSError, ImportError) as error:
        raise app.UsageError(str(error)) from error
    if not is_chief(strategy):
        return
    print(
        f"{config.method}: test {result['test_metric']} {result['test_mean']:.4f} over the last epochs, "
        f"{result['seconds_per_epoch']:.2f} s per epoch; {output_dir}"
    )


if __name__ == "__main__":
    app.run(main)
