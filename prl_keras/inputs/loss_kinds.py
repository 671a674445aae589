"""Which targets Keras's losses take: class numbers, labels 0 and 1, one-hot labels, real values."""

import inspect
from collections.abc import Sequence
from typing import Any

import keras

from prl_keras.losses import Bootstrap

_SPARSE_LOSSES = (
    keras.losses.SparseCategoricalCrossentropy,
    keras.losses.CategoricalGeneralizedCrossEntropy,
)
_SPARSE_FUNCTIONS = (
    keras.losses.sparse_categorical_crossentropy,
    keras.losses.categorical_generalized_cross_entropy,
)
_BINARY_LOSSES = (keras.losses.BinaryCrossentropy, keras.losses.BinaryFocalCrossentropy)
_BINARY_FUNCTIONS = (keras.losses.binary_crossentropy, keras.losses.binary_focal_crossentropy)
_LOG_LOSSES = (
    keras.losses.SparseCategoricalCrossentropy,
    keras.losses.CategoricalCrossentropy,
    keras.losses.BinaryCrossentropy,
)
_LOG_FUNCTIONS = (
    keras.losses.sparse_categorical_crossentropy,
    keras.losses.categorical_crossentropy,
    keras.losses.binary_crossentropy,
)
_REGRESSION_LOSSES = (
    keras.losses.MeanSquaredError,
    keras.losses.MeanAbsoluteError,
    keras.losses.MeanAbsolutePercentageError,
    keras.losses.MeanSquaredLogarithmicError,
    keras.losses.Huber,
    keras.losses.LogCosh,
)
_REGRESSION_FUNCTIONS = (
    keras.losses.mean_squared_error,
    keras.losses.mean_absolute_error,
    keras.losses.mean_absolute_percentage_error,
    keras.losses.mean_squared_logarithmic_error,
    keras.losses.huber,
    keras.losses.log_cosh,
)
_MEAN_OF_ENTRIES_LOSSES = (
    *_BINARY_LOSSES,
    *_REGRESSION_LOSSES,
    keras.losses.Hinge,
    keras.losses.SquaredHinge,
    keras.losses.Poisson,
)
_MEAN_OF_ENTRIES_FUNCTIONS = (
    *_BINARY_FUNCTIONS,
    *_REGRESSION_FUNCTIONS,
    keras.losses.hinge,
    keras.losses.squared_hinge,
    keras.losses.poisson,
)
_STEEP_LOSSES = (keras.losses.MeanSquaredError, keras.losses.MeanSquaredLogarithmicError)
_STEEP_FUNCTIONS = (keras.losses.mean_squared_error, keras.losses.mean_squared_logarithmic_error)
_FLAT_LOSSES = (keras.losses.MeanAbsoluteError, keras.losses.MeanAbsolutePercentageError)
_FLAT_FUNCTIONS = (keras.losses.mean_absolute_error, keras.losses.mean_absolute_percentage_error)
_ONE_HOT_LOSSES = (keras.losses.CategoricalCrossentropy, keras.losses.CategoricalFocalCrossentropy)
_ONE_HOT_FUNCTIONS = (keras.losses.categorical_crossentropy, keras.losses.categorical_focal_crossentropy)


def is_sparse(loss: Any) -> bool:
    """Whether the loss takes class labels as integers."""
    return _is_any(loss, _SPARSE_LOSSES, _SPARSE_FUNCTIONS)


def is_binary(loss: Any) -> bool:
    """Whether the loss takes labels 0 and 1 for each output."""
    return _is_any(loss, _BINARY_LOSSES, _BINARY_FUNCTIONS)


def is_one_hot(loss: Any) -> bool:
    """Whether the loss takes one-hot labels, or a probability for each class."""
    return _is_any(loss, _ONE_HOT_LOSSES, _ONE_HOT_FUNCTIONS)


def is_mean(loss: Any) -> bool:
    """Whether Keras takes the mean of the loss over the batch, rather than a sum or no reduction."""
    return getattr(loss, "reduction", "mean") in ("sum_over_batch_size", "mean", "mean_with_sample_weight")


def is_by_example(loss: Any) -> bool:
    """Whether the loss of an example is known to depend on that example alone.

    True for the losses of Keras and prl_keras that do. A user's own loss may look at the whole batch, for
    example at how often each class occurs.

    Args:
        loss: A loss or its name, a structure of them, or `outputs.OutputLosses`.
    """
    parts = keras.tree.flatten(loss if isinstance(loss, keras.losses.Loss) else getattr(loss, "loss", loss))
    return all(part is None or _is_by_example(keras.losses.get(part)) for part in parts)


def is_of_classes(loss: Any) -> bool:
    """Whether the loss takes class numbers, labels 0 and 1, or one-hot labels."""
    return is_sparse(loss) or is_binary(loss) or is_one_hot(loss) or isinstance(loss, Bootstrap)


