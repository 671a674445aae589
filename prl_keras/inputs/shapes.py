"""Checks of the shapes of targets, losses, weights and masks that Keras would silently broadcast."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from prl_keras.inputs import loss_kinds
from prl_keras.inputs.loss_places import describe
from prl_keras.keras_gaps.internals import aligns, expand_last
from prl_keras.losses import Bootstrap


def aligned(y_true: Any, y_pred: Any, loss: Any) -> tuple[Any, Any]:
    """Targets and predictions of one output with the same axes, if one of them lacks a last axis of size 1.

    Keras's losses take targets `[batch, steps]` for predictions `[batch, steps, 1]`, or both as `[batch]`.
    They then give one value for each example or for the whole batch, and lose the logits behind the
    predictions. With the last axis they give a value for each step, to which masks and weights apply.
    """
    if not loss_kinds.is_mean_of_entries(loss):
        return y_true, y_pred
    y_pred = with_last_axis(y_pred)
    if y_pred.shape[-1] == 1 and len(y_true.shape) == len(y_pred.shape) - 1:
        y_true = keras.ops.expand_dims(y_true, -1)
    return y_true, y_pred


def with_last_axis(y_pred: Any) -> Any:
    """Predictions `[batch]` as `[batch, 1]`; all others unchanged."""
    return expand_last(y_pred) if len(y_pred.shape) == 1 else y_pred


def check_shapes(y_true: Any, y_pred: Any, loss: Any) -> None:
    """Rejects targets that a loss would broadcast against the predictions (ValueError)."""
    if keras.tree.is_nested(y_pred):
        _check_structure(y_true, y_pred, loss)
        return
    true_shape, pred_shape = tuple(np.shape(y_true)), tuple(y_pred.shape)
    if aligns(loss):
        true_shape = _in_rank(true_shape, pred_shape)
    elif len(true_shape) == 1 and pred_shape[1:] == (1,) and not isinstance(loss, Bootstrap):
        raise ValueError(
            f"Targets of shape {show(true_shape)} against predictions of shape {show(pred_shape)}: "
            f"subtracting them would broadcast to a square matrix. Write y[..., None], in a tf.data.Dataset "
            "dataset.map(lambda x, y: (x, y[..., None])), so that the targets have the shape of the "
            "predictions."
        )
    if loss_kinds.is_sparse(loss):
        fits = len(true_shape) == len(pred_shape) - 1 or true_shape[-1:] == (1,)
        need = "one integer label per prediction, shape " + show(pred_shape[:-1])
    elif loss_kinds.module_of(loss).startswith("keras.") and not loss_kinds.takes_other_shapes(loss):
        fits = len(true_shape) == len(pred_shape) and all(
            None in (true, pred) or true == pred for true, pred in zip(true_shape[1:], pred_shape[1:])
        )
        need = "targets of shape " + show(pred_shape)
    else:
        return
    if not fits:
        raise ValueError(
            f"Targets of shape {show(np.shape(y_true))} against predictions of shape {show(pred_shape)}: "
            f"the loss {loss_kinds.name_of(loss)} needs {need}. Integer class labels go with "
            "SparseCategoricalCrossentropy, one-hot ones with CategoricalCrossentropy."
        )


def _check_structure(y_true, y_pred, loss):
    """Rejects targets in another structure than the predictions that one loss takes as a whole."""
    try:
        if aligns(loss):
            keras.tree.assert_same_structure(y_true, y_pred)
    except ValueError:
        raise ValueError(
            f"The loss {loss_kinds.name_of(loss)} takes {describe(y_pred)} of predictions as a whole, and "
            f"its targets are {describe(y_true)}. Give targets in the same structure, or write the loss as a "
            "subclass of keras.losses.Loss, which takes any."
        ) from None


def _in_rank(true_shape, pred_shape):
    """The shape of the targets after Keras has brought both to one rank."""
    if len(true_shape) == len(pred_shape) - 1 and pred_shape[-1] == 1:
        return (*true_shape, 1)
    if len(true_shape) == len(pred_shape) + 1 and true_shape[-1] == 1:
        return true_shape[:-1]
    return true_shape


def check_one_value_per_example(values: Any, y_pred: Any, loss: Any) -> None:
    """Rejects a loss that is already reduced (ValueError): a scalar cannot rank examples."""
    shape = tuple(keras.tree.flatten(y_pred)[0].shape)
    if len(values.shape) == 0 or (None not in (shape[0], values.shape[0]) and values.shape[0] != shape[0]):
        name = loss_kinds.name_of(loss)
        if loss_kinds.is_over_axis(loss):
            all_but_batch = ", ".join(map(str, range(1, len(shape))))
            way = f"Write axis=({all_but_batch}{',' if len(shape) == 2 else ''}) in the loss"
        elif len(shape) == 1:
            way = "Its predictions have no axis but the batch: end the network in Dense(1), without a Reshape"
        else:
            way = "Reduce over the last axis only, for example ops.mean(..., axis=-1)"
        raise ValueError(
            f"The loss {name} must give one value per example, shape ({_size(shape[0])},), but gave shape "
            f"{show(tuple(values.shape))}. {way}, and leave the mean over the batch to Keras."
        )


def check_weight_shape(weight_shape: Sequence[int | None], loss_shape: Sequence[int | None]) -> None:
    """Rejects weights that Keras would broadcast against the losses `[batch, ...]` (ValueError)."""
    padded = (*loss_shape, *[1] * (len(weight_shape) - len(loss_shape)))
    if not all(size in (None, 1, have) or have is None for size, have in zip(weight_shape, padded)):
        raise ValueError(
            f"sample_weight of shape {show(weight_shape)} does not go with losses of shape "
            f"{show(loss_shape)}: give one weight for each example, or one for each of its losses."
        )


def check_classification(loss: Any, what: str) -> None:
    """Rejects a regression loss where predicted classes are compared (ValueError)."""
    if loss_kinds.is_regression(loss):
        raise ValueError(
            f"{what} compares predicted classes, and the loss {loss_kinds.name_of(loss)} is one for "
            "regression. For regression use PRL(L): score='loss_layer_gradient' with Trim."
        )


def check_by_example(losses: Sequence[Any], what: str) -> None:
    """Rejects losses that compare the examples of a batch (ValueError); `what` says why."""
    for loss in losses:
        if loss_kinds.is_of_pairs(loss):
            raise ValueError(
                f"The loss {loss_kinds.name_of(loss)} compares the examples of a batch with each other, and "
                f"{what}. Write score='loss', which ranks by its own values, and leave recompute=False."
            )


def check_can_be_vectorized(losses: Sequence[Any]) -> None:
    """Rejects losses whose gradients TensorFlow cannot take of all examples at once (ValueError)."""
    for loss in losses:
        if loss_kinds.is_ctc(loss):
            raise ValueError(
                f"The loss {loss_kinds.name_of(loss)} runs a loop that TensorFlow cannot vectorize over the "
                "examples, as score='gradient' needs it. Write score='loss_layer_gradient' or 'loss'."
            )


def show(shape: Sequence[int | None]) -> str:
    """A shape for error messages; an unknown size is "batch"."""
    return "(" + ", ".join(map(_size, shape)) + ("," if len(shape) == 1 else "") + ")"


def _size(size):
    return "batch" if size is None else str(size)
