"""unit="element": each step, pixel or attribute is ranked by itself.

The batch is flattened: predictions `[batch, steps, classes]` become `[batch * steps, classes]`, and each row
is scored, weighted and trained on like an example. Keras's mean over all the values is the same in both
forms, and reshaping copies nothing.

| loss | element | flat predictions |
|---|---|---|
| one class among several (sparse, categorical, `Bootstrap`) | a label: a step, a pixel | `[n, classes]` |
| binary cross-entropies, Keras's regression losses | an entry: an attribute, a coordinate | `[n, 1]` |
| any other | a value of the loss | `[n, ...]` |
"""

import math
import typing
from collections.abc import Callable

import keras
import tensorflow as tf

from prl_keras.inputs import loss_kinds
from prl_keras.inputs.shapes import check_weight_shape
from prl_keras.keras_gaps.internals import hidden_logits, mask_of, set_hidden_logits, set_mask
from prl_keras.losses import Bootstrap
from prl_keras.scores.loss import in_rank, unreduced_loss

UNITS = ("example", "element")


class Elements(typing.NamedTuple):
    """Targets and weights of the `n` elements of a batch, in the order of the batch.

    Attributes:
        y: `[n]` or `[n, ...]`, in the form that the loss takes with flat predictions.
        counts: bool `[n]`, whether Keras counts an element (see `scores.loss`); None if all count.
        sample_weight: float32 `[n]`, or None.
    """

    y: tf.Tensor
    counts: tf.Tensor | None
    sample_weight: tf.Tensor | None


def flat_predictions(
    y: tf.Tensor, y_pred: tf.Tensor, loss: keras.losses.Loss | Callable[..., tf.Tensor]
) -> tf.Tensor:
    """The predictions of the elements, `[n, ...]`, with Keras's hidden logits and mask.

    Args:
        y, y_pred: Targets and predictions `[batch, ...]` of one output.
        loss: A `keras.losses.Loss` or a function.
    """
    rank = _rank(y, y_pred, loss)
    width = _width(y_pred, rank)
    flat = tf.reshape(y_pred, [-1, *width])
    logits, mask = hidden_logits(y_pred), mask_of(y_pred)
    if logits is not None:
        set_hidden_logits(flat, tf.reshape(logits, [-1, *width]))
    if mask is not None:
        set_mask(flat, spread(mask, label_shape(y, y_pred, loss)))
    return flat


def elements_of(
    y: tf.Tensor,
    y_pred: tf.Tensor,
    loss: keras.losses.Loss | Callable[..., tf.Tensor],
    sample_weight: tf.Tensor | None,
) -> Elements:
    """The `Elements` of a batch.

    Args:
        y, y_pred, loss: As in `flat_predictions`.
        sample_weight: The user's weights `[batch, ...]`, or None.

    Raises:
        ValueError: for weights whose shape does not fit the labels.
    """
    rank = _rank(y, y_pred, loss)
    shape, width = label_shape(y, y_pred, loss), _width(y_pred, rank)
    is_wide = width == [1] or tuple(y.shape[rank:]) == tuple(y_pred.shape[rank:])
    flat_y = tf.reshape(y, [-1, *width] if is_wide else [-1])
    counts: typing.Any = [] if mask_of(y_pred) is None else [spread(mask_of(y_pred), shape)]
    ignored = getattr(loss, "ignore_class", None)
    if ignored is not None:
        counts.append(tf.cast(tf.reshape(flat_y, [-1]), tf.int64) != ignored)
    if sample_weight is not None:
        check_weight_shape(tuple(sample_weight.shape), tuple(y_pred.shape[:rank]))
        sample_weight = spread(tf.cast(sample_weight, tf.float32), shape)
        counts.append(sample_weight != 0)
    counts = tf.reduce_all(tf.stack(counts), axis=0) if counts else None
    return Elements(flat_y, counts, _per_value(y, y_pred, loss, rank, sample_weight))


def label_shape(
    y: tf.Tensor, y_pred: tf.Tensor, loss: keras.losses.Loss | Callable[..., tf.Tensor]
) -> tf.Tensor:
    """The shape of the labels, int32 `[rank]`: `[batch, steps, ...]`; arguments as in `flat_predictions`."""
    return tf.shape(y_pred)[: _rank(y, y_pred, loss)]


def spread(tensor: tf.Tensor, shape: tf.Tensor) -> tf.Tensor:
    """Broadcasts flags, a mask or weights `[batch, ...]` to the elements, `[n]`.

    Args:
        shape: From `label_shape`.
    """
    if len(tensor.shape) > shape.shape[0] and tensor.dtype != tf.bool:
        tensor = tf.reshape(tensor, tf.shape(tensor)[: shape.shape[0]])  # further axes are of size 1
    return tf.reshape(tf.broadcast_to(in_rank(tensor, shape.shape[0]), shape), [-1])


def ranked_shape(
    model: keras.Model, shape: typing.Any, loss: keras.losses.Loss | Callable[..., tf.Tensor]
) -> typing.Any:
    """The static shape of the ranked predictions, given the network's output `shape`."""
    if model.unit == "example" or not isinstance(shape, tuple) or _is_any_other(loss):
        return shape
    return (None, 1 if _is_by_entry(loss, shape[-1]) else shape[-1])


def check_one_output(model: keras.Model, y_pred: typing.Any) -> None:
    """Rejects several outputs.

    Raises:
        ValueError: with the fix.
    """
    if keras.tree.is_nested(y_pred) or keras.tree.is_nested(model.loss):
        raise ValueError(
            "unit='element' ranks the labels of one output, and this model has several. Write "
            "unit='example', or train a model of the one output: keras.Model(inputs, output)."
        )


def _rank(y, y_pred, loss):
    """How many leading axes of the predictions are label axes."""
    if _is_any_other(loss):
        rank = len(unreduced_loss(y, y_pred, loss).shape)
        if rank == 1 and len(y_pred.shape) > 2:
            raise ValueError(
                f"unit='element' needs a loss that gives a value for each element, and "
                f"{loss_kinds.name_of(loss)} gives one for each example. Leave the mean over steps to Keras: "
                "reduce over the last axis only."
            )
        return rank
    return len(y_pred.shape) - (0 if _is_by_entry(loss, y_pred.shape[-1]) else 1)


def _width(y_pred, rank):
    """The sizes of the other axes, or `[1]` if there are none: Keras's losses reduce a last axis."""
    return list(y_pred.shape[rank:]) or [1]


def _is_by_entry(loss, width):
    is_binary = loss_kinds.is_binary(loss) or (isinstance(loss, Bootstrap) and width == 1)
    return is_binary or loss_kinds.is_regression(loss)


def _is_any_other(loss):
    return not (loss_kinds.is_of_classes(loss) or loss_kinds.is_regression(loss))


def _per_value(y, y_pred, loss, rank, sample_weight):
    """The weights, divided by the entries per value where Keras sums means over entries.

    A flat loss sums the entries themselves.
    """
    if loss_kinds.is_mean(loss):
        return sample_weight
    entries = math.prod(y_pred.shape[len(unreduced_loss(y, y_pred, loss).shape) : rank])
    if entries == 1:
        return sample_weight
    ones = tf.ones([tf.reduce_prod(tf.shape(y_pred)[:rank])])
    return (ones if sample_weight is None else sample_weight) / entries
