"""How well wrong labels are found: `prl_keras.audit` after one training, against cleanlab's several.

pip install -r requirements-peers.txt
python -m binaries.label_errors --dataset=digits --output_dir=results/audit/runs
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from absl import app, flags

from prl_keras.experiments.label_errors import CASES
from prl_keras.experiments.label_errors_report import run_all, write_report

flags.DEFINE_enum("dataset", "digits", ["digits", "cifar10", "celeb_a"], "Data set.")
flags.DEFINE_list("corruptions", ["symmetric", "pairflip"], "Kinds of corruption.")
flags.DEFINE_list("epsilons", ["0.2", "0.4"], "Fractions of wrong labels.")
flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds, of the noise too.")
flags.DEFINE_list("cases", list(CASES), "What is trained; prl_keras/experiments/label_errors.py.")
flags.DEFINE_string("output_dir", "results/audit/runs", "Gets a JSON file of each case; made ones stay.")
flags.DEFINE_string("report", None, "Write the table of all the files in output_dir to this Markdown file.")
flags.DEFINE_string("data_dir", None, "Folder of TensorFlow Datasets; their own default if left out.")


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unknown arguments {argv[1:]}; flags look like --dataset=digits.")
    options = flags.FLAGS
    try:
        run_all(
            options.dataset, options.corruptions, [float(e) for e in options.epsilons],
            [int(seed) for seed in options.seeds], options.cases, options.output_dir,
            {"data_dir": options.data_dir},
        )  # fmt: skip
        if options.report:
            write_report(options.output_dir, options.report)
    except (ValueError, OSError, ImportError) as error:
        raise app.UsageError(str(error)) from error


if __name__ == "__main__":
    app.run(main)
