"""Reproduces the paper's tables and figures: makes the missing runs, then writes both tables side by side.

python -m binaries.reproduce --table=1 --scale=cpu --data_dir=DIR --workers=2
python -m binaries.reproduce --figure=1
"""

from typing import Any

from absl import flags

from binaries import door
from prl_keras.experiments.paper.protocol import SCALES
from prl_keras.experiments.programs import reproduce
from prl_keras.experiments.runs.networks import PRECISIONS
from prl_keras.experiments.runs.strategies import STRATEGIES

flags.DEFINE_multi_enum("table", [], ["1", "2", "3", "4", "5", "6"], "Table of the paper; may be repeated.")
flags.DEFINE_multi_enum("figure", [], ["1", "2", "3"], "Figure of the paper; 2 goes with table 1, 3 with 2.")
flags.DEFINE_enum("scale", "cpu", SCALES, "paper: the exact protocol; cpu: at a size for two cores.")
flags.DEFINE_enum(
    "precision", "float32", list(PRECISIONS), "What layers compute in; others than float32 have own tables."
)
flags.DEFINE_string(
    "output_dir", "results", "Gets SCALE/runs with a folder per run, SCALE/tableN.md, ..., table4.md."
)
door.data_flags()
flags.DEFINE_list("rows", None, "Labels of rows, such as CF10-pf-45 or linadv:40; all if left out.")
flags.DEFINE_list("methods", None, "Names of methods; all of the table if left out.")
flags.DEFINE_list("seeds", None, "Seeds, such as 0,1,2; those of the protocol if left out.")
flags.DEFINE_integer("workers", 1, "Processes on this machine.", lower_bound=1)
flags.DEFINE_string("shard", "0/1", "i/n: of every n runs do the i-th, i from 0; for n machines.")
door.device_flags("one", STRATEGIES)
flags.DEFINE_bool("dry_run", False, "List the runs that are missing, and do nothing else.")
flags.DEFINE_bool("report", False, "Run nothing: write tables and figures from the result files.")


def program(**options: Any) -> int:
    return int(reproduce.reproduce(**options))


if __name__ == "__main__":
    door.run(program, "--table=1")
