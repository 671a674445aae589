"""Scores: how suspect is each example of a batch? Higher = more suspect.

Every score is float32 `[batch]`, computed from the unscaled, unweighted loss, and carries no gradient.

With mean squared error, and with two classes, the loss-layer gradient norm is a monotone function of
the loss: PRL(L) and self-paced learning then keep the same examples. They part from three classes on.
"""

import functools

import keras
import tensorflow as tf

from prl_keras import checks, loss_kinds, outputs, per_example
from prl_keras.contributions import row_norms

NAMES = ("loss", "loss_layer_gradient", "gradient")


def per_example_loss(y_true, y_pred, loss):
    """The loss of each example, before any reduction.

    Args:
        y_true: Targets `[batch, ...]`, as the loss takes them; of several outputs a list or a dict.
        y_pred: Predictions `[batch, ...]`, or a structure of them.
        loss: A `keras.losses.Loss`, its name, or a function of `(y_true, y_pred)`; of several outputs a
            structure of these, one for all, or `outputs.OutputLosses`, which also has their weights.

    Returns:
        float32 `[batch]`. Where the loss gives more than one value per example (one per time step or
        pixel), their mean, as in Keras. Of several outputs the weighted sum.

    Raises:
        ValueError: if the loss gives a scalar, or the shapes would broadcast.
    """
    if _is_single(loss, y_pred):
        return _mean_over_steps(unreduced_loss(y_true, y_pred, keras.losses.get(loss)))
    parts = outputs.split(loss, y_true, y_pred)
    return tf.add_n([part.weight * _loss_of_output(part) for part in parts])


def unreduced_loss(y_true, y_pred, loss):
    """What a Keras loss computes before its reduction: float32 `[batch]` or `[batch, steps, ...]`.

    Args and errors as in `per_example_loss`, of a single output; `loss` is an object or a function.
    """
    checks.check_shapes(y_true, y_pred, loss)
    y_pred = keras.ops.convert_to_tensor(y_pred, dtype="float32")
    y_true = keras.ops.convert_to_tensor(y_true, dtype="float32")
    values = loss.call(y_true, y_pred) if isinstance(loss, keras.losses.Loss) else loss(y_true, y_pred)
    values = tf.cast(values, tf.float32)
    checks.check_one_value_per_example(values, y_pred, loss)
    return values


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
        float32 `[batch]`, in `[0, sqrt(2)]` for cross-entropy.

    Raises:
        ValueError: if the loss does not depend on `y_pred`, or as in `per_example_loss`.
    """
    if not _is_single(loss, y_pred):
        # Each output's loss depends on its own logits alone.
        parts = outputs.split(loss, y_true, y_pred)
        norms = [_steps_that_add_up(part) * loss_layer_gradient_norm(*part[:3]) for part in parts]
        return row_norms(tf.stack([part.weight * norm for part, norm in zip(parts, norms)], axis=1))
    loss = keras.losses.get(loss)
    logits, head = _loss_layer(y_pred, loss)
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


def gradient_norm(x, y_true, network, loss, microbatch_size=None, training=True):
    """The L2 norm of the gradient of each example's loss over all trainable weights (algorithm 2).

    Args:
        x: Inputs `[batch, ...]`, or a structure of them.
        y_true: Targets `[batch, ...]`, or a structure of them.
        network: A Keras model whose layers treat each example by itself.
        loss: As in `per_example_loss`. Regularizers are not part of it.
        microbatch_size: At most so many per-example gradients are held in memory at a time; None for
            all. It does not change the result.
        training: Whether the network is called in training mode.

    Returns:
        float32 `[batch]`.

    Raises:
        BatchMixingError: with a layer that mixes examples, if `training`.
    """
    losses_of = functools.partial(per_example_loss, loss=loss)
    return per_example.gradient_norms(losses_of, network, x, y_true, microbatch_size, training)


def resolve(score):
    """The function of `(y_true, y_pred, loss)` that a score's name or a callable stands for.

    Args:
        score: "loss", "loss_layer_gradient", a `keras.losses.Loss`, or a function of
            `(y_true, y_pred)` that gives `[batch]`.

    Raises:
        ValueError: for an unknown name.
    """
    if score == "loss":
        return lambda y_true, y_pred, loss: tf.stop_gradient(per_example_loss(y_true, y_pred, loss))
    if score == "loss_layer_gradient":
        return loss_layer_gradient_norm
    if isinstance(score, keras.losses.Loss) or callable(score):
        return functools.partial(_own_score, score)
    raise ValueError(
        f"score={score!r} is not known. Write one of {', '.join(map(repr, NAMES))}, None (every "
        "example counts), or a function of (y_true, y_pred) that gives one value per example."
    )


def _own_score(score, y_true, y_pred, loss):
    """A user's score; a function sees all the outputs, a `keras.losses.Loss` each of them."""
    if keras.tree.is_nested(y_pred) and not isinstance(score, keras.losses.Loss):
        values = tf.cast(score(y_true, y_pred), tf.float32)
        checks.check_one_value_per_example(values, keras.tree.flatten(y_pred)[0], score)
    else:
        values = per_example_loss(y_true, y_pred, score)
    return tf.stop_gradient(values)


def _is_single(loss, y_pred):
    return not (
        keras.tree.is_nested(y_pred) or keras.tree.is_nested(loss) or isinstance(loss, outputs.OutputLosses)
    )


def _mean_over_steps(values):
    # A mean over the other axes; the batch axis stays as it is, empty or of static size.
    axes = range(1, len(values.shape))
    return values if len(values.shape) == 1 else tf.reduce_mean(values, axis=axes)


def _loss_of_output(part):
    return _steps_that_add_up(part) * _mean_over_steps(unreduced_loss(*part[:3]))


def _steps_that_add_up(part):
    """How many values of an example Keras adds up rather than takes a mean of: float32 scalar."""
    if getattr(part.loss, "reduction", None) != "sum":
        return 1.0
    shape = tf.shape(unreduced_loss(*part[:3]))
    return tf.cast(tf.reduce_prod(shape[1:]), tf.float32)


def _loss_layer(y_pred, loss):
    """-> (float32 logits, the function from logits to what the loss takes)."""
    hidden = getattr(y_pred, "_keras_logits", None)  # set by keras.activations.softmax and sigmoid
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
    probabilities._keras_logits = logits  # so that Keras's cross-entropies stay stable
    return probabilities
