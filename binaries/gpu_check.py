"""Checks a GPU in a given time, for whoever has one for a quarter of an hour, and writes a page of findings.

python -m binaries.gpu_check --minutes=15 --output_dir=DIR --data_dir=DIR
python -m binaries.gpu_check --minutes=15 --output_dir=DIR --data_dir=DIR --part=cells
python -m binaries.gpu_check --minutes=2 --output_dir=DIR --rehearsal

In this order: the device, and whether it computes what a CPU does; the tests of the steps; the kernels of
each step; the seconds and memory of each method's step, with and without XLA, in float32 and bfloat16;
PyTorch's step, if it is installed; then as many runs of the paper's table 2 as fit, at the paper's scale.

It ends in time. Every result is written at once, to DIR/gpu_check and DIR/paper/runs, so that the same
command goes on where one was killed or ran out of time, without losing an epoch. DIR/gpu_check.md shows it
all. The table of the finished runs is written by

python -m binaries.reproduce --table=2 --scale=paper --output_dir=DIR --report
"""

import time
from typing import Any

from absl import flags

from binaries import door

_BEGUN = time.monotonic()  # importing TensorFlow takes seconds of the minutes

from prl_keras.experiments.gpu_check import check  # noqa: E402

flags.DEFINE_float("minutes", None, "How long all of it may take.", lower_bound=1, required=True)
flags.DEFINE_string("output_dir", None, "Gets gpu_check.md, the results, and the runs.", required=True)
flags.DEFINE_bool("rehearsal", False, "All parts at a tiny size, on a CPU too, to try them out.")
flags.DEFINE_multi_enum("part", [], list(check.PARTS), "Do these parts alone; may be repeated.")
door.data_flags()


def gpu_check(**options: Any) -> int:
    return int(check.gpu_check(begun=_BEGUN, **options))


if __name__ == "__main__":
    door.run(gpu_check, "--minutes=15")
