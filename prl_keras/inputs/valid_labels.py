"""Class labels in the targets of any output: which losses take them, and which values are valid."""

import typing
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from prl_keras.inputs import loss_kinds, outputs

_ROUNDING = 1e-3  # float16 numbers above 1 are 0.00098 apart; pixels, signs and class numbers are off by 1
_SHARES = "The loss takes labels in [0, 1]"
_RENUMBER = "Write 0 and 1, or one-hot labels; class numbers go with SparseCategoricalCrossentropy."
_ONE_HOT = (
    "Class numbers go with SparseCategoricalCrossentropy; for this loss write keras.utils.to_categorical(y)."
)


class Labels(typing.NamedTuple):
    """Class labels of one output.

    Attributes:
        y: The labels: an array, a tensor or a specification.
        classes: The number of classes, or None if unknown.
        ignored: The label that the loss ignores (`ignore_class`), or None.
        is_shares: Whether the labels are shares of classes in [0, 1] and not class numbers.
    """

    y: Any
    classes: int | None
    ignored: int | None
    is_shares: bool = False

    def check(self, start: int = 0) -> None:
        """Checks an array that begins at index `start` of the data.

        Raises:
            ValueError: with the first invalid index and value.
        """
        if self.is_shares:
            check_shares(self.y, start, self.classes)
        else:
            check_labels(self.y, self.classes, self.ignored, start)

    def check_dtype(self) -> None:
        """Rejects class numbers that are not integers (ValueError)."""
        dtype = self.y.dtype
        if not self.is_shares:
            check_label_dtype(dtype.as_numpy_dtype if isinstance(dtype, tf.DType) else dtype, self.y.shape)

    def is_bad(self, y: Any) -> Any:
        """bool in the shape of `y`, an array or tensor of a suitable dtype: which labels are invalid."""
        return is_bad_share(y) if self.is_shares else is_bad_label(y, self.classes, self.ignored)

    def message(self, value: Any) -> str:
        """The error message for an invalid label."""
        if self.is_shares:
            return f"{_SHARES}; there is a {value}."
        return f"Class labels must be at least 0{largest_label(self.classes)}; there is a {value}."


def labels_of(model: Any, y: Any, y_pred: Any = None) -> list[Labels]:
    """The class labels in the targets: one `Labels` for each output whose loss takes class labels.

    Args:
        model: A compiled `WeightedModel`.
        y: A structure of arrays, tensors or specifications.
        y_pred: Predictions or their specifications; None for those that a built network declares.
    """
    y_pred = outputs.symbolic_outputs(model.networks[0]) if y_pred is None else y_pred
    (y,) = outputs.without_lists(model.networks[0], model.loss, y)
    if y_pred is None and (keras.tree.is_nested(y) or keras.tree.is_nested(model.loss)):
        return []  # the first step shows which target goes with which loss
    parts = outputs.split(outputs.loss_of(model, y_pred), y, y_pred)
    parts = [part for part in parts if not keras.tree.is_nested(part.y_pred)]
    found = [labels_for(part.loss, part.y_true, *_last_and_rank(part.y_pred)) for part in parts]
    return [labels for labels in found if labels is not None]


def _last_and_rank(y_pred):
    return (None, None) if y_pred is None else (y_pred.shape[-1], len(y_pred.shape))


def labels_for(loss: Any, y: Any, classes: int | None, rank: int | None = None) -> Labels | None:
    """The `Labels` of the targets of one output, or None if its loss takes no class labels.

    Args:
        loss: A `keras.losses.Loss` or a function.
        y: An array, a tensor or a specification.
        classes: Size of the predictions' last axis, or None if unknown.
        rank: Number of the predictions' axes, or None if unknown.
    """
    shape = getattr(y, "shape", ())
    kind = loss_kinds.labels_kind(loss, () if getattr(shape, "rank", 0) is None else shape, classes, rank)
    if kind is None:
        return None
    return Labels(y, classes, getattr(loss, "ignore_class", None), is_shares=kind == "shares")


