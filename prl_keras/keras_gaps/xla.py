"""`jit_compile=True` with an operation that XLA lacks: done without XLA, after a warning."""

import re
import warnings

import tensorflow as tf

_XLA_CANNOT = ("unsupported operations when trying to compile", "tf2xla conversion failed")


def without_xla_if_it_cannot(model, call):
    """What `call()` gives; if XLA cannot compile the model, again without XLA, for good.

    XLA compiles when the first batch comes, and what it cannot do it says before it has done anything. An
    error after the first update is passed on.

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
    """Steps taken; while gradients accumulate `iterations` does not move."""
    return int(model.optimizer._iterations) if getattr(model, "optimizer", None) else 0
