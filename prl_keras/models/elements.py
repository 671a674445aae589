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

import keras
import tensorflow as tf

from prl_keras.inputs import loss_kinds, outputs
from prl_keras.inputs.shapes import check_weight_shape, show
from prl_keras.keras_gaps.internals import hidden_logits, mask_of, set_hidden_logits, set_mask
from prl_keras.losses import Bootstrap
from prl_keras.scores.loss import in_rank, unreduced_loss

UNITS = ("example", "element")
_PERMUTE = "Put the classes last, keras.layers.Permute((2, 3, 1)), or write unit='example'."


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


def flat_predictions(y: tf.Tensor, y_pred: tf.Tensor, loss: typing.Any) -> tf.Tensor:
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
    y: tf.Tensor, y_pred: tf.Tensor, loss: typing.Any, sample_weight: tf.Tensor | None
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
    if _is_any_other(loss):
        _check_one_value_each(flat_y, tf.reshape(y_pred, [-1, *width]), loss)
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


def label_shape(y: tf.Tensor, y_pred: tf.Tensor, loss: typing.Any) -> tf.Tensor:
    """The shape of the labels, int32 `[rank]`: `[batch, steps, ...]`; arguments as in `flat_predictions`."""
    rank = _rank(y, y_pred, loss)
    return tf.shape(y_pred)[: rank - (len(y.shape) == rank - 1)]  # labels without the last axis of size 1


def spread(tensor: tf.Tensor, shape: tf.Tensor) -> tf.Tensor:
    """Broadcasts flags, masks or weights `[batch, ...]` to the elements `[n]`; `shape` is a `label_shape`."""
    if len(tensor.shape) > shape.shape[0] and tensor.dtype != tf.bool:
        tensor = tf.reshape(tensor, tf.shape(tensor)[: shape.shape[0]])  # further axes are of size 1
    return tf.reshape(tf.broadcast_to(in_rank(tensor, shape.shape[0]), shape), [-1])


def ranked_shape(model: keras.Model, shape: typing.Any, loss: typing.Any) -> typing.Any:
    """The static shape of the ranked predictions, given the network's output `shape`."""
    if not isinstance(shape, tuple):
        return shape
    if loss_kinds.is_mean_of_entries(loss) and len(shape) == 1:
        shape = (*shape, 1)
    if model.unit == "example" or _is_any_other(loss):
        return shape
    return (None, 1 if _is_by_entry(loss, shape[-1]) else shape[-1])


def check_one_output(loss: typing.Any, y_pred: typing.Any) -> None:
    """Rejects several outputs or losses (ValueError)."""
    if not outputs.is_single(loss, y_pred):
        raise ValueError(
            "unit='element' ranks the labels of one output with one loss, and this model has several. Write "
            "unit='example', or train a model of the one output: keras.Model(inputs, output)."
        )


def _rank(y, y_pred, loss):
    """How many leading axes of the predictions are label axes."""
    is_by_class = not (_is_any_other(loss) or _is_by_entry(loss, y_pred.shape[-1]))
    if is_by_class and getattr(loss, "axis", -1) not in (-1, len(y_pred.shape) - 1):
        raise ValueError(
            f"unit='element' takes the classes on the last axis, and the loss {loss_kinds.name_of(loss)} "
            f"has axis={loss.axis}. {_PERMUTE}"
        )
    if _is_any_other(loss):
        values = unreduced_loss(y, y_pred, loss)
        rank = len(values.shape)
        if any(None not in sizes and len(set(sizes)) > 1 for sizes in zip(values.shape, y_pred.shape)):
            raise ValueError(
                f"unit='element' takes the classes on the last axis, and the loss {loss_kinds.name_of(loss)} "
                f"gives values of shape {show(tuple(values.shape))} for predictions of shape "
                f"{show(tuple(y_pred.shape))}. {_PERMUTE}"
            )
        if rank == 1 and len(y_pred.shape) > 2:
            raise ValueError(
                f"unit='element' needs a loss that gives a value for each element, and "
                f"{loss_kinds.name_of(loss)} gives one for each example. Leave the mean over steps to Keras: "
                "reduce over the last axis only."
            )
        return rank
    return len(y_pred.shape) - (0 if _is_by_entry(loss, y_pred.shape[-1]) else 1)


def _check_one_value_each(flat_y, flat_pred, loss):
    """Rejects an own loss that broadcasts the elements against numbers for several of them."""
    shape = unreduced_loss(flat_y, flat_pred, loss).shape
    if None not in shape[1:] and math.prod(shape[1:]) != 1:
        raise ValueError(
            f"unit='element' calls the loss {loss_kinds.name_of(loss)} with one element in each row, "
            f"predictions of shape {show((None, *flat_pred.shape[1:]))}, and it gave values of shape "
            f"{show((None, *shape[1:]))}: it has numbers for several elements. Give them as sample_weight, "
            "or write unit='example'."
        )


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
