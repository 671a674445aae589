"""What a trained model says of each example, or element, of a data set, beside what the data say."""

import functools
import typing

import keras
import numpy as np
import tensorflow as tf

from prl_keras.inputs import class_labels, loss_kinds, nonfinite
from prl_keras.inputs.batches import weighted_batches
from prl_keras.inputs.shapes import check_shapes, show
from prl_keras.inputs.valid_labels import labels_for
from prl_keras.keras_gaps.replicas import on_one_replica
from prl_keras.losses import Bootstrap
from prl_keras.models.configuration import check_compiled
from prl_keras.models.elements import UNITS, elements_of, flat_predictions, label_shape, spread
from prl_keras.models.weighted_model import WeightedModel
from prl_keras.scores.loss import per_example_loss

_SEVERAL = (
    "The model has several outputs; audit one of them, keras.Model(inputs, output), compiled with its loss."
)
_AXES = {0: (), 1: ("step",), 2: ("row", "column")}  # by the number of label axes that are no attributes


class ByElement(typing.NamedTuple):
    """Where the `n` elements of a `Predictions` lie, and what is kept of their classes' probabilities.

    Attributes:
        axes: The names of the label axes, such as `("step",)` or `("row", "column")`.
        places: int32 `[n, 1 + axes]`: which example, and the index along each label axis.
        examples: How many examples the data set has, those without an element that counts among them.
        given_probability, confidence: float32 `[n]`, the probability of the given class and the highest of
            all; None for regression. All of them, `[n, classes]`, would be too many for pictures.
    """

    axes: tuple
    places: np.ndarray
    examples: int
    given_probability: np.ndarray | None
    confidence: np.ndarray | None


class Predictions(typing.NamedTuple):
    """Of `n` examples, in data order, in inference mode; of a pair the mean of the two networks.

    Or of the `n` elements that count (steps, pixels, attributes), where an example has several labels; of
    regression their targets are then `[n]`.

    Attributes:
        given: int32 class numbers `[n]`, -1 where the loss ignores the label, or float32 targets `[n, q]`.
        predicted: the same, of the model.
        probabilities: float32 `[n, classes]`; None for regression, and of elements.
        losses: float32 `[n]`, the loss of each; NaN where an example's inputs or targets are not finite.
        disagreement: How often the two networks of a pair predict different classes, in `[0, 1]`; else None.
        by_element: A `ByElement`, or None where each example has one label, or one vector of targets.
    """

    given: np.ndarray
    predicted: np.ndarray
    probabilities: np.ndarray | None
    losses: np.ndarray
    disagreement: float | None
    by_element: ByElement | None = None

    @property
    def is_of_classes(self):
        """Whether the labels are classes, rather than targets."""
        if self.by_element is not None:
            return self.by_element.confidence is not None
        return self.probabilities is not None

    @property
    def is_finite(self):
        """bool `[n]`: whether inputs, targets, losses and outputs are."""
        outputs = self.predicted if self.probabilities is None else self.probabilities
        axes = tuple(range(1, outputs.ndim))
        return np.isfinite(self.losses) & np.isfinite(outputs).all(axis=axes)

    @property
    def is_labelled(self):
        """bool `[n]`: whether the given label is a class (`ignore_class` is none); True for targets."""
        if self.probabilities is None:
            return np.ones(len(self.losses), bool)
        return (self.given >= 0) & (self.given < self.probabilities.shape[1])

    @property
    def given_probability(self):
        """float32 `[n]`, the probability of the given class; NaN where that is none (`ignore_class`)."""
        if self.by_element is not None:
            return self.by_element.given_probability
        is_class = self.is_labelled
        rows = np.arange(len(self.given))
        return np.where(is_class, self.probabilities[rows, np.where(is_class, self.given, 0)], np.nan)

    @property
    def confidence(self):
        """float32 `[n]`, the probability of the most likely class."""
        return self.probabilities.max(axis=1) if self.by_element is None else self.by_element.confidence

    def only(self, examples):
        """Of some examples, or elements, alone, by their places or a mask."""
        arrays = ("given", "predicted", "probabilities", "losses")
        kept = self._replace(**_rows_of(self, arrays, examples))
        if self.by_element is None:
            return kept
        arrays = ("places", "given_probability", "confidence")
        return kept._replace(
            by_element=self.by_element._replace(**_rows_of(self.by_element, arrays, examples))
        )


