"""Which activation made predictions from their logits: a softmax over some axes, a sigmoid, a log-softmax.

A tensor does not say which. In a graph its operation may; otherwise the values of the whole batch decide.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from prl_keras.keras_gaps.internals import set_hidden_logits

Head = Callable[[tf.Tensor], tf.Tensor]


def head_of(y_pred: tf.Tensor, logits: tf.Tensor, is_binary: bool) -> Head:
    """The activation that made `y_pred` from its logits: a softmax over any axes, or a sigmoid.

    If it is another one, the function returned has the gradient of the identity: the predictions themselves
    are the loss layer.

    Args:
        y_pred: Predictions `[batch, ...]` of any float dtype.
        logits: The logits behind them, float32 `[batch, ...]`.
        is_binary: Whether a sigmoid is the likelier one, where both fit the whole batch.
    """
    known = {"Softmax": tf.nn.softmax, "Sigmoid": tf.sigmoid}.get(_operation(y_pred))
    if known is not None:
        return _with_logits(known)
    heads: list[Head] = [tf.nn.softmax, tf.sigmoid]
    heads = heads[::-1] if is_binary else heads
    rank = len(y_pred.shape)
    for size in range(1, rank):
        for axes in itertools.combinations(range(1, rank), size):
            if axes != (rank - 1,):
                heads.append(functools.partial(_softmax, axes=axes))
    fits = [_deviation(head(logits), y_pred) for head in heads]
    given = tf.cast(y_pred, logits.dtype)
    heads.append(lambda z: given + (z - tf.stop_gradient(z)))
    return _with_logits(_best(heads, fits, max(1e-3, _rounding(y_pred))))


def head_of_values(y_pred: tf.Tensor) -> tuple[tf.Tensor, Head]:
    """-> (logits, head) of predictions that came without logits.

    Probabilities and log-probabilities that sum to 1 over the last axis have the logits `log p`. For all
    other predictions the logits are the predictions themselves.

    Args:
        y_pred: Predictions `[batch, ...]` of any float dtype.
    """
    values = tf.stop_gradient(tf.cast(y_pred, tf.float32))
    if len(y_pred.shape) < 2 or y_pred.shape[-1] == 1:
        return values, tf.identity
    logarithms = tf.math.log(tf.clip_by_value(values, 1e-37, 1.0))
    if _operation(y_pred) == "Softmax":
        return logarithms, tf.nn.softmax
    if _operation(y_pred) == "LogSoftmax":
        return values, tf.nn.log_softmax
    heads: list[Head] = [tf.nn.log_softmax, tf.nn.softmax, tf.identity]
    fits = [_deviation(head(z), y_pred) for head, z in zip(heads, (values, logarithms))]
    finite = tf.where(tf.math.is_finite(values), tf.abs(values), 0.0)
    limit = _rounding(y_pred) * (1 + tf.reduce_max(finite))
    logits = tf.where((fits[1] <= limit) & (fits[1] + 1e-6 < fits[0]), logarithms, values)
    return logits, _best(heads, fits, limit)


def _operation(tensor):
    """The type of the operation that made a tensor of a graph, or None."""
    return getattr(getattr(tensor, "op", None), "type", None)


def _softmax(logits, axes):
    return tf.exp(logits - tf.reduce_logsumexp(logits, axis=axes, keepdims=True))


def _with_logits(head):
    def probabilities(logits):
        made = head(logits)
        set_hidden_logits(made, logits)  # so that Keras's cross-entropies stay stable
        return made

    return probabilities


def _deviation(made, y_pred):
    """The largest deviation of finite entries, a scalar."""
    difference = tf.abs(made - tf.cast(y_pred, made.dtype))
    return tf.reduce_max(tf.where(tf.math.is_finite(difference), difference, 0.0))


def _rounding(y_pred):
    return {"float16": 4e-3, "bfloat16": 3e-2}.get(y_pred.dtype.name, 2e-6)


def _best(heads: Sequence[Head], fits: Sequence[tf.Tensor], limit: Any) -> Head:
    """The first of the heads that fit best; the last head if none deviates by no more than the limit."""
    least = functools.reduce(tf.minimum, fits)

    def chosen(logits):
        made = heads[-1](logits)
        for head, deviation in reversed(list(zip(heads, fits))):
            fits_best = (deviation <= least + 1e-6) & (least <= limit)
            made = tf.where(fits_best, head(logits), made)
        return made

    return chosen
