"""Measures what each method costs, in seconds a step and in memory, as ratios to plain training.

python -m binaries.benchmark
python -m binaries.benchmark --suite=step --peers --authors_dir=DIR
python -m binaries.benchmark --suite=batch --suite=width --suite=mlp --suite=methods
python -m binaries.benchmark --suite=kernels
python -m binaries.benchmark --profile
"""

import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from absl import app, flags

from prl_keras.experiments import benchmark
from prl_keras.experiments.benchmark_cases import SUITES
from prl_keras.experiments.benchmark_kernels import KERNELS

flags.DEFINE_multi_enum("suite", ["step"], [*SUITES, KERNELS], "What to measure; may be repeated.")
flags.DEFINE_integer("rounds", 7, "How often each case is timed.", lower_bound=1)
flags.DEFINE_bool("memory", True, "Measure peak memory too, each case in a process of its own.")
flags.DEFINE_bool("peers", False, "Add PyTorch and Opacus; needs pip install -r requirements-peers.txt.")
flags.DEFINE_string("authors_dir", None, "Checkout of github.com/illidanlab/PRL; adds the authors' PRL(L).")
flags.DEFINE_string(
    "output_dir", "results/benchmark", "Gets SUITE.json, SUITE.md and SUITE.png (kernels: none)."
)
flags.DEFINE_bool("profile", False, "Write profile.md instead, where the time of a step goes.")
flags.DEFINE_bool("report", False, "Measure nothing: write table and picture from SUITE.json.")
flags.DEFINE_integer("virtual_devices", None, "Share the batches out to so many CPU devices.", lower_bound=1)


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unknown arguments {argv[1:]}; flags look like --suite=step.")
    own_flags = flags.FLAGS.get_key_flags_for_module(sys.modules[__name__])
    try:
        paths = benchmark.benchmark(**{flag.name: flag.value for flag in own_flags})
    except (ValueError, OSError, ImportError) as error:
        raise app.UsageError(str(error)) from error
    print("\n\n".join(path.read_text() for path in paths))


if __name__ == "__main__":
    app.run(main)
