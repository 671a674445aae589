"""Class labels in the targets of any output: which losses take them, and which values are valid."""

import typing
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from prl_keras.inputs import loss_kinds, outputs

_ROUNDING = 1e-3  # float16 numbers above 1 are 0.00098 apart; pixels, signs and class numbers are off by 1
_MORE = "Renumber the labels from 0, or give the network more outputs."
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
        """Checks an array `[n, ...]` that begins at index `start` of the data. NaN passes as a share.

        Raises:
            ValueError: with the first invalid index and value.
        """
        y = np.asarray(self.y)
        if self.is_shares and y.dtype.kind not in "iufb":
            return  # Keras rejects it
        if not self.is_shares and y.dtype.kind == "f" and np.isnan(y).any():
            row = start + int(np.argwhere(np.isnan(y))[0][0])
            raise ValueError(
                f"y[{row}] is NaN. Leave out the examples without a label, or use pandas' dropna."
            )
        self._replace(y=y).check_dtype()
        bad = self.is_bad(y)
        if not bad.any():
            return
        index = tuple(int(i) for i in np.argwhere(bad)[0])
        if self.is_shares:
            place, is_number = index, (self.classes or 0) > 1 and y.shape[1:] in ((), (1,))
            way = _ONE_HOT if is_number else _RENUMBER
        else:
            place, way = index[:-1] if y.ndim > 1 and y.shape[-1] == 1 else index, _MORE
        shown = ", ".join(map(str, (start + place[0], *place[1:])))
        raise ValueError(f"{self._valid}; y[{shown}] is {y[index]}. {way}")

    def check_dtype(self) -> None:
        """Rejects class numbers that are not integers (ValueError)."""
        if self.is_shares:
            return
        dtype, shape = self.y.dtype, self.y.shape
        dtype = np.dtype(dtype.as_numpy_dtype if isinstance(dtype, tf.DType) else dtype)
        if dtype.kind in "iu":
            return
        if dtype.kind in "USO":
            way = "Write np.unique(y, return_inverse=True)[1] to number the names."
        elif len(shape) > 1 and shape[-1] != 1:
            way = "One-hot labels go with CategoricalCrossentropy, or write np.argmax(y, axis=-1)."
        else:
            way = "Write y.astype('int64') if its values are class numbers."
        raise ValueError(f"Class labels must be integers; y has dtype {dtype}. {way}")

    def is_bad(self, y: Any) -> Any:
        """bool in the shape of `y`, an array or tensor of a suitable dtype: which labels are invalid.

        A mean of votes or a resized mask may be outside [0, 1] by rounding. Keras trains on these values, as
        they are.
        """
        if self.is_shares:
            return (y < -_ROUNDING) | (y > 1 + _ROUNDING)
        bad = y < 0
        if self.classes is not None:
            bad |= y >= self.classes
        if self.ignored is not None:
            bad &= y != self.ignored
        return bad

    def message(self, value: Any) -> str:
        """The error message for an invalid label."""
        return f"{self._valid}; there is a {value}."

    @property
    def _valid(self):
        if self.is_shares:
            return "The loss takes labels in [0, 1]"
        largest = (
            "" if self.classes is None else f", and at most {self.classes - 1} for {self.classes} outputs"
        )
        return f"Class labels must be at least 0{largest}"


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
