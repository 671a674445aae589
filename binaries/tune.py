"""Searches epsilon, its ramp, the method, learning rate and batch size, with noisy validation labels.

python -m binaries.tune --dataset=digits --corruption=pairflip --epsilon=0.35 --objective=val_trimmed_loss
python -m binaries.tune --dataset=teacher --corruption=linadv --objective=val_trimmed_loss --tuner=grid \
    --assumed_epsilon=0,0.1,0.2,0.3,0.4,0.5

What is searched: low:high for a range, a,b,c for choices; one value is fixed. Started again, a search goes
on where it was. On several machines: the same command and a folder that all share, KERASTUNER_TUNER_ID=chief,
worker0, worker1, ..., and KERASTUNER_ORACLE_IP and KERASTUNER_ORACLE_PORT of the chief.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from absl import app, flags

from prl_keras.experiments.config import CORRUPTIONS, RunConfig
from prl_keras.experiments.datasets import DATASETS
from prl_keras.experiments.networks import NETWORKS, NORMS
from prl_keras.experiments.tune import tune
from prl_keras.experiments.tuning_oracles import TUNERS

_DEFAULT = RunConfig()
_CONFIG = {
    "dataset": flags.DEFINE_enum("dataset", _DEFAULT.dataset, list(DATASETS), "Data set."),
    "corruption": flags.DEFINE_enum(
        "corruption", _DEFAULT.corruption, CORRUPTIONS, "Of training and validation targets."
    ),
    "epsilon": flags.DEFINE_float(
        "epsilon", _DEFAULT.epsilon, "Fraction of the targets to corrupt, in [0, 1)."
    ),
    "epochs": flags.DEFINE_integer("epochs", _DEFAULT.epochs, "Of a trial; of hyperband's longest."),
    "network": flags.DEFINE_enum(
        "network", _DEFAULT.network, ["auto", *NETWORKS], "Network; auto fits the data."
    ),
    "norm": flags.DEFINE_enum(
        "norm", _DEFAULT.norm, ["auto", *NORMS], "Normalization; auto fits the method."
    ),
    "train_size": flags.DEFINE_integer("train_size", None, "So many examples, a fixed random choice."),
    "test_size": flags.DEFINE_integer("test_size", None, "Report on so many test examples."),
    "seed": flags.DEFINE_integer("seed", _DEFAULT.seed, "Seed of the search, the weights and the batches."),
    "noise_seed": flags.DEFINE_integer("noise_seed", _DEFAULT.noise_seed, "Seed of the corruption."),
}
_SPACE = {
    "method": (str, flags.DEFINE_string("method", "prl_l", "Training methods, separated by commas.")),
    "epsilon": (float, flags.DEFINE_string("assumed_epsilon", "0:0.6", "Fraction that a method is told.")),
    "ramp_epochs": (int, flags.DEFINE_string("ramp_epochs", "0", "Epochs over which dropping rises from 0.")),
    "learning_rate": (
        float,
        flags.DEFINE_string("learning_rate", "0.001", "Of Adam; a range in logarithms."),
    ),
    "batch_size": (
        int,
        flags.DEFINE_string("batch_size", "128", "Examples per step; of a range powers of 2."),
    ),
}
_SEARCH = {
    "tuner": flags.DEFINE_enum("tuner", "random", TUNERS, "How trials are chosen."),
    "objective": flags.DEFINE_string("objective", None, "val_trimmed_loss, val_accuracy, ...", required=True),
    "max_trials": flags.DEFINE_integer("max_trials", 15, "Trials at most.", lower_bound=1),
    "executions_per_trial": flags.DEFINE_integer("executions_per_trial", 1, "Trainings each.", lower_bound=1),
    "validation_split": flags.DEFINE_float("validation_split", 0.2, "Held out of the training data."),
    "overwrite": flags.DEFINE_bool("overwrite", False, "Replace the search in output_dir."),
}
_OUTPUT_DIR = flags.DEFINE_string(
    "output_dir", None, "Folder of the search; by default runs/tune-DATASET-...."
)
_DATA = {
    "data_dir": flags.DEFINE_string("data_dir", None, "Folder of TensorFlow Datasets; else their default."),
    "download": flags.DEFINE_bool("download", False, "Let TensorFlow Datasets fetch what is missing."),
    "cache_dir": flags.DEFINE_string("cache_dir", None, "Where features are kept; else ~/.cache/prl_keras."),
}


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unknown arguments {argv[1:]}; flags look like --tuner=random.")
    try:
        config = RunConfig(**{name: flag.value for name, flag in _CONFIG.items()})
        name = f"tune-{config.dataset}-{config.corruption}-{config.epsilon:g}-seed{config.seed}"
        tune(
            config,
            {name: _values(flag, kind) for name, (kind, flag) in _SPACE.items()},
            output_dir=_OUTPUT_DIR.value or os.path.join("runs", name),
            data_options={name: flag.value for name, flag in _DATA.items()},
            **{name: flag.value for name, flag in _SEARCH.items()},
        )
    except (ValueError, OSError, ImportError) as error:
        raise app.UsageError(str(error)) from error


def _values(flag, kind):
    """(low, high) of "low:high", a list of "a,b,c", else the value itself."""
    text = flag.value
    try:
        if ":" in text:
            return tuple(kind(part) for part in text.split(":"))
        values = [kind(part.strip()) for part in text.split(",")]
    except ValueError:
        raise ValueError(
            f"--{flag.name}={text} must be a value, low:high, or values separated by commas."
        ) from None
    return values if len(values) > 1 else values[0]


if __name__ == "__main__":
    app.run(main)
