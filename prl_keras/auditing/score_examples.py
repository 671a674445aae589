"""Scoring a whole data set: how suspect is each example to a trained model?"""

import functools
import typing

import numpy as np
import tensorflow as tf

from prl_keras.inputs import outputs
from prl_keras.inputs.batches import weighted_batches
from prl_keras.inputs.valid_labels import labels_of
from prl_keras.keras_gaps.replicas import on_one_replica
from prl_keras.models import in_inference
from prl_keras.models.configuration import check_compiled
from prl_keras.models.elements import UNITS
from prl_keras.models.robust_model import RobustModel
from prl_keras.models.weighted_model import WeightedModel


def score_examples(
    model: typing.Any, dataset: typing.Any, batch_size: int = 256, unit: str = "example"
) -> np.ndarray:
    """How suspect each example is to `model`, in data order.

    The model runs in inference mode (no dropout, moving statistics in batch normalization) and is not
    trained. The data are read once, in their order, so a `tf.data` pipeline must not shuffle.

    Args:
        model: A compiled `RobustModel` (its own score), `CoTeachingModel` (the mean over its two
            networks) or any compiled Keras model with a loss (the loss-layer gradient norm).
        dataset: A `tf.data.Dataset` or `keras.utils.PyDataset` of batches `(x, y)` or
            `(x, y, sample_weight)`, or a tuple of such arrays. A weight of 0 for a step or a pixel excludes
            it; all other weights are ignored.
        batch_size: The batch size for a tuple of arrays.
        unit: "example", or "element" for a score per step, pixel or attribute; this needs a model with
            `unit="element"`.

    Returns:
        float32 NumPy array `[n]`, higher = more suspect; infinity if inputs or targets are non-finite, NaN
        if nothing in an example counts. For a model with `unit="element"` the score of an example is the mean
        over its elements. With `unit="element"` here, the scores have the shape of the labels, `[n, ...]`.

    Raises:
        ValueError: for an empty data set, missing targets, single examples in place of batches, different
            numbers of rows, class numbers out of range, or a model without a loss; for `unit="element"`
            with a model that ranks examples, or with label shapes that differ between batches.
    """
    check_compiled(model)
    if unit not in (UNITS[0], getattr(model, "unit", UNITS[0])):
        raise ValueError(
            f"unit={unit!r} needs a model that ranks elements: RobustModel(network, ..., unit='element')."
        )
    if not isinstance(model, WeightedModel):
        plain, model = model, RobustModel(model)
        model.compile(loss=plain.loss, loss_weights=outputs.loss_weights_of(plain))

    def mean_score(x, y, sample_weight):
        return in_inference.mean_scores(model, x, y, sample_weight, by_example=unit == "example")

    @functools.partial(tf.function, autograph=False, reduce_retracing=True)
    def mean_scores(x, y, sample_weight):
        return on_one_replica(model.distribute_strategy, mean_score, x, y, sample_weight)

    parts: list[np.ndarray] = []
    predicted = None
    for x, y, sample_weight in weighted_batches(dataset, batch_size):
        if predicted is None:
            predicted = in_inference.predictions_spec(model.networks[0], x)
        for labels in labels_of(model, y, predicted):
            if not labels.is_shares and labels.y.dtype.is_integer:
                labels.check(sum(map(len, parts)))
        parts.append(mean_scores(x, y, sample_weight).numpy())
    shapes = sorted({str(part.shape[1:]) for part in parts})
    if len(shapes) > 1:
        raise ValueError(
            f"The batches have labels of shapes {', '.join(shapes)}; pad them to one, with sample_weight 0."
        )
    return np.concatenate(parts)


def count_different(scores: typing.Any) -> int:
    """The number of different values among finite scores `[n]`; values equal to three digits are one."""
    return len(np.unique(np.asarray(scores, np.float32).view(np.int32) >> 13))