def predict_beside(model, dataset, batch_size=256):
    """Runs a model over a data set, once and in the order it comes.

    An example has several labels where the loss takes such: class labels of predictions
    `[batch, ..., classes]` of 3 axes or more (a sequence, pixels), labels 0 and 1 of predictions `[batch, q]`
    with q > 1 or of more axes, targets of predictions of 3 axes or more. A vector of targets `[batch, q]` is
    one label, but of a model with `unit="element"` each of its entries is.

    Args:
        model: A compiled Keras model of one output, `RobustModel` and `CoTeachingModel` among them.
        dataset, batch_size: As in `score_examples`. Examples of different batches may differ in length.

    Returns:
        `Predictions`: of the examples, or where these have several labels of the elements that count, by
        example and then by place. Which ones do is as in training: what a mask or `ignore_class` hides does
        not, and what has a weight of 0 in a `sample_weight` of two axes or more.

    Raises:
        ValueError: for a model of several outputs or without a loss; a loss that is not known; labels that
            are none, or do not go with the predictions; as in `score_examples`.
    """
    check_compiled(model)
    networks = model.networks if isinstance(model, WeightedModel) else [model]
    losses = keras.tree.flatten(model.loss)
    if len(losses) != 1:
        raise ValueError(_SEVERAL)
    loss, unit = keras.losses.get(losses[0]), getattr(model, "unit", UNITS[0])

    def look(x, y, sample_weight):
        predictions = [network(x, training=False) for network in networks]
        if any(map(keras.tree.is_nested, predictions)):
            raise ValueError(_SEVERAL)
        # A layer may make a number of NaN, as max(NaN, 0) does. A target is bad for its own element.
        if _is_by_element(loss, tuple(predictions[0].shape), unit):
            return _look_at_elements(predictions, y, loss, sample_weight, nonfinite.find(x))
        return _look_at_examples(predictions, y, loss, nonfinite.find((x, y)))

    @functools.partial(tf.function, autograph=False, reduce_retracing=True)
    def look_on_one_replica(x, y, sample_weight):
        return on_one_replica(model.distribute_strategy, look, x, y, sample_weight)

    parts, n = [], 0
    for x, y, sample_weight in weighted_batches(dataset, batch_size):
        if keras.tree.is_nested(y):
            raise ValueError(_SEVERAL)
        _check_labels(loss, y, getattr(networks[0], "output_shape", None), n)
        part = look_on_one_replica(x, y, _step_weights(sample_weight))
        part = {name: value.numpy() for name, value in part.items()}
        parts.append(_counted(part, y, n) if "counts" in part else part)
        n += int(tf.shape(y)[0])
    axes = parts[0].pop("axes", None)
    columns = {name: np.concatenate([part.pop(name) for part in parts]) for name in list(parts[0])}
    return _predictions(columns, len(networks) == 2, axes, n)


def _predictions(columns, is_pair, axes, examples):
    """`Predictions` of the columns of all the batches; `axes` names those of labels, None for examples."""
    given, losses, differ = columns["given"], columns["losses"], columns.pop("differ", None)
    disagreement = float(differ.mean()) if is_pair and differ is not None and len(differ) else None
    if axes is None:
        if given.dtype.kind == "f":
            return Predictions(given, columns["outputs"], None, losses, None)
        predicted = np.argmax(columns["outputs"], axis=1).astype(given.dtype)
        return Predictions(given, predicted, columns["outputs"], losses, disagreement)
    likely = columns.get("given_probability"), columns.get("confidence")
    by_element = ByElement(axes, columns["places"], examples, *likely)
    return Predictions(given, columns["predicted"], None, losses, disagreement, by_element)


def _look_at_examples(predictions, y, loss, is_bad):
    """-> dict of tensors: what is `given`, int32 `[batch]` or float32 `[batch, q]`, the `outputs`
    (probabilities or targets), float32, and the `losses`; of classes also where the networks `differ`."""
    losses = [per_example_loss(y, y_pred, loss) for y_pred in predictions]
    found = {"losses": _mean_of_finite(losses, is_bad)}
    labels = class_labels.class_labels(y, predictions[0], loss)
    values = [tf.cast(y_pred, tf.float32) for y_pred in predictions]
    if labels is not None:
        likely = [class_labels.class_probabilities(each, loss) for each in values]
        return found | {"given": labels, "outputs": _mean(likely), "differ": _differ(likely)}
    if not loss_kinds.is_regression(loss):
        raise ValueError(
            f"Whether the loss {loss_kinds.name_of(loss)} is of class labels or real targets is not known. "
            "Compile the model with one of Keras's cross-entropies, mean squared or absolute errors, or "
            "Huber, model.compile(loss=...), before you look at its data."
        )
    rows = tf.shape(values[0])[0]
    targets, *values = (tf.reshape(tf.cast(t, tf.float32), [rows, -1]) for t in (y, *values))
    return found | {"given": targets, "outputs": _mean(values)}


