"""What a trained model says of each example of a data set, beside what the data say."""

import functools
import typing

import keras
import numpy as np
import tensorflow as tf

from prl_keras.inputs import class_labels, loss_kinds, nonfinite
from prl_keras.inputs.batches import batches
from prl_keras.inputs.valid_labels import labels_for
from prl_keras.keras_gaps.replicas import on_one_replica
from prl_keras.models.configuration import check_compiled
from prl_keras.models.weighted_model import WeightedModel
from prl_keras.scores.loss import per_example_loss

_SEVERAL = (
    "The model has several outputs; audit one of them, keras.Model(inputs, output), compiled with its loss."
)


class Predictions(typing.NamedTuple):
    """Of `n` examples, in data order, in inference mode; of a pair the mean of the two networks.

    Attributes:
        given: int32 class numbers `[n]`, -1 where the loss ignores the label, or float32 targets `[n, q]`.
        predicted: the same, of the model.
        probabilities: float32 `[n, classes]`, or None for regression.
        losses: float32 `[n]`, the loss of each example; NaN where its inputs or targets are not finite.
        disagreement: How often the two networks of a pair predict different classes, in `[0, 1]`; else None.
    """

    given: np.ndarray
    predicted: np.ndarray
    probabilities: np.ndarray | None
    losses: np.ndarray
    disagreement: float | None

    @property
    def is_finite(self):
        """bool `[n]`: whether inputs, targets, losses and outputs are."""
        outputs = self.predicted if self.probabilities is None else self.probabilities
        return np.isfinite(self.losses) & np.isfinite(outputs).reshape(len(self.losses), -1).all(axis=1)

    @property
    def is_labelled(self):
        """bool `[n]`: whether the given label is a class (`ignore_class` is none); True for targets."""
        if self.probabilities is None:
            return np.ones(len(self.losses), bool)
        return (self.given >= 0) & (self.given < self.probabilities.shape[1])

    def only(self, examples):
        """Of some examples alone, by their places or a mask."""
        columns = self._replace(disagreement=None)
        kept = [None if column is None else column[examples] for column in columns]
        return Predictions(*kept)._replace(disagreement=self.disagreement)


def predict_beside(model, dataset, batch_size=256):
    """Runs a model over a data set, once and in the order it comes.

    Args:
        model: A compiled Keras model of one output, `RobustModel` and `CoTeachingModel` among them.
        dataset, batch_size: As in `score_examples`.

    Returns:
        `Predictions`.

    Raises:
        ValueError: for a model of several outputs or without a loss; a loss on several classes for each
            example (a sequence, pixels, several labels), or one that is not known; labels that are none; as
            in `score_examples`.
    """
    check_compiled(model)
    networks = model.networks if isinstance(model, WeightedModel) else [model]
    losses = keras.tree.flatten(model.loss)
    if len(losses) != 1:
        raise ValueError(_SEVERAL)
    loss = keras.losses.get(losses[0])

    def look(x, y):
        given, outputs, losses = zip(*[_look(network(x, training=False), y, loss) for network in networks])
        differ = tf.argmax(outputs[0], axis=1) != tf.argmax(outputs[-1], axis=1)
        # A layer may make a number of NaN, as max(NaN, 0) does.
        losses = tf.where(nonfinite.find((x, y)), np.nan, tf.add_n(losses) / len(networks))
        return given[0], tf.add_n(outputs) / len(networks), losses, differ

    @functools.partial(tf.function, autograph=False, reduce_retracing=True)
    def look_on_one_replica(x, y):
        return on_one_replica(model.distribute_strategy, look, x, y)

    classes, parts, n = getattr(networks[0], "output_shape", [None])[-1], [], 0
    for x, y in batches(dataset, batch_size):
        if keras.tree.is_nested(y):
            raise ValueError(_SEVERAL)
        labels = labels_for(loss, y, classes)
        if labels is not None:
            labels.check(start=n)
        parts.append(look_on_one_replica(x, y))
        n += len(parts[-1][0])
    given, outputs, losses, differ = (np.concatenate(column) for column in zip(*parts))
    if given.dtype.kind == "f":
        return Predictions(given, outputs, None, losses, None)
    predicted = np.argmax(outputs, axis=1).astype(given.dtype)
    return Predictions(given, predicted, outputs, losses, differ.mean() if len(networks) == 2 else None)


def _look(y_pred, y, loss):
    """-> what is given, int32 `[batch]` or float32 `[batch, q]`, the probabilities or targets that are
    predicted, float32, and the losses."""
    if keras.tree.is_nested(y_pred):
        raise ValueError(_SEVERAL)
    losses = per_example_loss(y, y_pred, loss)
    labels = class_labels.class_labels(y, y_pred, loss)
    y_pred = tf.cast(y_pred, tf.float32)
    if labels is not None:
        return labels, class_labels.class_probabilities(y_pred, loss), losses
    if loss_kinds.is_sparse(loss) or loss_kinds.is_binary(loss) or loss_kinds.is_one_hot(loss):
        raise ValueError(
            f"The loss {loss_kinds.name_of(loss)} on predictions of shape {tuple(y_pred.shape)} has "
            "more than one label for an example; audited is one label, or one vector of targets, for each."
        )
    if not loss_kinds.is_regression(loss):
        raise ValueError(
            f"Whether the loss {loss_kinds.name_of(loss)} is of class labels or real targets is not known. "
            "Compile the model with one of Keras's cross-entropies, mean squared or absolute errors, or "
            "Huber, model.compile(loss=...), before you look at its data."
        )
    rows = tf.shape(y_pred)[0]
    return tf.reshape(tf.cast(y, tf.float32), [rows, -1]), tf.reshape(y_pred, [rows, -1]), losses
