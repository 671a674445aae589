"""The work of a benchmark case in any implementation, and its peak memory."""

import concurrent.futures
import contextlib
import ctypes
import gc
import multiprocessing
import pathlib
import resource
import sys
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from prl_keras.experiments.benchmark import steps

KILLED = "killed"
_STEPS = 3


def make_work(case: Any, authors_dir: pathlib.Path | str | None = None) -> steps.Work:
    """The `steps.Work` of a `Case`, not warmed up yet.

    Raises:
        ImportError: for a peer without PyTorch and Opacus.
        OSError: for the implementation "authors", if `authors_dir` is no checkout of
            github.com/illidanlab/PRL.
    """
    return _module(case).make_work(case, authors_dir)


def peak_memory(case: Any, authors_dir: pathlib.Path | str | None = None) -> dict[str, int | None] | str:
    """The peak memory of a few training steps in a fresh process.

    Returns:
        `{"peak": bytes, "before": bytes, "later": bytes}`: the peak memory of the process (on a GPU: of its
        allocator), what it had used before the network was built, and its peak in the steps after the first
        one, which traces and compiles; None where the system cannot tell. Or "killed".
    """
    return in_child(_peak_memory, case, authors_dir)


def in_child(function: Callable[..., Any], *args: Any) -> Any:
    """`function(*args)` in a fresh process; "killed" if that is killed or runs out of memory.

    Other errors are raised here. The function and its arguments must be picklable.
    """
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, context) as pool:
        try:
            return pool.submit(function, *args).result()
        except (concurrent.futures.process.BrokenProcessPool, MemoryError, tf.errors.ResourceExhaustedError):
            return KILLED


def _peak_memory(case, authors_dir):
    with contextlib.suppress(OSError):  # if memory runs out, Linux kills this process first
        pathlib.Path("/proc/self/oom_score_adj").write_text("1000")
    module = _module(case)
    before = _process_peak()
    work = module.make_work(case, authors_dir)
    work.run(1)
    first, can_tell = _process_peak(), _forget_peak()
    work.run(1 if case.through_fit else _STEPS)
    gpu, later = module.gpu_peak(), _process_peak()
    if gpu is not None:
        return {"peak": gpu, "before": 0, "later": None}
    return {"peak": max(first, later), "before": before, "later": later if can_tell else None}


def _forget_peak():
    """Lets `_process_peak` begin anew, without the memory that was freed; False where the system cannot."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    with contextlib.suppress(OSError):
        pathlib.Path("/proc/self/clear_refs").write_text("5")
        return True
    return False


def _module(case):
    """The module that makes the work of the case's implementation."""
    if case.implementation == "prl_keras":
        return steps
    from prl_keras.experiments.benchmark import peers  # needs PyTorch

    return peers


def _process_peak():
    # On Linux a child inherits ru_maxrss from its parent through exec; VmHWM is its own.
    with contextlib.suppress(OSError):
        for line in pathlib.Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