def _look_at_elements(predictions, y, loss, sample_weight, is_bad):
    """-> dict of tensors `[n]` of all the elements of a batch: what is `given` and `predicted`, the `losses`,
    which of them `counts`; of classes also `given_probability`, `confidence` and where the networks `differ`.

    Beside them `shape`, how the labels lie, and `entries`, how many there are along the predictions' last
    axis: 0 if that is one of classes.
    """
    check_shapes(y, predictions[0], loss)
    shape = label_shape(y, predictions[0], loss)
    rank = shape.shape[0]
    _check_places(tuple(y.shape[:rank]), tuple(predictions[0].shape[:rank]))
    elements = elements_of(y, predictions[0], loss, sample_weight)
    flat = [flat_predictions(y, y_pred, loss) for y_pred in predictions]
    losses = [per_example_loss(elements.y, y_pred, loss) for y_pred in flat]
    values = [tf.cast(y_pred, tf.float32) for y_pred in flat]
    is_bad = spread(is_bad, shape)
    found = {
        "counts": tf.ones_like(is_bad) if elements.counts is None else elements.counts,
        "shape": shape,
        "entries": tf.constant(predictions[0].shape[-1] if len(predictions[0].shape) == rank else 0),
    }
    labels = class_labels.class_labels(elements.y, flat[0], loss)
    if labels is None:
        values = _mean([tf.reshape(each, [-1]) for each in values])
        targets = tf.reshape(tf.cast(elements.y, tf.float32), [-1])
        return found | {"given": targets, "predicted": values, "losses": _mean_of_finite(losses, is_bad)}
    likely = [class_labels.class_probabilities(each, loss) for each in values]
    mean = _mean(likely)
    is_bad = tf.logical_or(is_bad, ~tf.reduce_all(tf.math.is_finite(mean), axis=1))
    return found | {
        "given": labels,
        "predicted": tf.argmax(mean, axis=1, output_type=tf.int32),
        "losses": _mean_of_finite(losses, is_bad),
        "given_probability": class_labels.of_given(labels, mean),
        "confidence": tf.reduce_max(mean, axis=1),
        "differ": _differ(likely),
    }


def _counted(part, y, start):
    """The elements that count, of what `_look_at_elements` gave of a batch.

    -> dict of arrays `[k]`; `places` says where they lie, and `axes` what the label axes are called. The
    batch begins at `start` in the data, and its labels are `y`.
    """
    counts, shape, entries = (part.pop(name) for name in ("counts", "shape", "entries"))
    _check_places(tuple(y.shape[: len(shape)]), tuple(shape))
    places = np.stack(np.unravel_index(np.flatnonzero(counts), shape), axis=1).astype(np.int32)
    places[:, 0] += start
    if entries == 1:
        places = places[:, :-1]
    plain = places.shape[1] - 1 - (entries > 1)
    axes = _AXES.get(plain, tuple(f"axis_{i + 1}" for i in range(plain)))
    columns = {name: values[counts] for name, values in part.items()}
    return columns | {"places": places, "axes": (*axes, "attribute") if entries > 1 else axes}


def _is_by_element(loss, shape, unit):
    """Whether a loss on predictions of a shape `(batch, ...)` has several labels for an example."""
    if len(shape) < 2:
        return False
    if loss_kinds.is_regression(loss):
        return len(shape) > 2 or (unit == "element" and shape[1] > 1)
    if loss_kinds.is_binary(loss) or (isinstance(loss, Bootstrap) and shape[-1] == 1):
        return len(shape) > 2 or shape[1] > 1
    return loss_kinds.is_of_classes(loss) and len(shape) > 2


def _step_weights(sample_weight):
    """The user's weights of steps or pixels, a tensor `[batch, ...]` of two axes or more; else None."""
    given = [t for t in keras.tree.flatten(sample_weight) if t is not None and len(t.shape) > 1]
    if len(given) > 1:
        raise ValueError(_SEVERAL)
    return given[0] if given else None


def _check_labels(loss, y, shape, start):
    """Refuses class labels that are none, in a batch that begins at `start` in the data.

    `shape` is that of the predictions, None if it is not known.
    """
    shape = shape or (None,)
    if 2 < len(shape) == len(y.shape) + 1:
        y = y[..., None]  # numbers of classes, not shares of them
    labels = labels_for(loss, y, shape[-1])
    if labels is not None:
        labels.check(start)


def _check_places(of_labels, of_predictions):
    """Refuses labels that lie otherwise than the predictions; shapes `(batch, ...)`."""
    if any(None not in pair and pair[0] != pair[1] for pair in zip(of_labels[1:], of_predictions[1:])):
        raise ValueError(
            f"Labels of shape {show((None, *of_labels[1:]))} against predictions for "
            f"{show((None, *of_predictions[1:]))}: give a label for each prediction."
        )


def _mean(tensors):
    return tf.add_n(tensors) / len(tensors)


def _mean_of_finite(losses, is_bad):
    """The mean over the networks, float32 `[n]`; NaN for what is bad."""
    return tf.where(is_bad, np.nan, _mean(losses))


def _differ(probabilities):
    """bool `[n]`: whether the first and the last network predict different classes."""
    return tf.argmax(probabilities[0], axis=1) != tf.argmax(probabilities[-1], axis=1)


def _rows_of(columns, names, rows):
    """dict of what a named tuple has under the names, of some rows alone; None stays."""
    values = {name: getattr(columns, name) for name in names}
    return {name: None if value is None else value[rows] for name, value in values.items()}
