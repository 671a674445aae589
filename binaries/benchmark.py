"""Measures the cost of each method in seconds per step and in memory, as ratios to plain training.

python -m binaries.benchmark
python -m binaries.benchmark --suite=step --peers --authors_dir=DIR
python -m binaries.benchmark --suite=batch --suite=width --suite=mlp --suite=methods
python -m binaries.benchmark --suite=kernels
"""

from typing import Any

from absl import flags

from binaries import door
from prl_keras.experiments.benchmark import measure
from prl_keras.experiments.benchmark.kernels import KERNELS
from prl_keras.experiments.benchmark.suites import SUITES

flags.DEFINE_multi_enum("suite", ["step"], [*SUITES, KERNELS], "What to measure; may be repeated.")
flags.DEFINE_integer("rounds", 7, "How often each case is timed.", lower_bound=1)
flags.DEFINE_bool("memory", True, "Measure peak memory too, each case in a process of its own.")
flags.DEFINE_bool("peers", False, "Add PyTorch and Opacus; needs pip install -r requirements-peers.txt.")
flags.DEFINE_string("authors_dir", None, "Checkout of github.com/illidanlab/PRL; adds the authors' PRL(L).")
flags.DEFINE_string(
    "output_dir", "results/benchmark", "Gets SUITE.json, SUITE.md and SUITE.png (kernels: none)."
)
flags.DEFINE_bool("report", False, "Measure nothing: write table and picture from SUITE.json.")
flags.DEFINE_integer("virtual_devices", None, "Share the batches out to so many CPU devices.", lower_bound=1)


def benchmark(**options: Any) -> None:
    paths = measure.benchmark(**options)
    print("\n\n".join(path.read_text() for path in paths))


if __name__ == "__main__":
    door.run(benchmark, "--suite=step")
