"""Reproduces the paper's tables and figures: runs what is missing, then writes the paper's table beside ours.

python -m binaries.reproduce --table=1 --scale=cpu --data_dir=DIR --workers=2
python -m binaries.reproduce --figure=1
"""

import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from absl import app, flags

from prl_keras.experiments import reproduce
from prl_keras.experiments.protocol import SCALES
from prl_keras.experiments.strategies import STRATEGIES

flags.DEFINE_multi_enum("table", [], ["1", "2", "3", "4", "5", "6"], "Table of the paper; may be repeated.")
flags.DEFINE_multi_enum("figure", [], ["1", "2", "3"], "Figure of the paper; 2 goes with table 1, 3 with 2.")
flags.DEFINE_enum("scale", "cpu", SCALES, "paper: the exact protocol; cpu: at a size for two cores.")
flags.DEFINE_string(
    "output_dir", "results", "Gets SCALE/runs with a file per run, SCALE/tableN.md, ..., table4.md."
)
flags.DEFINE_string("data_dir", None, "Folder of TensorFlow Datasets; their own default if left out.")
flags.DEFINE_bool("download", False, "Let TensorFlow Datasets fetch what is missing.")
flags.DEFINE_string("cache_dir", None, "Where extracted features are kept; ~/.cache/prl_keras if left out.")
flags.DEFINE_list("rows", None, "Labels of rows, such as CF10-pf-45 or linadv:40; all if left out.")
flags.DEFINE_list("methods", None, "Names of methods; all of the table if left out.")
flags.DEFINE_list("seeds", None, "Seeds, such as 0,1,2; those of the protocol if left out.")
flags.DEFINE_integer("workers", 1, "Processes on this machine.", lower_bound=1)
flags.DEFINE_string("shard", "0/1", "i/n: of every n runs do the i-th, i from 0; for n machines.")
flags.DEFINE_enum("strategy", "one", STRATEGIES, "What each run trains on; see experiments/strategies.py.")
flags.DEFINE_integer("virtual_devices", None, "Split the CPU into so many, to try replicas.", lower_bound=1)
flags.DEFINE_integer("cluster_timeout", 600, "Seconds in which all of TF_CONFIG must come.", lower_bound=1)
flags.DEFINE_bool("dry_run", False, "List the runs that are missing, and do nothing else.")
flags.DEFINE_bool("report", False, "Run nothing: write tables and figures from the result files.")


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unknown arguments {argv[1:]}; flags look like --table=1.")
    own_flags = flags.FLAGS.get_key_flags_for_module(sys.modules[__name__])
    try:
        failed = reproduce.reproduce(**{flag.name: flag.value for flag in own_flags})
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        raise app.UsageError(str(error)) from error
    return 1 if failed else 0


if __name__ == "__main__":
    app.run(main)
