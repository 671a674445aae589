"""Programs in a process of their own, which may import the tests and their helpers."""

import os
import subprocess
import sys

from project import PYTHONPATH


def run(program, *arguments):
    """-> what it printed."""
    environment = {**os.environ, "PYTHONPATH": PYTHONPATH}
    command = [sys.executable, "-c", program, *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