def check_shares(y: Any, start: int = 0, classes: int | None = None) -> None:
    """Checks labels that are shares of classes, such as one-hot labels or labels 0 and 1.

    Args:
        y: An array `[n, ...]`. NaN passes; `nonfinite` handles it.
        start: Index of `y[0]` in the data, for the message.
        classes: Size of the predictions' last axis, or None if unknown.

    Raises:
        ValueError: with the first invalid index and value.
    """
    y = np.asarray(y)
    if y.dtype.kind not in "iufb":
        return  # Keras rejects it
    bad = is_bad_share(y)
    if bad.any():
        index = tuple(int(i) for i in np.argwhere(bad)[0])
        shown = ", ".join(map(str, (start + index[0], *index[1:])))
        is_number = classes is not None and classes > 1 and y.shape[1:] in ((), (1,))
        way = _ONE_HOT if is_number else _RENUMBER
        raise ValueError(f"{_SHARES}; y[{shown}] is {y[index]}. {way}")


def is_bad_share(y: Any) -> Any:
    """bool in the shape of `y`, an array or a tensor of real numbers: which are outside [0, 1].

    A mean of votes or a resized mask may be outside by rounding. Keras trains on these values, as they are.
    """
    return (y < -_ROUNDING) | (y > 1 + _ROUNDING)


def check_labels(y: Any, classes: int | None, ignored: int | None = None, start: int = 0) -> None:
    """Checks all the class labels of an array before training starts.

    Args:
        y: Integer labels, an array of shape `[n, ...]`, such as `[n]` or `[n, 1]`.
        classes: Number of classes, or None if not yet known.
        ignored: A label that the loss ignores (`ignore_class`), or None.
        start: Index of `y[0]` in the data, for the message.

    Raises:
        ValueError: with the first invalid index and value.
    """
    y = np.asarray(y)
    if y.dtype.kind == "f" and np.isnan(y).any():
        row = start + int(np.argwhere(np.isnan(y))[0][0])
        raise ValueError(f"y[{row}] is NaN. Leave out the examples without a label, or use pandas' dropna.")
    check_label_dtype(y.dtype, y.shape)
    bad = is_bad_label(y, classes, ignored)
    if bad.any():
        index = tuple(int(i) for i in np.argwhere(bad)[0])
        place = index[:-1] if y.ndim > 1 and y.shape[-1] == 1 else index
        shown = ", ".join(map(str, (start + place[0], *place[1:])))
        raise ValueError(
            f"Class labels must be at least 0{largest_label(classes)}; y[{shown}] is {y[index]}."
            " Renumber the labels from 0, or give the network more outputs."
        )


def is_bad_label(y: Any, classes: int | None, ignored: int | None) -> Any:
    """bool in the shape of `y`, an integer array or tensor: which are invalid (see `check_labels`)."""
    bad = y < 0
    if classes is not None:
        bad |= y >= classes
    if ignored is not None:
        bad &= y != ignored
    return bad


def check_label_dtype(dtype: Any, shape: Sequence[int | None]) -> None:
    """Rejects labels `[n, ...]` that are not integers (ValueError)."""
    dtype = np.dtype(dtype)
    if dtype.kind in "iu":
        return
    if dtype.kind in "USO":
        way = "Write np.unique(y, return_inverse=True)[1] to number the names."
    elif len(shape) > 1 and shape[-1] != 1:
        way = "One-hot labels go with CategoricalCrossentropy, or write np.argmax(y, axis=-1)."
    else:
        way = "Write y.astype('int64') if its values are class numbers."
    raise ValueError(f"Class labels must be integers; y has dtype {dtype}. {way}")


def largest_label(classes: int | None) -> str:
    """The part of an error message on the largest label for `classes` outputs; empty for None."""
    return "" if classes is None else f", and at most {classes - 1} for {classes} outputs"
