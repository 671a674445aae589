"""`binaries.train` on the smallest data, in a process of its own."""

import subprocess
import sys
import time

from project import ROOT

from prl_keras.experiments.runs.config import RunConfig

TINY = RunConfig("teacher", "prl_l", "signflip", 0.2, epochs=2, batch_size=500)
FLAGS = ["--dataset=teacher", "--corruption=signflip", "--epsilon=0.2", "--batch_size=500"]


def start(output_dir, *flags, **kwargs):
    command = [sys.executable, "-m", "binaries.train", f"--output_dir={output_dir}", *FLAGS, *flags]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=ROOT, **streams, **kwargs)


def wait_for_epochs(output_dir, count, process):
    history, deadline = output_dir / "history.csv", time.monotonic() + 120
    while len(history.read_text().splitlines() if history.exists() else []) <= count:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
