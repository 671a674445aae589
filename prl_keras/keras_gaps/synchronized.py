"""Synchronized batch normalization on a replica that has no good example and runs made-up rows."""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf

from prl_keras.keras_gaps.internals import layers_of, moving_variables

_HERE = threading.local()  # each replica traces its step in a thread of its own
_LOCK = threading.Lock()
_USERS: dict[int, int] = {}  # how many replicas are in a layer's `only_examples_count`, by id


def synchronized_layers(network: Any) -> list[Any]:
    """The batch normalizations whose statistics are those of all the replicas together."""
    kind = keras.layers.BatchNormalization
    return [layer for layer in layers_of(network) if isinstance(layer, kind) and layer.synchronized]


def synchronized_variables(network: Any) -> list[Any]:
    """Their moving statistics, which change alike on all the replicas."""
    return [variable for layer in synchronized_layers(network) for variable in moving_variables(layer)]


@contextlib.contextmanager
def only_examples_count(network: Any, has_examples: tf.Tensor) -> Iterator[None]:
    """Leaves the inputs of a replica without examples that count out of the statistics of all replicas."""
    layers, before = synchronized_layers(network), getattr(_HERE, "has_examples", None)
    _HERE.has_examples = has_examples
    for layer in layers:
        _enter(layer)
    try:
        yield
    finally:
        for layer in layers:
            _leave(layer)
        _HERE.has_examples = before


def _enter(layer):
    """Replicas take turns wherever they exchange something, so several may be in the same layer."""
    with _LOCK:
        _USERS[id(layer)] = _USERS.get(id(layer), 0) + 1
        if _USERS[id(layer)] == 1:
            moments = layer._moments
            object.__setattr__(layer, "_moments", lambda inputs, mask: moments(_counted(inputs), mask))


def _leave(layer):
    with _LOCK:
        _USERS[id(layer)] -= 1
        if not _USERS[id(layer)]:
            del _USERS[id(layer)]
            object.__delattr__(layer, "_moments")


def _counted(inputs):
    has_examples = getattr(_HERE, "has_examples", None)
    return inputs if has_examples is None else inputs[: tf.where(has_examples, tf.shape(inputs)[0], 0)]
