"""Which targets Keras's losses take: class numbers, labels 0 and 1, one-hot labels, real values."""

import functools
import inspect
from collections.abc import Sequence
from typing import Any

import keras

from prl_keras.losses import Bootstrap

_SPARSE = (keras.losses.SparseCategoricalCrossentropy, keras.losses.CategoricalGeneralizedCrossEntropy)
_BINARY = (keras.losses.BinaryCrossentropy, keras.losses.BinaryFocalCrossentropy)
_ONE_HOT = (keras.losses.CategoricalCrossentropy, keras.losses.CategoricalFocalCrossentropy)
_LOG = (
    keras.losses.SparseCategoricalCrossentropy,
    keras.losses.CategoricalCrossentropy,
    keras.losses.BinaryCrossentropy,
)
_REGRESSION = (
    keras.losses.MeanSquaredError,
    keras.losses.MeanAbsoluteError,
    keras.losses.MeanAbsolutePercentageError,
    keras.losses.MeanSquaredLogarithmicError,
    keras.losses.Huber,
    keras.losses.LogCosh,
)
_MEAN_OF_ENTRIES = (
    *_BINARY,
    *_REGRESSION,
    keras.losses.Hinge,
    keras.losses.SquaredHinge,
    keras.losses.Poisson,
)
_STEEP = (keras.losses.MeanSquaredError, keras.losses.MeanSquaredLogarithmicError)
_FLAT = (keras.losses.MeanAbsoluteError, keras.losses.MeanAbsolutePercentageError)


def is_sparse(loss: Any) -> bool:
    """Whether the loss takes class labels as integers."""
    return _is_any(loss, _SPARSE)


def is_binary(loss: Any) -> bool:
    """Whether the loss takes labels 0 and 1 for each output."""
    return _is_any(loss, _BINARY)


def is_one_hot(loss: Any) -> bool:
    """Whether the loss takes one-hot labels, or a probability for each class."""
    return _is_any(loss, _ONE_HOT)


def reduction_of(loss: Any) -> Any:
    """The reduction of a loss; Keras takes that of a function to be "sum_over_batch_size"."""
    return getattr(loss, "reduction", "sum_over_batch_size")


def is_mean(loss: Any) -> bool:
    """Whether Keras takes the mean of the loss over the batch, rather than a sum or no reduction."""
    return reduction_of(loss) in ("sum_over_batch_size", "mean", "mean_with_sample_weight")


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
    return _is_any(loss, _LOG) and not getattr(loss, "label_smoothing", 0)


def may_be_flat(loss: Any) -> bool:
    """Whether the gradient may stay constant as the error grows, as for the absolute error.

    True for unknown losses.
    """
    return not (_is_any(loss, _STEEP) or is_of_classes(loss))


def is_flat(loss: Any) -> bool:
    """Whether the loss's gradient depends only on the sign of the error."""
    return _is_any(loss, _FLAT)


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
    return _is_any(loss, _REGRESSION)


def is_mean_of_entries(loss: Any) -> bool:
    """Whether the loss of Keras is the mean of one value for each entry of the last axis."""
    return _is_any(loss, _MEAN_OF_ENTRIES)


def is_over_axis(loss: Any) -> bool:
    """Whether the loss of Keras has an `axis` to reduce, and reduces all of them by default."""
    return _is_any(loss, (keras.losses.Dice, keras.losses.Tversky))


def is_of_pairs(loss: Any) -> bool:
    """Whether the loss compares the examples of a batch with each other."""
    return _is_any(loss, (keras.losses.Circle,))


def takes_other_shapes(loss: Any) -> bool:
    """Whether the loss of Keras takes targets of another shape than the predictions, and no class of each."""
    return is_of_pairs(loss) or is_ctc(loss)


def is_ctc(loss: Any) -> bool:
    """Whether the loss aligns sequences of predictions with shorter sequences of labels."""
    return _is_any(loss, (keras.losses.CTC,))


def _is_any(loss, kinds):
    """Whether the loss is of one of these classes, or the function of one."""
    return isinstance(loss, kinds) or getattr(loss, "fn", loss) in _functions(kinds)


@functools.cache
def _functions(kinds):
    return [kind().fn for kind in kinds]


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
