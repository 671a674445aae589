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
_STEEP_LOSSES = (keras.losses.MeanSquaredError, keras.losses.MeanSquaredLogarithmicError)
_STEEP_FUNCTIONS = (keras.losses.mean_squared_error, keras.losses.mean_squared_logarithmic_error)
_FLAT_LOSSES = (keras.losses.MeanAbsoluteError, keras.losses.MeanAbsolutePercentageError)
_FLAT_FUNCTIONS = (keras.losses.mean_absolute_error, keras.losses.mean_absolute_percentage_error)
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


def is_mean(loss):
    """Whether Keras takes a mean of the loss over the batch, rather than a sum or no reduction."""
    return getattr(loss, "reduction", "mean") in ("sum_over_batch_size", "mean", "mean_with_sample_weight")


def is_of_classes(loss):
    """Whether the loss takes class numbers, labels 0 and 1, or one-hot labels."""
    return is_sparse(loss) or is_binary(loss) or is_one_hot(loss) or isinstance(loss, Bootstrap)


def may_be_flat(loss):
    """Whether the loss may grow with the error and its gradient stay, as the absolute error's does.

    True for losses that are not known.
    """
    grows = isinstance(loss, _STEEP_LOSSES) or getattr(loss, "fn", loss) in _STEEP_FUNCTIONS
    return not (grows or is_of_classes(loss))


def is_flat(loss):
    """Whether the loss's gradient does not depend on the error but for its sign."""
    return isinstance(loss, _FLAT_LOSSES) or getattr(loss, "fn", loss) in _FLAT_FUNCTIONS


def is_softmax_cross_entropy(loss, y_pred_has_logits):
    """Whether it is the cross-entropy of class numbers, computed from logits.

    Args:
        loss: A `keras.losses.Loss` or a function.
        y_pred_has_logits: Whether Keras keeps the logits behind the predictions.
    """
    return (
        type(loss) is keras.losses.SparseCategoricalCrossentropy
        and (loss.from_logits or y_pred_has_logits)
        and loss.ignore_class is None
    )


def labels_kind(loss, shape, outputs, rank=None):
    """Of targets that are class numbers "classes", that are shares of classes in [0, 1] "shares"; else None.

    Args:
        loss: A `keras.losses.Loss` or a function.
        shape: Of the targets.
        outputs: Size of the predictions' last axis, or None if it is not known.
        rank: Number of the predictions' axes, or None if it is not known.
    """
    if isinstance(loss, Bootstrap):  # takes both
        is_wide = outputs == 1 or (len(shape) == (rank or max(len(shape), 2)) and shape[-1] != 1)
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
