"""One class label per example: which losses take it, the given class, the predicted probabilities."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from prl_keras.inputs import loss_kinds
from prl_keras.keras_gaps.internals import hidden_logits
from prl_keras.losses import Bootstrap

_SMALLEST = float(np.finfo(np.float32).tiny)
UNKNOWN = -1e6  # a number, for debuggers that stop at NaN, and far from every probability


def count_classes(shape: Any, loss: Any) -> int | None:
    """The number of classes for predictions of shape `(batch, outputs)` under a loss.

    None if the loss does not take one class label per example.
    """
    if not isinstance(shape, (tuple, tf.TensorShape)) or len(shape) != 2:
        return None
    if loss_kinds.is_binary(loss):
        return 2 if shape[1] == 1 else None
    if isinstance(loss, Bootstrap):
        return max(shape[1], 2)
    return shape[1] if loss_kinds.is_sparse(loss) or loss_kinds.is_one_hot(loss) else None


def class_labels(y: tf.Tensor, y_pred: tf.Tensor, loss: Any) -> tf.Tensor | None:
    """The given class of each example, int32 `[batch]`, or None as in `count_classes`.

    A label that the loss ignores (`ignore_class`) becomes -1, which is no valid class. So does a one-hot
    label without a class or with several: the largest share gives the class, if it is a single one.

    Args:
        y: Class numbers `[batch]` or `[batch, 1]`, one-hot labels, or labels 0 and 1.
        y_pred: Predictions `[batch, ...]`.
        loss: A `keras.losses.Loss` or a function.
    """
    if count_classes(tuple(y_pred.shape), loss) is None:
        return None
    is_wide = isinstance(loss, Bootstrap) and len(y.shape) == 2 and y.shape[1] != 1
    if loss_kinds.is_one_hot(loss) or is_wide:
        return _of_largest_share(y)
    labels = tf.reshape(y, [-1])
    labels = tf.cast(tf.cast(labels, tf.float32) > 0.5 if _is_one_output(y_pred) else labels, tf.int32)
    ignored = getattr(loss, "ignore_class", None)
    return labels if ignored is None else tf.where(labels == ignored, -1, labels)


def _of_largest_share(y):
    """The class of the largest share, int32 `[batch]`; -1 if several are largest, as in a row of zeros."""
    is_largest = tf.cast(y == tf.reduce_max(y, axis=-1, keepdims=True), tf.float32)
    classes = tf.argmax(y, axis=-1, output_type=tf.int32)
    return tf.where(tf.reduce_sum(is_largest, axis=-1) > 1, -1, classes)


def class_probabilities(y_pred: tf.Tensor, loss: Any) -> tf.Tensor:
    """The predicted probabilities, float32 `[batch, classes]`; a single output gives two classes.

    Args:
        y_pred: Logits or probabilities, float32 `[batch, classes]` or `[batch, 1]`.
        loss: A loss of class labels; it determines which of the two `y_pred` holds.
    """
    is_binary = _is_one_output(y_pred)
    if not loss_kinds.expects_probabilities(loss):
        y_pred = tf.sigmoid(y_pred) if is_binary else tf.nn.softmax(y_pred)
    return tf.concat([1 - y_pred, y_pred], axis=1) if is_binary else y_pred


def _is_one_output(y_pred):
    return y_pred.shape[1] == 1


def predicted_probabilities(y_pred: Any, loss: Any) -> tf.Tensor | None:
    """float32 `[batch, classes]`; None if the loss does not take one class label per example.

    Args:
        y_pred: Predictions, or a structure of them.
        loss: A `keras.losses.Loss`, a function, or `outputs.OutputLosses`.
    """
    if keras.tree.is_nested(y_pred) or count_classes(tuple(y_pred.shape), loss) is None:
        return None
    return class_probabilities(tf.cast(y_pred, tf.float32), loss)


def is_class(labels: tf.Tensor, classes: int) -> tf.Tensor:
    """bool `[batch]`: whether a label is in `[0, classes)`; an ignored label (-1) is not."""
    return tf.logical_and(labels >= 0, labels < classes)


def of_given(labels: tf.Tensor, probabilities: tf.Tensor) -> tf.Tensor:
    """float32 `[batch]`: the probability of the given class; `UNKNOWN` for an invalid label."""
    is_one = is_class(labels, probabilities.shape[1])
    picked = tf.gather(probabilities, tf.where(is_one, labels, 0), axis=1, batch_dims=1)
    return tf.where(is_one, picked, UNKNOWN)


def margins(labels: tf.Tensor, y_pred: tf.Tensor, loss: Any) -> tf.Tensor:
    """float32 `[batch]`: the logit of the given class minus the largest other; 0 for an invalid label.

    A single output is the logit of class 1, and that of class 0 is 0. The logits of probabilities are Keras's
    own where it keeps them, else their logarithms.

    Args:
        labels: int32 `[batch]`, from `class_labels`.
        y_pred: Logits or probabilities `[batch, classes]` or `[batch, 1]`.
        loss: A loss of class labels; it determines which of the two `y_pred` holds.
    """
    logits = _logits(y_pred, loss)
    is_given = tf.one_hot(labels, logits.shape[1], on_value=True, off_value=False, dtype=tf.bool)
    given = tf.reduce_sum(tf.where(is_given, logits, 0.0), axis=1)
    others = tf.reduce_max(tf.where(is_given, logits.dtype.min, logits), axis=1)
    return tf.where(is_class(labels, logits.shape[1]), given - others, 0.0)


def _logits(y_pred, loss):
    """float32 `[batch, classes]`, up to a constant for each example."""
    if loss_kinds.expects_probabilities(loss):
        if hidden_logits(y_pred) is None:
            likely = class_probabilities(tf.cast(y_pred, tf.float32), loss)
            return tf.math.log(tf.maximum(likely, _SMALLEST))
        y_pred = hidden_logits(y_pred)
    logits = tf.cast(y_pred, tf.float32)
    return tf.concat([tf.zeros_like(logits), logits], axis=1) if _is_one_output(logits) else logits
