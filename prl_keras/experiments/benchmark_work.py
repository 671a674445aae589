"""The work of a benchmark case, whatever does it, and how much memory it takes."""

import concurrent.futures
import contextlib
import multiprocessing
import pathlib
import resource
import sys

import tensorflow as tf

from prl_keras.experiments import benchmark_keras

KILLED = "killed"
_STEPS = 3


def make_work(case, authors_dir=None):
    """-> `benchmark_keras.Work`, ready to run but for its warming up.

    Args:
        case: A `Case`.
        authors_dir: For the implementation "authors": a checkout of github.com/illidanlab/PRL.

    Raises:
        ImportError: for a peer without PyTorch and Opacus.
        OSError: for an `authors_dir` that is no such checkout.
    """
    return _module(case).make_work(case, authors_dir)


def peak_memory(case, authors_dir=None):
    """The peak of a few training steps in a fresh process.

    Returns:
        `{"peak": bytes, "before": bytes}`, the highest memory of the process (on a GPU: of its
        allocator) and how much of it was there before the network was; or "killed".
    """
    return in_child(_peak_memory, case, authors_dir)


def in_child(function, *args):
    """`function(*args)` in a fresh process; "killed" if that is killed, or finds no more memory.

    What it raises otherwise is raised here. Both must be picklable.
    """
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, context) as pool:
        try:
            return pool.submit(function, *args).result()
        except (concurrent.futures.process.BrokenProcessPool, MemoryError, tf.errors.ResourceExhaustedError):
            return KILLED


def _peak_memory(case, authors_dir):
    with contextlib.suppress(OSError):  # where memory ends, Linux is to kill this one
        pathlib.Path("/proc/self/oom_score_adj").write_text("1000")
    module = _module(case)
    before = _process_peak()
    work = module.make_work(case, authors_dir)
    work.run(1 if case.through_fit else _STEPS)
    gpu = module.gpu_peak()
    return {"peak": _process_peak(), "before": before} if gpu is None else {"peak": gpu, "before": 0}


def _module(case):
    """The one that knows how the case's implementation works."""
    if case.implementation == "prl_keras":
        return benchmark_keras
    from prl_keras.experiments import benchmark_peers

    return benchmark_peers


def _process_peak():
    # Linux hands ru_maxrss on through exec, so that a child starts with its parent's; VmHWM is its own.
    with contextlib.suppress(OSError):
        for line in pathlib.Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
