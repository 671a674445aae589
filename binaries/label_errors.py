"""Measures how well `prl_keras.audit` finds wrong labels after one training, and cleanlab after several.

pip install -r requirements-peers.txt
python -m binaries.label_errors --dataset=digits --output_dir=results/audit/runs
"""

from typing import Any

from absl import flags

from binaries import door
from prl_keras.experiments.audits.label_errors import CASES
from prl_keras.experiments.audits.tables import run_all, write_report
from prl_keras.experiments.paper.protocol import PROTOCOLS

flags.DEFINE_enum("dataset", "digits", [name for name, scale in PROTOCOLS if scale == "cpu"], "Data set.")
flags.DEFINE_list("corruptions", ["symmetric", "pairflip"], "Kinds of corruption.")
flags.DEFINE_list("epsilons", ["0.2", "0.4"], "Fractions of wrong labels.")
flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds, of the noise too.")
flags.DEFINE_list("cases", list(CASES), "What is trained; prl_keras/experiments/audits/label_errors.py.")
flags.DEFINE_string("output_dir", "results/audit/runs", "Gets a JSON file of each case that it lacks.")
flags.DEFINE_string("report", None, "Write the table of what is in output_dir to this file, and pack it.")
door.data_flags(download=False)


def label_errors(
    dataset: str,
    corruptions: list[str],
    epsilons: list[str],
    seeds: list[str],
    cases: list[str],
    output_dir: str,
    report: str | None,
    **data_options: Any,
) -> None:
    fractions, numbers = [float(epsilon) for epsilon in epsilons], [int(seed) for seed in seeds]
    run_all(dataset, corruptions, fractions, numbers, cases, output_dir, data_options)
    if report:
        write_report(output_dir, report)


if __name__ == "__main__":
    door.run(label_errors, "--dataset=digits")