def is_log_probability(loss: Any) -> bool:
    """Whether the loss of an example is -log p, with p the probability of its label: plain cross-entropy."""
    return _is_any(loss, _LOG_LOSSES, _LOG_FUNCTIONS) and not getattr(loss, "label_smoothing", 0)


def may_be_flat(loss: Any) -> bool:
    """Whether the gradient may stay constant as the error grows, as for the absolute error.

    True for unknown losses.
    """
    return not (_is_any(loss, _STEEP_LOSSES, _STEEP_FUNCTIONS) or is_of_classes(loss))


def is_flat(loss: Any) -> bool:
    """Whether the loss's gradient depends only on the sign of the error."""
    return _is_any(loss, _FLAT_LOSSES, _FLAT_FUNCTIONS)


def is_softmax_cross_entropy(loss: Any, y_pred_has_logits: bool) -> bool:
    """Whether the loss is the cross-entropy of class numbers, computed from logits.

    Args:
        loss: A `keras.losses.Loss` or a function.
        y_pred_has_logits: Whether Keras keeps the logits behind the predictions.
    """
    return (
        type(loss) is keras.losses.SparseCategoricalCrossentropy
        and (loss.from_logits or y_pred_has_logits)
        and loss.ignore_class is None
    )


def labels_kind(
    loss: Any, shape: Sequence[int | None], outputs: int | None, rank: int | None = None
) -> str | None:
    """ "classes" if the loss takes class indices, "shares" if it takes values in [0, 1] per class, else None.

    Args:
        loss: A `keras.losses.Loss` or a function.
        shape: Shape of the targets.
        outputs: Size of the predictions' last axis, or None if unknown.
        rank: Number of the predictions' axes, or None if unknown.
    """
    if isinstance(loss, Bootstrap):  # takes both
        is_wide = outputs == 1 or (len(shape) == (rank or max(len(shape), 2)) and shape[-1] != 1)
        return "shares" if is_wide else "classes"
    if is_sparse(loss):
        return "classes"
    return "shares" if is_binary(loss) or is_one_hot(loss) else None


def is_regression(loss: Any) -> bool:
    """Whether the loss is one of Keras's losses for real-valued targets."""
    return _is_any(loss, _REGRESSION_LOSSES, _REGRESSION_FUNCTIONS)


def is_mean_of_entries(loss: Any) -> bool:
    """Whether the loss of Keras is the mean of one value for each entry of the last axis."""
    return _is_any(loss, _MEAN_OF_ENTRIES_LOSSES, _MEAN_OF_ENTRIES_FUNCTIONS)


def is_over_axis(loss: Any) -> bool:
    """Whether the loss of Keras has an `axis` to reduce, and reduces all of them by default."""
    losses, functions = (keras.losses.Dice, keras.losses.Tversky), (keras.losses.dice, keras.losses.tversky)
    return _is_any(loss, losses, functions)


def is_of_pairs(loss: Any) -> bool:
    """Whether the loss compares the examples of a batch with each other."""
    return _is_any(loss, (keras.losses.Circle,), (keras.losses.circle,))


def takes_other_shapes(loss: Any) -> bool:
    """Whether the loss of Keras takes targets of another shape than the predictions, and no class of each."""
    return is_of_pairs(loss) or is_ctc(loss)


def is_ctc(loss: Any) -> bool:
    """Whether the loss aligns sequences of predictions with shorter sequences of labels."""
    return _is_any(loss, (keras.losses.CTC,), (keras.losses.ctc,))


def _is_any(loss, losses, functions):
    return isinstance(loss, losses) or getattr(loss, "fn", loss) in functions


def expects_probabilities(loss: Any) -> bool:
    """True for a cross-entropy with `from_logits=False`, as an object or as a function."""
    if hasattr(loss, "from_logits"):
        return not loss.from_logits
    try:
        parameter = inspect.signature(getattr(loss, "fn", loss)).parameters.get("from_logits")
    except (TypeError, ValueError):
        return False
    return parameter is not None and parameter.default is False


def name_of(loss: Any) -> str:
    """The name of a loss in error messages."""
    name: Any = getattr(loss, "name", None) or getattr(loss, "__name__", repr(loss))
    return name


def names_of(losses: Any) -> str:
    """The names of a structure of losses in error messages, separated by commas."""
    return ", ".join(name_of(loss) for loss in keras.tree.flatten(losses) if loss is not None)


def _is_by_example(loss):
    if is_of_pairs(loss) or is_over_axis(loss):
        return False
    parts = [getattr(loss, "fn", loss), *([type(loss)] if isinstance(loss, keras.losses.Loss) else [])]
    return all(module_of(part).startswith(("keras.", "prl_keras.")) for part in parts)


def module_of(loss: Any) -> str:
    """The module that defines a loss, "" if it has none."""
    return getattr(loss, "__module__", None) or ""
