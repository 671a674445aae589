"""The loss-layer gradient norm, the score of PRL(L): algorithm 3 of the paper."""

import keras
import tensorflow as tf

from prl_keras.inputs import loss_kinds, outputs
from prl_keras.keras_gaps.internals import hidden_logits, set_hidden_logits
from prl_keras.scores.layerwise.contribution import row_norms
from prl_keras.scores.loss import is_single, per_example_loss, summed_steps


def loss_layer_gradient_norm(y_true, y_pred, loss):
    """The L2 norm of the gradient of each example's loss with respect to the network's logits.

    `score_i = || d loss_i / d logits_i ||` (the paper's algorithm 3): `||softmax(z) - y||` for
    cross-entropy, `2 ||y_pred - y|| / q` for mean squared error over `q` outputs.

    The loss layer is the *logits*. Behind a softmax or sigmoid head they are hidden, and the gradient
    with respect to the probabilities would be `-1 / p`, which ranks as the loss does. So for an output
    of `keras.activations.softmax` or `sigmoid` the gradient is taken through that activation, in
    float32 whatever the network's precision, and for a cross-entropy on other probabilities the logits
    are recovered from them (`log p`, or `log p - log (1 - p)`).

    Args:
        y_true, loss: As in `per_example_loss`.
        y_pred: Predictions `[batch, ...]`: raw values, logits, or probabilities. Of several outputs the
            gradient is that of the weighted sum of losses with respect to the logits of all of them.

    Returns:
        float32 `[batch]`, in `[0, sqrt(2)]` for the cross-entropy of one output.

    Raises:
        ValueError: if the loss does not depend on `y_pred`, or as in `per_example_loss`.
    """
    if not is_single(loss, y_pred):
        # Each output's loss depends on its own logits alone.
        parts = outputs.split(loss, y_true, y_pred)
        norms = [summed_steps(part) * loss_layer_gradient_norm(*part[:3]) for part in parts]
        return row_norms(tf.stack([part.weight * norm for part, norm in zip(parts, norms)], axis=1))
    loss = keras.losses.get(loss)
    logits, head = logits_of(y_pred, loss)
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(logits)
        losses = per_example_loss(y_true, head(logits), loss)
    gradient = tape.gradient(losses, logits)
    if gradient is None:
        raise ValueError(
            f"The loss {loss!r} does not depend on the predictions in a way that can be "
            "differentiated, so it has no loss-layer gradient. Use a differentiable loss, or "
            "score='loss'."
        )
    gradient = tf.reshape(gradient, [tf.shape(gradient)[0], -1])
    return tf.stop_gradient(tf.ensure_shape(row_norms(gradient), losses.shape))


def logits_of(y_pred, loss):
    """The logits behind predictions, and the way back.

    Args:
        y_pred: Predictions of one output `[batch, ...]`: raw values, logits, or probabilities.
        loss: A `keras.losses.Loss` or a function; tells which they are.

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
    """Softmax or sigmoid of `logits`, whichever gave `y_pred`, in the precision of `logits`."""
    y_pred = tf.cast(y_pred, logits.dtype)
    softmax, sigmoid = tf.nn.softmax(logits), tf.sigmoid(logits)
    is_softmax = tf.reduce_max(tf.abs(softmax - y_pred), axis=-1, keepdims=True) < tf.reduce_max(
        tf.abs(sigmoid - y_pred), axis=-1, keepdims=True
    )
    probabilities = tf.where(is_softmax, softmax, sigmoid)
    set_hidden_logits(probabilities, logits)  # so that Keras's cross-entropies stay stable
    return probabilities
