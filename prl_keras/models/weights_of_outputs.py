"""The weights of the examples as Keras's compiled loss takes them: one array for each output."""

import typing
from collections.abc import Sequence

import keras
import tensorflow as tf

from prl_keras.inputs import loss_kinds
from prl_keras.inputs.shapes import aligned, check_weight_shape
from prl_keras.scores.loss import unreduced_loss


def weights_of_outputs(
    parts: Sequence[typing.Any], y_pred: typing.Any, weights: tf.Tensor, factors: tf.Tensor | None
) -> typing.Any:
    """The rule's weights times the user's, in the structure of the predictions.

    Args:
        parts: A list of `outputs.Output`.
        y_pred: All the predictions.
        weights: The rule's weights `[n]`.
        factors: One factor on the weights per part, or None for 1.

    Raises:
        ValueError: for weights that do not fit, or losses that cannot take the same weights.
    """
    of_paths: dict[typing.Any, list[tuple[int, typing.Any]]] = {}
    for i, part in enumerate(parts):
        of_paths.setdefault(part.path, []).append((i, part))
    combined: typing.Any = {}
    for path, of_path in of_paths.items():
        shapes = [tuple(unreduced_loss(*part[:3]).shape) for _, part in of_path]
        _check_one_rank([part for _, part in of_path], shapes, factors)
        i, part = of_path[0]
        if part.sample_weight is not None:
            for shape in shapes:
                check_weight_shape(tuple(part.sample_weight.shape), shape)
        product = combine(weights, part.sample_weight, max(map(len, shapes)))
        combined[path] = product if factors is None else product * factors[i]
    return _packed(combined, y_pred, ())


def with_axes_of_predictions(parts: Sequence[typing.Any], y: typing.Any) -> typing.Any:
    """The targets `y`, with the last axis of size 1 that the predictions have (`shapes.aligned`)."""
    found = {}
    for part in parts:
        if not keras.tree.is_nested(part.y_pred):
            found[id(part.y_true)] = aligned(part.y_true, part.y_pred, part.loss)[0]
    return keras.tree.map_structure(lambda t: found.get(id(t), t), y)


def combine(weights: tf.Tensor, sample_weight: typing.Any, rank: int) -> tf.Tensor:
    """The rule's weights `[batch]` times the user's `[batch, ...]`, in the rank of the losses.

    Keras would broadcast `[batch]` along the last axis of losses `[batch, steps]`.
    """
    given = [tf.cast(w, tf.float32) for w in (weights, sample_weight) if w is not None]
    rank = max(rank, *(len(w.shape) for w in given))
    product = 1.0
    for w in given:
        product *= tf.reshape(w, tf.concat([tf.shape(w), [1] * (rank - len(w.shape))], axis=0))
    return product


def _packed(combined, y_pred, path):
    """A structure that has the weights at their paths, and None for predictions without a loss."""
    if path in combined:
        if sum(other[: len(path)] == path for other in combined) > 1:
            raise ValueError(
                "A loss of several outputs together and losses of single ones among them cannot have the "
                "same weights. Give one loss for all of these outputs, which adds what you want of each."
            )
        return combined[path]
    if isinstance(y_pred, dict):
        return {key: _packed(combined, value, (*path, key)) for key, value in y_pred.items()}
    if isinstance(y_pred, (list, tuple)):
        kind = tuple if isinstance(y_pred, tuple) else list
        return kind(_packed(combined, value, (*path, key)) for key, value in enumerate(y_pred))
    return None


def _check_one_rank(parts, shapes, factors):
    """Rejects several losses of one output that Keras cannot give the same weights (ValueError)."""
    ranks = {max(2, len(shape)) for shape in shapes}  # Keras takes weights `[batch, 1]` for `[batch]`, too
    ignores = {getattr(part.loss, "ignore_class", None) for part in parts}
    if len(ranks) > 1 or (factors is not None and len(ignores) > 1):
        names = " and ".join(loss_kinds.name_of(part.loss) for part in parts)
        raise ValueError(
            f"The losses {names} of one output give values of shapes {' and '.join(map(str, shapes))}, which "
            "cannot take the same weights. Give one loss that adds them, with one value for each example."
        )
