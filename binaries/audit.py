"""Writes a report of a run: how many of its training labels are wrong, and which.

python -m binaries.train --dataset=digits --method=co_prl_l --assumed_epsilon=0.4 --output_dir=runs/digits
python -m binaries.audit --run_dir=runs/digits
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from absl import app, flags

from prl_keras.experiments.audit_report import audit_run

flags.DEFINE_string("run_dir", None, "Folder of a finished run.", required=True)
flags.DEFINE_string(
    "output", None, "HTML file; RUN_DIR/audit.html if left out. The table goes beside it, as CSV."
)
_DATA = {
    "data_dir": flags.DEFINE_string("data_dir", None, "Folder of TensorFlow Datasets; else their default."),
    "cache_dir": flags.DEFINE_string("cache_dir", None, "Where features are kept; else ~/.cache/prl_keras."),
}


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unknown arguments {argv[1:]}; flags look like --run_dir=runs/digits.")
    options = flags.FLAGS
    try:
        path = audit_run(options.run_dir, options.output, {name: flag.value for name, flag in _DATA.items()})
    except (ValueError, OSError, ImportError) as error:
        raise app.UsageError(str(error)) from error
    print(f"{path} and {path.with_suffix('.csv')}")


if __name__ == "__main__":
    app.run(main)
