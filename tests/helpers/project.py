"""Where the project and the data beside it lie."""

import os
import pathlib

ROOT = pathlib.Path(__file__).resolve().parents[2]
SHARED = ROOT / "../shared"
PYTHONPATH = os.pathsep.join([str(ROOT), str(ROOT / "tests/helpers")])  # of a process that imports tests
