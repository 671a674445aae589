"""Operations that XLA lacks: a model with `jit_compile=True` runs without XLA, after a warning.

The library's own steps use such an operation only where XLA is known to be off.
"""

import contextlib
import contextvars
import re
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

_IS_OFF = contextvars.ContextVar("xla_is_off", default=False)
_XLA_CANNOT = ("unsupported operations when trying to compile", "tf2xla conversion failed")


def is_off() -> bool:
    """Whether what is traced now is certainly not compiled by XLA: by `fit` of a model without it.

    Elsewhere it is False: a graph does not know whether a `tf.function(..., jit_compile=True)` traces it.
    """
    return _IS_OFF.get()


@contextlib.contextmanager
def _off() -> Iterator[None]:
    token = _IS_OFF.set(True)
    try:
        yield
    finally:
        _IS_OFF.reset(token)


def without_xla_if_it_cannot(model: Any, call: Callable[[], Any]) -> Any:
    """The result of `call()`; if XLA cannot compile the model, `call()` runs again, and XLA stays off.

    XLA compiles at the first batch and reports an unsupported operation before any update. An error after the
    first update is raised again.
    """
    if not model.jit_compile:  # never with several replicas
        with _off():
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
    with _off():
        return call()


def _updates(model):
    """The number of steps taken; `iterations` does not change while gradients accumulate."""
    return int(model.optimizer._iterations) if getattr(model, "optimizer", None) else 0
