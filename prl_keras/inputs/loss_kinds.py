"""Which of Keras's losses takes what: class numbers, labels 0 and 1, one-hot labels, real values."""

import inspect

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
_ONE_HOT_LOSSES = (keras.losses.CategoricalCrossentropy, keras.losses.CategoricalFocalCrossentropy)
_ONE_HOT_FUNCTIONS = (keras.losses.categorical_crossentropy, keras.losses.categorical_focal_crossentropy)


def is_sparse(loss):
    """Whether the loss takes class labels as integers."""
    return isinstance(loss, _SPARSE_LOSSES) or getattr(loss, "fn", loss) in _SPARSE_FUNCTIONS


def is_binary(loss):
    """Whether the loss takes labels 0 and 1 for each output."""
    return isinstance(loss, _BINARY_LOSSES) or getattr(loss, "fn", loss) in _BINARY_FUNCTIONS


def is_one_hot(loss):
    """Whether the loss takes one-hot labels, or a probability for each class."""
    return isinstance(loss, _ONE_HOT_LOSSES) or getattr(loss, "fn", loss) in _ONE_HOT_FUNCTIONS


def labels_kind(loss, shape, outputs):
    """Of targets that are class numbers "classes", that are shares of classes in [0, 1] "shares"; else None.

    Args:
        loss: A `keras.losses.Loss` or a function.
        shape: Of the targets.
        outputs: Size of the predictions' last axis, or None if it is not known.
    """
    if isinstance(loss, Bootstrap):  # takes both
        is_wide = outputs == 1 or (len(shape) > 1 and shape[-1] != 1)
        return "shares" if is_wide else "classes"
    if is_sparse(loss):
        return "classes"
    return "shares" if is_binary(loss) or is_one_hot(loss) else None


def is_regression(loss):
    """Whether it is one of Keras's losses for real-valued targets."""
    return isinstance(loss, _REGRESSION_LOSSES) or getattr(loss, "fn", loss) in _REGRESSION_FUNCTIONS


def expects_probabilities(loss):
    """True for a cross-entropy with `from_logits=False`, as an object or as a function."""
    if hasattr(loss, "from_logits"):
        return not loss.from_logits
    try:
        parameter = inspect.signature(getattr(loss, "fn", loss)).parameters.get("from_logits")
    except (TypeError, ValueError):
        return False
    return parameter is not None and parameter.default is False


def name_of(loss):
    """How error messages call a loss."""
    return getattr(loss, "name", None) or getattr(loss, "__name__", repr(loss))
