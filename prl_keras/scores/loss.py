"""The loss of each example, as a score and as what the other scores are made of.

Where Keras computes several values for an example (one for each time step or pixel), its loss is the mean
over those that count. Keras says which: a value does not count if a mask hides it (of the predictions, or of
`ignore_class`), or if the user's weight for it is 0. An example of which nothing counts is padding.
"""

import functools

import keras
from keras import ops

from prl_keras.inputs import outputs
from prl_keras.inputs.shapes import check_one_value_per_example, check_shapes, check_weight_shape
from prl_keras.keras_gaps.internals import mask_of


def per_example_loss(y_true, y_pred, loss, sample_weight=None):
    """The loss of each example, before any reduction.

    Args:
        y_true: Targets `[batch, ...]`, as the loss takes them; of several outputs a list or a dict.
        y_pred: Predictions `[batch, ...]`, or a structure of them. Keras's mask on them is looked at.
        loss: A `keras.losses.Loss`, its name, or a function of `(y_true, y_pred)`; of several outputs a
            structure of these, one for all, or `outputs.OutputLosses`, which also has their weights.
        sample_weight: The user's weights, or None. Those of 0 for a step or a pixel make it not count; how
            large the others are does not matter.

    Returns:
        float32 `[batch]`. Where the loss gives more than one value per example (one per time step or
        pixel), the mean over those that count; 0 where none does. Of several outputs the weighted sum.

    Raises:
        ValueError: if the loss gives a scalar, or the shapes would broadcast.
    """
    loss = keras.losses.get(loss) if is_single(loss, y_pred) else loss
    parts = outputs.split(loss, y_true, y_pred, sample_weight)
    if is_single(loss, y_pred):
        return mean_of_counted(*values_of(parts[0]))
    return sum(part.weight * summed_values(part) * mean_of_counted(*values_of(part)) for part in parts)


def targets_of(y_true, sample_weight):
    """What of a batch makes the loss, a structure of tensors `[batch, ...]`: see `loss_of_targets`."""
    given = [weight for weight in keras.tree.flatten(sample_weight) if weight is not None]
    if not any(len(weight.shape) > 1 for weight in given):
        return (y_true,)
    ones = ops.ones((ops.shape(given[0])[0], 1))  # a structure that is mapped over holds no None
    return y_true, keras.tree.map_structure(lambda t: ones if t is None else t, sample_weight)


def loss_of_targets(loss_of, targets, y_pred):
    """`per_example_loss` of what `targets_of` gave; `loss_of(y_pred)` gives the loss."""
    y_true, *sample_weight = targets
    return per_example_loss(y_true, y_pred, loss_of(y_pred), *sample_weight)


def unreduced_loss(y_true, y_pred, loss):
    """What a Keras loss computes before its reduction: float32 `[batch]` or `[batch, steps, ...]`.

    Args and errors as in `per_example_loss`, of a single output; `loss` is an object or a function.
    """
    return _values_and_mask(y_true, y_pred, loss)[0]


def values_of(part):
    """-> (`unreduced_loss` of an `outputs.Output`, which of it counts: bool in its shape, None for all)."""
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


def mean_of_counted(values, counts):
    """The mean over all axes but the first of what counts: float32 `[batch]`, 0 where nothing does.

    Args:
        values: float32 `[batch, ...]`.
        counts: bool of the same shape, or None if all count.
    """
    axes = tuple(range(1, len(values.shape)))
    if counts is None:
        return ops.mean(values, axis=axes) if axes else values
    values = ops.where(counts, values, 0.0)
    return ops.sum(values, axis=axes) / ops.maximum(number_counted(counts), 1.0) if axes else values


def number_counted(counts):
    """How many values of each example count: float32 `[batch]`."""
    counts = ops.cast(counts, "float32")
    axes = tuple(range(1, len(counts.shape)))
    return ops.sum(counts, axis=axes) if axes else counts


def root_of_counted(y_true, y_pred, loss, sample_weight=None):
    """The square root of how many values of each example count, float32 `[batch]`; 1.0 where all do.

    The gradient of a mean over `n` steps with errors of their own is smaller by `1 / sqrt(n)`. Left alone, it
    would make short sequences look suspect. So rules that rank see it times this root, of several outputs the
    largest.

    Args:
        y_true, y_pred, loss, sample_weight: As in `per_example_loss`.
    """
    counts = [values_of(part)[1] for part in outputs.split(loss, y_true, y_pred, sample_weight)]
    roots = [ops.sqrt(number_counted(each)) for each in counts if each is not None]
    return functools.reduce(ops.maximum, roots) if roots else 1.0


def is_single(loss, y_pred):
    """Whether it is one loss of one output."""
    return not (
        keras.tree.is_nested(y_pred) or keras.tree.is_nested(loss) or isinstance(loss, outputs.OutputLosses)
    )


def summed_values(part):
    """How many values of an example Keras adds up rather than takes a mean of: a scalar, or `[batch]`."""
    if getattr(part.loss, "reduction", None) != "sum":
        return 1.0
    values, counts = values_of(part)
    if counts is not None:
        return number_counted(counts)
    return ops.cast(ops.prod(ops.convert_to_tensor(ops.shape(values)[1:], "int32")), "float32")


def in_rank(mask, rank):
    """A mask `[batch, ...]` with axes of 1 added at the end, or what any of its last axes says."""
    if len(mask.shape) > rank:
        return ops.any(mask, axis=tuple(range(rank, len(mask.shape))))
    for _ in range(rank - len(mask.shape)):
        mask = ops.expand_dims(mask, -1)
    return mask


def _values_and_mask(y_true, y_pred, loss):
    check_shapes(y_true, y_pred, loss)
    y_pred = ops.convert_to_tensor(y_pred, dtype="float32")
    y_true = ops.convert_to_tensor(y_true, dtype="float32")
    values = loss.call(y_true, y_pred) if isinstance(loss, keras.losses.Loss) else loss(y_true, y_pred)
    mask = mask_of(values)  # of `ignore_class`
    values = ops.cast(values, "float32")
    check_one_value_per_example(values, y_pred, loss)
    return values, mask
