"""The loss of each example, as a score and as what the other scores are made of."""

import keras
from keras import ops

from prl_keras.inputs import outputs
from prl_keras.inputs.shapes import check_one_value_per_example, check_shapes


def per_example_loss(y_true, y_pred, loss):
    """The loss of each example, before any reduction.

    Args:
        y_true: Targets `[batch, ...]`, as the loss takes them; of several outputs a list or a dict.
        y_pred: Predictions `[batch, ...]`, or a structure of them.
        loss: A `keras.losses.Loss`, its name, or a function of `(y_true, y_pred)`; of several outputs a
            structure of these, one for all, or `outputs.OutputLosses`, which also has their weights.

    Returns:
        float32 `[batch]`. Where the loss gives more than one value per example (one per time step or
        pixel), their mean, as in Keras. Of several outputs the weighted sum.

    Raises:
        ValueError: if the loss gives a scalar, or the shapes would broadcast.
    """
    if is_single(loss, y_pred):
        return _mean_over_steps(unreduced_loss(y_true, y_pred, keras.losses.get(loss)))
    parts = outputs.split(loss, y_true, y_pred)
    return sum(part.weight * _loss_of_output(part) for part in parts)


def unreduced_loss(y_true, y_pred, loss):
    """What a Keras loss computes before its reduction: float32 `[batch]` or `[batch, steps, ...]`.

    Args and errors as in `per_example_loss`, of a single output; `loss` is an object or a function.
    """
    check_shapes(y_true, y_pred, loss)
    y_pred = ops.convert_to_tensor(y_pred, dtype="float32")
    y_true = ops.convert_to_tensor(y_true, dtype="float32")
    values = loss.call(y_true, y_pred) if isinstance(loss, keras.losses.Loss) else loss(y_true, y_pred)
    values = ops.cast(values, "float32")
    check_one_value_per_example(values, y_pred, loss)
    return values


def is_single(loss, y_pred):
    """Whether it is one loss of one output."""
    return not (
        keras.tree.is_nested(y_pred) or keras.tree.is_nested(loss) or isinstance(loss, outputs.OutputLosses)
    )


def summed_steps(part):
    """How many values of an example Keras adds up rather than takes a mean of, a scalar."""
    if getattr(part.loss, "reduction", None) != "sum":
        return 1.0
    shape = ops.shape(unreduced_loss(*part[:3]))
    return ops.cast(ops.prod(ops.convert_to_tensor(shape[1:], "int32")), "float32")


def _mean_over_steps(values):
    # A mean over the other axes; the batch axis stays as it is, empty or of static size.
    axes = tuple(range(1, len(values.shape)))
    return ops.mean(values, axis=axes) if axes else values


def _loss_of_output(part):
    return summed_steps(part) * _mean_over_steps(unreduced_loss(*part[:3]))
