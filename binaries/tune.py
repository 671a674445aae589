"""Searches epsilon, its ramp, the method, learning rate and batch size, with noisy validation labels.

python -m binaries.tune --dataset=digits --corruption=pairflip --epsilon=0.35 --objective=val_trimmed_loss
python -m binaries.tune --dataset=teacher --corruption=linadv --objective=val_trimmed_loss --tuner=grid \
    --assumed_epsilon=0,0.1,0.2,0.3,0.4,0.5

To search a flag, write low:high for a range or a,b,c for choices; a single value is fixed. A search that is
started again resumes. On several machines, run the same command with a shared folder, and set
KERASTUNER_TUNER_ID=chief, worker0, worker1, ..., and KERASTUNER_ORACLE_IP and KERASTUNER_ORACLE_PORT of the
chief.
"""

from typing import Any

from absl import flags

from binaries import door
from prl_keras.experiments.programs.tune import tune
from prl_keras.experiments.runs.config import RunConfig
from prl_keras.tuning.oracles import TUNERS

_DEFAULT = RunConfig()
door.config_flags(_DEFAULT)
door.data_flags()

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


def program(**options: Any) -> None:
    tune(**options)


if __name__ == "__main__":
    door.run(program, "--tuner=random")
