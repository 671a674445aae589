"""The loss-layer gradient norm, the score of PRL(L): algorithm 3 of the paper."""

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from prl_keras.inputs import loss_kinds, outputs
from prl_keras.inputs.shapes import check_shapes
from prl_keras.keras_gaps.internals import hidden_logits, mask_of, set_hidden_logits, set_mask
from prl_keras.scores.layerwise.contribution import row_norms
from prl_keras.scores.loss import (
    is_single,
    mean_of_counted,
    number_counted,
    root_of_counted,
    summed_values,
    values_of,
)


def loss_layer_score(y_true: Any, y_pred: Any, loss: Any, sample_weight: Any = None) -> tf.Tensor:
    """`loss_layer_gradient_norm` times the root of how many values of an example count (`scores.loss`).

    If masks or weights of 0 hide steps, and each step's loss depends on its own logits alone, this is the
    root mean square of the norms of the steps that count: a sequence's score does not fall with its length.

    Arguments, result and errors are those of `loss_layer_gradient_norm`.
    """
    return _norm(
        y_true,
        y_pred,
        loss,
        sample_weight,
        lambda part: root_of_counted(part.y_true, part.y_pred, part.loss, part.sample_weight),
    )


def loss_layer_gradient_norm(y_true: Any, y_pred: Any, loss: Any, sample_weight: Any = None) -> tf.Tensor:
    """The L2 norm of the gradient of each example's loss with respect to the network's logits.

    `score_i = || d loss_i / d logits_i ||` (the paper's algorithm 3): `||softmax(z) - y||` for
    cross-entropy, `2 ||y_pred - y|| / q` for mean squared error over `q` outputs.

    The loss layer is the *logits*. A softmax or sigmoid head hides them, and the gradient with respect to
    the probabilities would be `-1 / p`, which ranks as the loss does. So for an output of
    `keras.activations.softmax` or `sigmoid` the gradient is taken through that activation, always in
    float32. For a cross-entropy on other probabilities the logits are recovered from them (`log p`, or
    `log p - log (1 - p)`).

    Args:
        y_true, loss, sample_weight: As in `per_example_loss`.
        y_pred: Predictions `[batch, ...]`: raw values, logits, or probabilities. For several outputs the
            gradient is that of the weighted sum of losses with respect to the logits of all of them.

    Returns:
        float32 `[batch]`, in `[0, sqrt(2)]` for the cross-entropy of one output.

    Raises:
        ValueError: if the loss does not depend on `y_pred`, or as in `per_example_loss`.
    """
    return _norm(y_true, y_pred, loss, sample_weight, lambda part: 1.0)


def _norm(y_true, y_pred, loss, sample_weight, factor):
    is_one = is_single(loss, y_pred)
    parts = outputs.split(keras.losses.get(loss) if is_one else loss, y_true, y_pred, sample_weight)
    if is_one:
        return factor(parts[0]) * _norm_of_output(parts[0])
    # Each output's loss depends on its own logits alone.
    norms = [part.weight * summed_values(part) * factor(part) * _norm_of_output(part) for part in parts]
    return row_norms(tf.stack(norms, axis=1))


def _norm_of_output(part):
    if loss_kinds.is_softmax_cross_entropy(part.loss, hidden_logits(part.y_pred) is not None):
        return _norm_of_softmax(part)
    logits, head = logits_of(part.y_pred, part.loss)
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(logits)
        y_pred = head(logits)
        if y_pred is not part.y_pred and mask_of(part.y_pred) is not None:
            set_mask(y_pred, mask_of(part.y_pred))
        losses = mean_of_counted(*values_of(part._replace(y_pred=y_pred)))
    gradient = tape.gradient(losses, logits)
    if gradient is None:
        raise ValueError(
            f"The loss {part.loss!r} does not depend on the predictions in a way that can be "
            "differentiated, so it has no loss-layer gradient. Use a differentiable loss, or "
            "score='loss'."
        )
    gradient = tf.reshape(gradient, [tf.shape(gradient)[0], -1])
    return tf.stop_gradient(tf.ensure_shape(row_norms(gradient), losses.shape))


def _norm_of_softmax(part):
    """Uses `p - e_y`, which TensorFlow computes with the loss: a training step already has it."""
    check_shapes(*part[:3])
    y_pred = part.y_pred if hidden_logits(part.y_pred) is None else hidden_logits(part.y_pred)
    logits = tf.cast(y_pred, tf.float32)
    # Same casts as in Keras's loss, so that TensorFlow computes both once.
    labels = tf.cast(keras.ops.convert_to_tensor(part.y_true, "float32"), tf.int64)
    labels = labels if len(labels.shape) == 1 else tf.reshape(labels, [-1])
    rows = logits if len(logits.shape) == 2 else tf.reshape(logits, [-1, logits.shape[-1]])
    _, gradient = tf.raw_ops.SparseSoftmaxCrossEntropyWithLogits(features=rows, labels=labels)
    norms = tf.stop_gradient(tf.sqrt(tf.reduce_sum(tf.square(gradient), axis=-1)))
    if len(logits.shape) == 2:
        return tf.ensure_shape(norms, logits.shape[:1])
    norms = tf.reshape(norms, tf.shape(logits)[:-1])
    _, counts = values_of(part)
    number = (
        tf.cast(tf.reduce_prod(tf.shape(norms)[1:]), tf.float32) if counts is None else number_counted(counts)
    )
    squares = mean_of_counted(tf.square(norms), counts)  # the mean of n divides each gradient by n
    return tf.sqrt(tf.math.divide_no_nan(squares, number))


def logits_of(y_pred: tf.Tensor, loss: Any) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
    """The logits behind predictions, and the function back to predictions.

    Args:
        y_pred: Predictions of one output `[batch, ...]`: raw values, logits, or probabilities.
        loss: A `keras.losses.Loss` or a function; it determines which of these they are.

    Returns:
        `(float32 logits, the function from logits to what the loss takes)`.
    """
    hidden = hidden_logits(y_pred)  # set by keras.activations.softmax and sigmoid
    if hidden is not None:
        return tf.stop_gradient(tf.cast(hidden, tf.float32)), lambda logits: _head_again(logits, y_pred)
    if loss_kinds.expects_probabilities(loss):
        tiny = 1e-37
        probabilities = tf.clip_by_value(tf.cast(y_pred, tf.float32), tiny, 1.0)
        logits = tf.math.log(probabilities)
        if loss_kinds.is_binary(loss) or y_pred.shape[-1] == 1:
            logits -= tf.math.log(tf.maximum(1.0 - probabilities, tiny))
            return tf.stop_gradient(logits), keras.activations.sigmoid
        return tf.stop_gradient(logits), keras.activations.softmax
    return tf.stop_gradient(tf.cast(y_pred, tf.float32)), lambda logits: logits


def _head_again(logits, y_pred):
    """The softmax or sigmoid of `logits`, whichever produced `y_pred`, in the dtype of `logits`."""
    y_pred = tf.cast(y_pred, logits.dtype)
    softmax, sigmoid = tf.nn.softmax(logits), tf.sigmoid(logits)
    is_softmax = tf.reduce_max(tf.abs(softmax - y_pred), axis=-1, keepdims=True) < tf.reduce_max(
        tf.abs(sigmoid - y_pred), axis=-1, keepdims=True
    )
    probabilities = tf.where(is_softmax, softmax, sigmoid)
    set_hidden_logits(probabilities, logits)  # so that Keras's cross-entropies stay stable
    return probabilities
