"""Writes a report of a run: how many of its training labels look wrong, and which.

python -m binaries.train --dataset=digits --method=co_prl_l --assumed_epsilon=0.4 --output_dir=runs/digits
python -m binaries.audit --run_dir=runs/digits
"""

from typing import Any

from absl import flags

from binaries import door
from prl_keras.experiments.audits.report import audit_run

flags.DEFINE_string("run_dir", None, "Folder of a finished run.", required=True)
flags.DEFINE_string(
    "output", None, "HTML file; RUN_DIR/audit.html if left out. The table goes beside it, as CSV."
)
door.data_flags(download=False)


def audit(run_dir: str, output: str | None, **data_options: Any) -> None:
    path = audit_run(run_dir, output, data_options)
    print(f"{path} and {path.with_suffix('.csv')}")


if __name__ == "__main__":
    door.run(audit, "--run_dir=runs/digits")
