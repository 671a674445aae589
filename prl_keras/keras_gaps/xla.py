"""`jit_compile=True` with an operation that XLA lacks: runs without XLA, after a warning."""

import re
import warnings
from collections.abc import Callable
from typing import Any

import tensorflow as tf

_XLA_CANNOT = ("unsupported operations when trying to compile", "tf2xla conversion failed")


def without_xla_if_it_cannot(model: Any, call: Callable[[], Any]) -> Any:
    """The result of `call()`; if XLA cannot compile the model, `call()` runs again, and XLA stays off.

    XLA compiles at the first batch and reports an unsupported operation before any update. An error after the
    first update is raised again.

    Args:
        model: A compiled Keras model, whose functions `call` uses.
        call: Function without arguments.
    """
    if not model.jit_compile:  # never with several replicas
        return call()
    updates = _updates(model)
    try:
        return call()
    except (tf.errors.InvalidArgumentError, tf.errors.UnimplementedError) as error:
        cannot = any(words in error.message for words in _XLA_CANNOT)
        if not cannot or _updates(model) != updates:
            raise
        operation = re.search(r"\((No registered '\w+'|[^()]*) OpKernel", error.message)
        why = operation[1] if operation else error.message.splitlines()[0]
    warnings.warn(
        f"XLA cannot compile this model: {why} kernel for it. It runs without XLA, slower perhaps; write "
        "jit_compile=False in compile to be rid of this warning.",
        stacklevel=3,
    )
    model.jit_compile = False
    model.train_function = model.test_function = model.predict_function = None
    return call()


def _updates(model):
    """The number of steps taken; `iterations` does not change while gradients accumulate."""
    return int(model.optimizer._iterations) if getattr(model, "optimizer", None) else 0
