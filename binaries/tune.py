"""Searches epsilon, its ramp, the method, learning rate and batch size, with noisy validation labels.

python -m binaries.tune --dataset=digits --corruption=pairflip --epsilon=0.35 --objective=val_trimmed_loss
python -m binaries.tune --dataset=teacher --corruption=linadv --objective=val_trimmed_loss --tuner=grid \
    --assumed_epsilon=0,0.1,0.2,0.3,0.4,0.5

What is searched: low:high for a range, a,b,c for choices; one value is fixed. Started again, a search goes
on where it was. On several machines: the same command and a folder that all share, KERASTUNER_TUNER_ID=chief,
worker0, worker1, ..., and KERASTUNER_ORACLE_IP and KERASTUNER_ORACLE_PORT of the chief.
"""

import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from absl import app, flags

from prl_keras.experiments.config import CORRUPTIONS, RunConfig
from prl_keras.experiments.datasets import DATASETS
from prl_keras.experiments.networks import NETWORKS, NORMS
from prl_keras.experiments.tune import tune
from prl_keras.experiments.tuning_oracles import TUNERS

_DEFAULT = RunConfig()
flags.DEFINE_enum("dataset", _DEFAULT.dataset, list(DATASETS), "Data set.")
flags.DEFINE_enum("corruption", _DEFAULT.corruption, CORRUPTIONS, "Of training and validation targets.")
flags.DEFINE_float("epsilon", _DEFAULT.epsilon, "Fraction of the targets to corrupt, in [0, 1).")
flags.DEFINE_integer("noise_seed", _DEFAULT.noise_seed, "Seed of the corruption.")
flags.DEFINE_integer("epochs", _DEFAULT.epochs, "Epochs of a trial; of hyperband's longest.")
flags.DEFINE_enum("network", _DEFAULT.network, ["auto", *NETWORKS], "Network; auto fits the data.")
flags.DEFINE_enum("norm", _DEFAULT.norm, ["auto", *NORMS], "Normalization; auto fits the methods.")
flags.DEFINE_integer("train_size", None, "Search on so many examples, a fixed random choice.")
flags.DEFINE_integer("test_size", None, "Report on so many test examples.")
flags.DEFINE_integer("seed", _DEFAULT.seed, "Seed of the search, the weights and the batches.")

flags.DEFINE_string("method", _DEFAULT.method, "Searched: training methods.")
flags.DEFINE_string("assumed_epsilon", "0:0.6", "Searched: the fraction that a method is told.")
flags.DEFINE_string("ramp_epochs", "0", "Searched: epochs over which dropping rises from 0.")
flags.DEFINE_string("learning_rate", "0.001", "Searched: learning rate of Adam; a range in its logarithm.")
flags.DEFINE_string("batch_size", "128", "Searched: examples per step; of a range its powers of 2.")

flags.DEFINE_enum("tuner", "random", TUNERS, "How trials are chosen.")
flags.DEFINE_string("objective", None, "What the best trial has the best of: val_...", required=True)
flags.DEFINE_integer("max_trials", None, "At most; 15 for random and bayesian, else all.", lower_bound=1)
flags.DEFINE_integer(
    "executions_per_trial", 1, "Trainings of a trial, of which the mean counts.", lower_bound=1
)
flags.DEFINE_integer(
    "final_trainings", 3, "Networks of the chosen trial, on all the data; the best is kept.", lower_bound=1
)
flags.DEFINE_float("validation_split", 0.2, "Held out of the training data, in (0, 0.5].")
flags.DEFINE_string("output_dir", None, "Folder of the search; by default runs/tune-DATASET-....")
flags.DEFINE_bool("overwrite", False, "Replace the search in output_dir.")
flags.DEFINE_string("data_dir", None, "Folder of TensorFlow Datasets; their own default if left out.")
flags.DEFINE_bool("download", False, "Let TensorFlow Datasets fetch what is missing.")
flags.DEFINE_string("cache_dir", None, "Where features are kept; ~/.cache/prl_keras if left out.")


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unknown arguments {argv[1:]}; flags look like --tuner=random.")
    own_flags = flags.FLAGS.get_key_flags_for_module(sys.modules[__name__])
    try:
        tune(**{flag.name: flag.value for flag in own_flags})
    except (ValueError, OSError, ImportError) as error:
        raise app.UsageError(str(error)) from error


if __name__ == "__main__":
    app.run(main)
