"""A function in a process of its own that can be stopped at any time, with all that it has started.

A part may wait in the compiler or in the driver, where no Python code can end it; it may exhaust the memory
of the GPU, or end its process. So each has its own.
"""

import contextlib
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

_WAIT = 5.0  # seconds between two calls of `tick`


class Ended(NamedTuple):
    """How a child ended.

    Attributes:
        how: "done", "raised", "died" (it ended without a result) or "stopped" (its time was up).
        value: What the function returned or raised, or the exit code.
    """

    how: str
    value: Any = None


def in_child(
    function: Callable[[Any], Any], argument: Any, until: float, tick: Callable[[], Any] = lambda: None
) -> Ended:
    """`function(argument)` in a fresh process, which is killed at the time `until`.

    It is also killed if this process ends, however it ends.

    Args:
        function, argument: Picklable.
        until: A time of `time.monotonic()`.
        tick: Called every few seconds.
    """
    context = multiprocessing.get_context("spawn")  # TensorFlow does not survive a fork
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_main, args=(theirs, function, argument), daemon=True)
    process.start()
    assert process.pid is not None
    theirs.close()  # so that the end of the child closes the pipe
    try:
        while (left := until - time.monotonic()) > 0:
            if ours.poll(min(_WAIT, left)):
                try:
                    return Ended(*ours.recv())
                except EOFError:
                    process.join(1)
                    return Ended("died", process.exitcode)
            tick()
        return Ended("stopped")
    finally:
        with contextlib.suppress(OSError):  # it has no group yet, or has ended
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        process.join(5)


def _main(pipe, function, argument):
    os.setpgid(0, 0)  # with all processes that the function starts
    threading.Thread(target=_die_with_parent, daemon=True).start()
    if tf := sys.modules.get("tensorflow"):
        for gpu in tf.config.list_physical_devices("GPU"):
            tf.config.experimental.set_memory_growth(gpu, True)
    try:
        ended = ("done", function(argument))
    except Exception as error:
        ended = ("raised", error)
        with contextlib.suppress(Exception):
            pickle.loads(pickle.dumps(error))
            pipe.send(ended)
            return
        ended = ("raised", RuntimeError(f"{type(error).__name__}: {error}"))
    pipe.send(ended)


def _die_with_parent():
    multiprocessing.parent_process().join()
    os.killpg(0, signal.SIGKILL)
