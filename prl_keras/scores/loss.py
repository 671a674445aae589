"""The loss of each example: a score, and the basis of the other scores.

Where Keras computes several values for an example (one for each time step or pixel), its loss is the mean
over those that count. As in Keras, a value does not count if a mask hides it (of the predictions, or of
`ignore_class`), or if the user's weight for it is 0. An example without any value that counts is padding.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops

from prl_keras.inputs import outputs
from prl_keras.inputs.shapes import (
    aligned,
    check_by_example,
    check_can_be_vectorized,
    check_one_value_per_example,
    check_shapes,
    check_weight_shape,
)
from prl_keras.keras_gaps.internals import as_loss, mask_of


def per_example_loss(y_true: Any, y_pred: Any, loss: Any, sample_weight: Any = None) -> Any:
    """The loss of each example, before any reduction.

    Args:
        y_true: Targets `[batch, ...]`, as the loss takes them; a list or a dict for several outputs.
        y_pred: Predictions `[batch, ...]`, or a structure of them. Keras's mask on them is used.
        loss: A `keras.losses.Loss`, its name, or a function of `(y_true, y_pred)`. For several outputs a
            structure of these, one for all, or `outputs.OutputLosses`, which also has the loss weights.
        sample_weight: The user's weights, or None. A step or pixel of weight 0 does not count; the size
            of other weights does not matter.

    Returns:
        float32 `[batch]`. If the loss returns several values per example (one per time step or pixel), the
        mean over those that count, or 0 if none does. For several outputs the weighted sum.

    Raises:
        ValueError: if the loss returns a scalar, or the shapes would broadcast.
    """
    is_one = outputs.is_single(loss, y_pred)
    loss = keras.losses.get(loss) if is_one else loss
    parts = outputs.split(loss, y_true, y_pred, sample_weight)
    if is_one:
        return mean_of_counted(*values_of(parts[0]))
    return sum(part.weight * summed_values(part) * mean_of_counted(*values_of(part)) for part in parts)


def targets_of(y_true: Any, sample_weight: Any) -> tuple[Any, ...]:
    """The parts of a batch that `loss_of_targets` needs, a structure of tensors `[batch, ...]`."""
    given = [weight for weight in keras.tree.flatten(sample_weight) if weight is not None]
    if not any(len(weight.shape) > 1 for weight in given):
        return (y_true,)
    ones = ops.ones((ops.shape(given[0])[0], 1), "float32")  # the map takes no None
    return y_true, keras.tree.map_structure(lambda t: ones if t is None else t, sample_weight)


def loss_of_targets(loss_of: Callable[[Any], Any], targets: tuple[Any, ...], y_pred: Any) -> Any:
    """`per_example_loss` of the result of `targets_of`; `loss_of(y_pred)` returns the loss."""
    y_true, *sample_weight = targets
    loss = loss_of(y_pred)
    losses = outputs.losses_of(loss, y_pred)
    check_by_example(losses, "an example has no gradient of its own")
    check_can_be_vectorized(losses)
    return per_example_loss(y_true, y_pred, loss, *sample_weight)


def unreduced_loss(y_true: Any, y_pred: Any, loss: Callable[..., Any]) -> Any:
    """What a Keras loss computes before its reduction: float32 `[batch]` or `[batch, steps, ...]`.

    Arguments and errors are those of `per_example_loss` for one output; `loss` is an object or a function.
    """
    return _values_and_mask(y_true, y_pred, loss)[0]


def values_of(part: outputs.Output) -> tuple[Any, Any]:
    """-> (`unreduced_loss` of the output, bool of the same shape: which values count, or None if all do)."""
    values, own_mask = _values_and_mask(*part[:3])
    parts = [mask for mask in (mask_of(part.y_pred), own_mask) if mask is not None]
    if part.sample_weight is not None and len(part.sample_weight.shape) > 1 and len(values.shape) > 1:
        check_weight_shape(tuple(part.sample_weight.shape), tuple(values.shape))
        parts.append(ops.not_equal(part.sample_weight, 0))
    if not parts:
        return values, None
    counts = ops.ones_like(values, dtype="bool")
    for each in parts:
        counts = ops.logical_and(counts, in_rank(ops.cast(each, "bool"), len(values.shape)))
    return values, counts


def mean_of_counted(values: Any, counts: Any) -> Any:
    """The mean of the values that count over all axes but the first: float32 `[batch]`, 0 if none counts.

    Args:
        values: float32 `[batch, ...]`.
        counts: bool of the same shape, or None if all count.
    """
    axes = tuple(range(1, len(values.shape)))
    if counts is None:
        return ops.mean(values, axis=axes) if axes else values
    values = ops.where(counts, values, 0.0)
    return ops.sum(values, axis=axes) / ops.maximum(number_counted(counts), 1.0) if axes else values


def number_counted(counts: Any) -> Any:
    """How many values of each example count: float32 `[batch]`."""
    counts = ops.cast(counts, "float32")
    axes = tuple(range(1, len(counts.shape)))
    return ops.sum(counts, axis=axes) if axes else counts


def root_of_counted(parts: Sequence[outputs.Output]) -> Any:
    """The square root of how many values of each example count, float32 `[batch]`; 1.0 if all do.

    The gradient of a mean over `n` steps with independent errors is smaller by `1 / sqrt(n)`, which would
    make long sequences look less suspect. So rules that rank see it times this root. For several outputs the
    largest root is used.

    Args:
        parts: The result of `outputs.split`.
    """
    counts = [values_of(part)[1] for part in parts]
    roots = [ops.sqrt(number_counted(each)) for each in counts if each is not None]
    return functools.reduce(ops.maximum, roots) if roots else 1.0


def is_counted(parts: Sequence[outputs.Output]) -> Any:
    """Whether an example is no padding, bool `[batch]`: a value of it counts, and a weight is not 0.

    Args:
        parts: The result of `outputs.split`.
    """
    flags = []
    for part in parts:
        values, counts = values_of(part)
        counts = ops.ones_like(values, dtype="bool") if counts is None else counts
        flags.append(in_rank(counts, 1))
        if part.sample_weight is not None:
            flags[-1] = ops.logical_and(flags[-1], in_rank(ops.not_equal(part.sample_weight, 0), 1))
    return functools.reduce(ops.logical_or, flags)


def summed_values(part: outputs.Output) -> Any:
    """The number of values per example if the loss has reduction "sum": a scalar or `[batch]`; else 1.0."""
    if getattr(part.loss, "reduction", None) != "sum":
        return 1.0
    values, counts = values_of(part)
    if counts is not None:
        return number_counted(counts)
    return ops.cast(ops.prod(ops.convert_to_tensor(ops.shape(values)[1:], "int32")), "float32")


def in_rank(mask: Any, rank: int) -> Any:
    """The mask `[batch, ...]` with `rank` axes: adds axes of 1, or reduces the last axes by "any"."""
    if len(mask.shape) > rank:
        return ops.any(mask, axis=tuple(range(rank, len(mask.shape))))
    for _ in range(rank - len(mask.shape)):
        mask = ops.expand_dims(mask, -1)
    return mask


def _values_and_mask(y_true, y_pred, loss):
    check_shapes(y_true, y_pred, loss)
    y_true, y_pred = aligned(y_true, y_pred, loss)
    y_true, y_pred = keras.tree.map_structure(
        lambda t: ops.convert_to_tensor(t, dtype="float32"), (y_true, y_pred)
    )
    values = as_loss(loss).call(y_true, y_pred)
    mask = mask_of(values)  # of `ignore_class`
    values = ops.cast(values, "float32")
    check_one_value_per_example(values, y_pred, loss)
    return values, mask
