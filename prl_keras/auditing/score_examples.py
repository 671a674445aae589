"""Scoring a whole data set: how suspect is each example to a trained model?"""

import functools

import numpy as np
import tensorflow as tf

from prl_keras.inputs import nonfinite, outputs
from prl_keras.inputs.batches import batches
from prl_keras.keras_gaps.replicas import on_one_replica
from prl_keras.models.configuration import check_compiled
from prl_keras.models.robust_model import RobustModel
from prl_keras.models.weighted_model import WeightedModel


def score_examples(model, dataset, batch_size=256):
    """How suspect each example is to `model`, in data order.

    In inference mode: no dropout, batch normalization with its moving statistics; nothing is trained.
    The data are read once, in the order they come, so a `tf.data` pipeline must not shuffle.

    Args:
        model: A compiled `RobustModel` (its own score), `CoTeachingModel` (the mean over its two
            networks) or any compiled Keras model with a loss (the loss-layer gradient norm).
        dataset: A `tf.data.Dataset` or `keras.utils.PyDataset` of batches `(x, y)` or
            `(x, y, sample_weight)`, or a tuple of arrays `(x, y)`. Sample weights are not looked at.
        batch_size: For a tuple of arrays.

    Returns:
        float32 NumPy array `[n]`, higher = more suspect; infinity where inputs or targets are not finite.

    Raises:
        ValueError: for an empty data set, missing targets, or a model without a loss.
    """
    check_compiled(model)
    if not isinstance(model, WeightedModel):
        plain, model = model, RobustModel(model)
        model.compile(loss=plain.loss, loss_weights=outputs.loss_weights_of(plain))

    def mean_score(x, y):
        scores = tf.add_n(model.example_scores(x, y)) / len(model.networks)
        return tf.where(nonfinite.find((x, y)), np.inf, scores)

    @functools.partial(tf.function, autograph=False, reduce_retracing=True)
    def mean_scores(x, y):
        return on_one_replica(model.distribute_strategy, mean_score, x, y)

    parts = [mean_scores(x, y).numpy() for x, y in batches(dataset, batch_size)]
    return np.concatenate(parts)
