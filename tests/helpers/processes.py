"""Python in a process of its own, in the project's folder."""

import os
import subprocess
import sys

from project import PYTHONPATH, ROOT


def python(*arguments, check=True, **environment):
    """`python ARGUMENTS`, ended, with what it printed; with `check` it must have ended well."""
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True)
    assert done.returncode == 0 or not check, done.stderr[-3000:]
    return done


def run(program, *arguments):
    """What a program printed, which may import the tests and their helpers."""
    return python("-c", program, *arguments, PYTHONPATH=PYTHONPATH).stdout
