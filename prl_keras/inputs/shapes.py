"""Checks of the shapes of targets, losses, weights and masks that Keras would silently broadcast."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from prl_keras.inputs import loss_kinds


def check_shapes(y_true: Any, y_pred: Any, loss: Any) -> None:
    """Rejects targets that a loss would broadcast against the predictions.

    Raises:
        ValueError: with both shapes and the fix.
    """
    if keras.tree.is_nested(y_pred) or keras.tree.is_nested(y_true):
        raise ValueError(
            f"Targets came as {type(y_true).__name__} for predictions as {type(y_pred).__name__}. Give the "
            "targets of a network with one output as one array."
        )
    true_shape, pred_shape = tuple(np.shape(y_true)), tuple(y_pred.shape)
    if len(true_shape) == 1 and len(pred_shape) == 2 and pred_shape[1] == 1:
        raise ValueError(
            f"Targets of shape {show(true_shape)} against predictions of shape {show(pred_shape)}: "
            "subtracting them would broadcast to a square matrix. Write y[:, None] so that the targets "
            "have the shape of the predictions."
        )
    if loss_kinds.is_sparse(loss):
        fits = len(true_shape) == len(pred_shape) - 1 or true_shape[-1:] == (1,)
        need = "one integer label per prediction, shape " + show(pred_shape[:-1])
    elif getattr(loss, "__module__", "").startswith("keras."):
        fits = len(true_shape) == len(pred_shape) and all(
            None in (true, pred) or true == pred for true, pred in zip(true_shape[1:], pred_shape[1:])
        )
        need = "targets of shape " + show(pred_shape)
    else:
        return
    if not fits:
        raise ValueError(
            f"Targets of shape {show(true_shape)} against predictions of shape {show(pred_shape)}: "
            f"the loss {loss_kinds.name_of(loss)} needs {need}. Integer class labels go with "
            "SparseCategoricalCrossentropy, one-hot ones with CategoricalCrossentropy."
        )


def check_one_value_per_example(values: Any, y_pred: Any, loss: Any) -> None:
    """Rejects a loss that is already reduced (ValueError): a scalar cannot rank examples."""
    batch = y_pred.shape[0]
    if len(values.shape) == 0 or (None not in (batch, values.shape[0]) and values.shape[0] != batch):
        raise ValueError(
            f"The loss {loss_kinds.name_of(loss)} must give one value per example, shape "
            f"({_size(batch)},), but gave shape {show(tuple(values.shape))}. Reduce over the last axis "
            "only, for example ops.mean(..., axis=-1), and leave the mean over the batch to Keras."
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


def show(shape: Sequence[int | None]) -> str:
    """A shape for error messages; an unknown size is "batch"."""
    return "(" + ", ".join(map(_size, shape)) + ("," if len(shape) == 1 else "") + ")"


def _size(size):
    return "batch" if size is None else str(size)
