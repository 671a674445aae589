"""The loss-layer gradient norm, the score of PRL(L): algorithm 3 of the paper."""

import functools
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from prl_keras.inputs import loss_kinds, outputs
from prl_keras.inputs.shapes import check_by_example, check_shapes
from prl_keras.keras_gaps import xla
from prl_keras.keras_gaps.internals import hidden_logits, mask_of, set_mask
from prl_keras.scores.heads import head_of, head_of_values
from prl_keras.scores.layerwise.contribution import row_norms
from prl_keras.scores.loss import (
    is_counted,
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
    return _norm(y_true, y_pred, loss, sample_weight, is_rescaled=True)


def loss_layer_gradient_norm(y_true: Any, y_pred: Any, loss: Any, sample_weight: Any = None) -> tf.Tensor:
    """The L2 norm of the gradient of each example's loss with respect to the network's logits.

    `score_i = || d loss_i / d logits_i ||` (the paper's algorithm 3): `||softmax(z) - y||` for
    cross-entropy, `2 ||y_pred - y|| / q` for mean squared error over `q` outputs.

    The loss layer is the *logits*. A softmax or sigmoid head hides them, and the gradient with respect to
    the probabilities would be `-1 / p`, which ranks as the loss does. So for an output of
    `keras.activations.softmax` (over any axes) or `sigmoid` the gradient is taken through that activation,
    always in float32. For a cross-entropy on other probabilities the logits are recovered from them (`log p`,
    or `log p - log (1 - p)`), and so they are for your own loss on probabilities or log-probabilities that
    sum to 1 over the last axis (`scores.heads`).

    Args:
        y_true: As in `per_example_loss`.
        y_pred: Predictions `[batch, ...]`: raw values, logits, or probabilities. For several outputs the
            gradient is that of the weighted sum of losses with respect to the logits of all of them.
        loss: As in `per_example_loss`.
        sample_weight: As in `per_example_loss`.

    Returns:
        float32 `[batch]`, in `[0, sqrt(2)]` for the cross-entropy of one output.

    Raises:
        ValueError: if the loss does not depend on `y_pred`, or as in `per_example_loss`.
    """
    return _norm(y_true, y_pred, loss, sample_weight, is_rescaled=False)


def loss_layer_gradients(
    y_true: Any, y_pred: Any, loss: Any, sample_weight: Any, is_rescaled: bool
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """The gradients themselves, for scores that compare their directions.

    Args:
        y_true, y_pred, loss, sample_weight: As in `loss_layer_gradient_norm`, and so are the errors.
        is_rescaled: Whether the norms of the gradients are `loss_layer_score` or `loss_layer_gradient_norm`.

    Returns:
        `(gradients, counts, is_finite)`: float32 `[batch, q]` with the `q` logits of all the outputs, 0 for
        examples that do not count; bool `[batch]`, False for padding and for a gradient that is not finite;
        bool `[batch]`, whether the gradient is finite.
    """
    parts, groups = _groups(y_true, y_pred, loss, sample_weight, is_rescaled)
    gradients = tf.concat([_gradient_of_sum(group) for group in groups], axis=1)
    is_finite = tf.reduce_all(tf.math.is_finite(gradients), axis=1)
    counts = is_finite & is_counted(parts)
    return tf.where(counts[:, None], gradients, 0.0), counts, is_finite


def _norm(y_true, y_pred, loss, sample_weight, is_rescaled):
    _, groups = _groups(y_true, y_pred, loss, sample_weight, is_rescaled)
    norms = [_norm_of_sum(group) for group in groups]
    return norms[0] if outputs.is_single(loss, y_pred) else row_norms(tf.stack(norms, axis=1))


def _groups(y_true, y_pred, loss, sample_weight, is_rescaled):
    """-> (the outputs; their losses in groups, see `_by_predictions`)."""
    is_one = outputs.is_single(loss, y_pred)
    parts = outputs.split(keras.losses.get(loss) if is_one else loss, y_true, y_pred, sample_weight)
    check_by_example([part.loss for part in parts], "an example has no loss-layer gradient of its own")
    factors = [root_of_counted([part]) if is_rescaled else 1.0 for part in parts]
    if is_one:
        return parts, [[(parts[0], factors[0])]]
    scaled = [(part, part.weight * summed_values(part) * factor) for part, factor in zip(parts, factors)]
    return parts, _by_predictions(scaled)


def _by_predictions(scaled):
    """The losses in groups: only those of a group depend on the same predictions."""
    groups = []
    for part, scale in scaled:
        joined = [group for group in groups if any(_overlap(part.path, other.path) for other, _ in group)]
        others = [group for group in groups if not any(group is each for each in joined)]
        groups = [*others, [*(each for group in joined for each in group), (part, scale)]]
    return groups


def _overlap(path, other):
    return all(a == b for a, b in zip(path, other))


def _norm_of_sum(group):
    """The norm of the gradient of a sum of losses; `group` is a list of `(Output, factor)`."""
    part, scale = group[0]
    if len(group) == 1 and not keras.tree.is_nested(part.y_pred):
        return scale * _norm_of_output(part)
    return row_norms(_gradient_of_sum(group))


def _gradient_of_sum(group):
    """The gradient of a sum of losses, float32 `[batch, q]`; `group` as in `_norm_of_sum`."""
    found = [(y_pred, part.loss) for part, _ in group for y_pred in keras.tree.flatten(part.y_pred)]
    found.sort(key=lambda pair: not loss_kinds.expects_probabilities(pair[1]))
    first = {id(y_pred): (y_pred, loss) for y_pred, loss in reversed(found)}
    return _gradient_by_tape(
        list(first.values()),
        lambda given: sum(scale * _loss_with(part, given) for part, scale in group),
    )


def _loss_with(part, given):
    """The losses `[batch]` of an output for other predictions, `{id(y_pred): predictions}`."""
    y_pred = keras.tree.map_structure(lambda t: given[id(t)], part.y_pred)
    return mean_of_counted(*values_of(part._replace(y_pred=y_pred)))


def _norm_of_output(part):
    if loss_kinds.is_softmax_cross_entropy(part.loss, hidden_logits(part.y_pred) is not None):
        return _norm_of_softmax(part)
    return row_norms(_gradient_by_tape([(part.y_pred, part.loss)], functools.partial(_loss_with, part)))


def _gradient_by_tape(predictions, losses_of):
    """The gradient of `losses_of({id(y_pred): predictions})` by all the logits, float32 `[batch, q]`.

    Args:
        predictions: A list of `(predictions of one output, a loss that takes them)`.
        losses_of: Function that returns the losses `[batch]`.
    """
    logits, heads = zip(*(logits_of(y_pred, loss) for y_pred, loss in predictions))
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(logits)
        given = {}
        for (y_pred, _), z, head in zip(predictions, logits, heads):
            given[id(y_pred)] = head(z)
            if given[id(y_pred)] is not y_pred and mask_of(y_pred) is not None:
                set_mask(given[id(y_pred)], mask_of(y_pred))
        losses = losses_of(given)
    gradients = [gradient for gradient in tape.gradient(losses, logits) if gradient is not None]
    if not gradients:
        names = ", ".join(repr(loss) for _, loss in predictions)
        raise ValueError(
            f"The loss {names} does not depend on the predictions in a way that can be "
            "differentiated, so it has no loss-layer gradient. Use a differentiable loss, or "
            "score='loss'."
        )
    rows = [tf.reshape(gradient, [tf.shape(gradient)[0], -1]) for gradient in gradients]
    gradient = rows[0] if len(rows) == 1 else tf.concat(rows, axis=1)
    return tf.stop_gradient(tf.ensure_shape(gradient, [*losses.shape, None]))


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
    norms = tf.stop_gradient(_norms(gradient))
    if len(logits.shape) == 2:
        return tf.ensure_shape(norms, logits.shape[:1])
    norms = tf.reshape(norms, tf.shape(logits)[:-1])
    _, counts = values_of(part)
    number = (
        tf.cast(tf.reduce_prod(tf.shape(norms)[1:]), tf.float32) if counts is None else number_counted(counts)
    )
    squares = mean_of_counted(tf.square(norms), counts)  # the mean of n divides each gradient by n
    return tf.sqrt(tf.math.divide_no_nan(squares, number))


def _norms(rows):
    """L2 norms of rows whose entries are at most 1."""
    if xla.is_off():  # XLA lacks this operation, which does not write the squares into memory
        return tf.raw_ops.EuclideanNorm(input=rows, axis=[-1])
    return tf.sqrt(tf.reduce_sum(tf.square(rows), axis=-1))


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
        logits = tf.stop_gradient(tf.cast(hidden, tf.float32))
        return logits, head_of(y_pred, logits, loss_kinds.is_binary(loss))
    if loss_kinds.expects_probabilities(loss):
        tiny = 1e-37
        probabilities = tf.clip_by_value(tf.cast(y_pred, tf.float32), tiny, 1.0)
        logits = tf.math.log(probabilities)
        if loss_kinds.is_binary(loss) or y_pred.shape[-1] == 1:
            logits -= tf.math.log(tf.maximum(1.0 - probabilities, tiny))
            return tf.stop_gradient(logits), keras.activations.sigmoid
        softmax = functools.partial(keras.activations.softmax, axis=getattr(loss, "axis", -1))
        return tf.stop_gradient(logits), softmax
    if not loss_kinds.is_by_example(loss):  # one of the user's, which may take (log-)probabilities
        return head_of_values(y_pred)
    return tf.stop_gradient(tf.cast(y_pred, tf.float32)), lambda logits: logits
