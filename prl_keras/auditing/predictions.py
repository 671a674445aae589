"""What a trained model predicts for each example or element of a data set, next to the given labels."""

import functools
import typing

import keras
import numpy as np
import tensorflow as tf

from prl_keras.inputs import class_labels, loss_kinds, nonfinite, outputs
from prl_keras.inputs.batches import weighted_batches
from prl_keras.inputs.shapes import check_shapes, show
from prl_keras.inputs.tensors import number_of_examples
from prl_keras.inputs.valid_labels import labels_for
from prl_keras.keras_gaps.replicas import on_one_replica
from prl_keras.losses import Bootstrap
from prl_keras.models.configuration import check_compiled
from prl_keras.models.elements import UNITS, elements_of, flat_predictions, label_shape, spread
from prl_keras.models.in_inference import predictions_spec
from prl_keras.models.weighted_model import WeightedModel
from prl_keras.scores.loss import per_example_loss

_SEVERAL = (
    "The model has several outputs; audit one of them, keras.Model(inputs, output), compiled with its loss."
)
_AXES = {0: (), 1: ("step",), 2: ("row", "column")}  # by the number of label axes without the attribute axis


class ByElement(typing.NamedTuple):
    """The positions and class probabilities of the `n` elements of a `Predictions`.

    Attributes:
        axes: The names of the label axes, such as `("step",)` or `("row", "column")`.
        places: int32 `[n, 1 + axes]`: the example, and the index along each label axis.
        examples: The number of examples in the data set, including those without an element that counts.
        given_probability, confidence: float32 `[n]`, the probability of the given class and the highest
            probability; None for regression. All probabilities `[n, classes]` would be too large for images.
    """

    axes: tuple[str, ...]
    places: np.ndarray
    examples: int
    given_probability: np.ndarray | None
    confidence: np.ndarray | None


class Predictions(typing.NamedTuple):
    """Predictions for `n` examples, in data order and inference mode; for a pair the mean of both networks.

    If an example has several labels, the `n` rows are the elements that count (steps, pixels, attributes),
    and regression targets are `[n]`.

    Attributes:
        given: int32 class numbers `[n]`, or float32 targets `[n, q]`. The class is -1 if the loss
            ignores the label, or a one-hot label names none.
        predicted: The model's predictions, in the same form.
        probabilities: float32 `[n, classes]`; None for regression and for elements.
        losses: float32 `[n]`, the loss of each row; NaN if inputs or targets are non-finite.
        disagreement: How often the two networks of a pair predict different classes, in `[0, 1]`; else None.
        by_element: A `ByElement`, or None if each example has one label or one target vector.
    """

    given: np.ndarray
    predicted: np.ndarray
    probabilities: np.ndarray | None
    losses: np.ndarray
    disagreement: float | None
    by_element: ByElement | None = None

    @property
    def is_of_classes(self) -> bool:
        """Whether the labels are classes, not targets."""
        if self.by_element is not None:
            return self.by_element.confidence is not None
        return self.probabilities is not None

    @property
    def is_finite(self) -> np.ndarray:
        """bool `[n]`: whether inputs, targets, losses and outputs are all finite."""
        outputs = self.predicted if self.probabilities is None else self.probabilities
        axes = tuple(range(1, outputs.ndim))
        return np.isfinite(self.losses) & np.isfinite(outputs).all(axis=axes)

    @property
    def is_labelled(self) -> np.ndarray:
        """bool `[n]`: whether the given label is a class that the loss does not ignore; True for targets."""
        if self.probabilities is None:
            return np.ones(len(self.losses), bool)
        return (self.given >= 0) & (self.given < self.probabilities.shape[1])

    @property
    def given_probability(self) -> typing.Any:
        """float32 `[n]`, the probability of the given class; NaN for an ignored label (`ignore_class`)."""
        if self.by_element is not None:
            return self.by_element.given_probability
        is_class = self.is_labelled
        rows = np.arange(len(self.given))
        probabilities = typing.cast(np.ndarray, self.probabilities)
        return np.where(is_class, probabilities[rows, np.where(is_class, self.given, 0)], np.nan)

    @property
    def confidence(self) -> typing.Any:
        """float32 `[n]`, the probability of the most likely class."""
        if self.by_element is not None:
            return self.by_element.confidence
        return typing.cast(np.ndarray, self.probabilities).max(axis=1)

    def only(self, examples: np.ndarray) -> "Predictions":
        """The predictions for some rows only, given by indices or a mask."""
        arrays: tuple[str, ...] = ("given", "predicted", "probabilities", "losses")
        kept = self._replace(**_rows_of(self, arrays, examples))
        if self.by_element is None:
            return kept
        arrays = ("places", "given_probability", "confidence")
        return kept._replace(
            by_element=self.by_element._replace(**_rows_of(self.by_element, arrays, examples))
        )


def predict_beside(model: keras.Model, dataset: typing.Any, batch_size: int = 256) -> Predictions:
    """Runs a model over a data set, once and in data order.

    The loss decides whether an example has several labels. It has several class labels for predictions
    `[batch, ..., classes]` with 3 axes or more (a sequence, pixels), several labels 0 and 1 for predictions
    `[batch, q]` with q > 1 or with more axes, and several targets for predictions with 3 axes or more. A
    target vector `[batch, q]` is one label; with `unit="element"` each of its entries is a label.

    Args:
        model: A compiled Keras model with one output, such as `RobustModel` or `CoTeachingModel`.
        dataset, batch_size: As in `score_examples`. Examples of different batches may differ in length.

    Returns:
        One row per example, or, with several labels each, one row per element that counts, sorted by example
        and then by position. As in training, an element does not count if a mask, `ignore_class` or a weight
        of 0 in a `sample_weight` of two axes or more excludes it.

    Raises:
        ValueError: for several outputs, a missing or unknown loss, invalid labels, or labels that do not fit
            the predictions; and as in `score_examples`.
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
        predictions = [outputs.with_last_axes(loss, y_pred) for y_pred in predictions]
        number = number_of_examples(y)
        # A layer may turn NaN into a number, like max(NaN, 0). A bad target affects only its own element.
        if _is_by_element(loss, tuple(predictions[0].shape), unit):
            return _look_at_elements(predictions, y, loss, sample_weight, nonfinite.find(x, x, number))
        return _look_at_examples(predictions, y, loss, nonfinite.find((x, y), x, number))

    @functools.partial(tf.function, autograph=False, reduce_retracing=True)
    def look_on_one_replica(x, y, sample_weight):
        return on_one_replica(model.distribute_strategy, look, x, y, sample_weight)

    parts, n, predicted = [], 0, None
    for x, y, sample_weight in weighted_batches(dataset, batch_size):
        y, sample_weight = outputs.without_lists(networks[0], loss, y, sample_weight)
        if keras.tree.is_nested(y):
            raise ValueError(_SEVERAL)
        predicted = predictions_spec(networks[0], x) if predicted is None else predicted
        if keras.tree.is_nested(predicted):
            raise ValueError(_SEVERAL)
        _check_labels(loss, y, tuple(predicted.shape), n)
        part = look_on_one_replica(x, y, _step_weights(sample_weight))
        part = {name: value.numpy() for name, value in part.items()}
        parts.append(_counted(part, y, n) if "counts" in part else part)
        n += int(tf.shape(y)[0])
    axes = parts[0].pop("axes", None)
    columns = {name: np.concatenate([part.pop(name) for part in parts]) for name in list(parts[0])}
    return _predictions(columns, len(networks) == 2, axes, n)


def _predictions(columns, is_pair, axes, examples):
    """`Predictions` from the columns of all the batches; `axes` names the label axes, None for examples."""
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
    """-> dict of tensors: `given`, int32 `[batch]` or float32 `[batch, q]`; `outputs` (probabilities or
    targets), float32; `losses`; for classes also `differ`, whether the networks do."""
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
    """-> dict of tensors `[n]` for all the elements of a batch: `given`, `predicted`, `losses`, `counts`; for
    classes also `given_probability`, `confidence` and `differ`.

    It also has `shape`, the shape of the labels, and `entries`, the size of the predictions' last axis if it
    is a label axis, else 0.
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
    found["counts"] &= labels >= 0  # a one-hot label may name no class
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
    """Keeps the elements that count, from the result `part` of `_look_at_elements`.

    -> dict of arrays `[k]`, with `places`, their positions, and `axes`, the names of the label axes. The
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
    """Whether a loss on predictions of shape `(batch, ...)` takes several labels per example."""
    if len(shape) < 2:
        return False
    if loss_kinds.is_regression(loss):
        return len(shape) > 2 or (unit == "element" and shape[1] > 1)
    if loss_kinds.is_binary(loss) or (isinstance(loss, Bootstrap) and shape[-1] == 1):
        return len(shape) > 2 or shape[1] > 1
    return loss_kinds.is_of_classes(loss) and len(shape) > 2


def _step_weights(sample_weight):
    """The user's weights of steps or pixels, a tensor `[batch, ...]` with two axes or more, or None."""
    given = [t for t in keras.tree.flatten(sample_weight) if t is not None and len(t.shape) > 1]
    if len(given) > 1:
        raise ValueError(_SEVERAL)
    return given[0] if given else None


def _check_labels(loss, y, shape, start):
    """Rejects invalid class labels in a batch that begins at `start` in the data.

    `shape` is the shape of the predictions.
    """
    if 2 < len(shape) == len(y.shape) + 1:
        y = y[..., None]  # class numbers, not shares of classes
    labels = labels_for(loss, y, shape[-1])
    if labels is not None:
        labels.check(start)


def _check_places(of_labels, of_predictions):
    """Rejects labels whose shape `(batch, ...)` does not fit that of the predictions."""
    if any(None not in pair and pair[0] != pair[1] for pair in zip(of_labels[1:], of_predictions[1:])):
        raise ValueError(
            f"Labels of shape {show((None, *of_labels[1:]))} against predictions for "
            f"{show((None, *of_predictions[1:]))}: give a label for each prediction."
        )


def _mean(tensors):
    return tf.add_n(tensors) / len(tensors)


def _mean_of_finite(losses, is_bad):
    """The mean over the networks, float32 `[n]`; NaN for bad examples or elements."""
    return tf.where(is_bad, np.nan, _mean(losses))


def _differ(probabilities):
    """bool `[n]`: whether the first and the last network predict different classes."""
    return tf.argmax(probabilities[0], axis=1) != tf.argmax(probabilities[-1], axis=1)


def _rows_of(columns, names, rows):
    """dict of the named fields of a named tuple, restricted to some rows; None stays None."""
    values = {name: getattr(columns, name) for name in names}
    return {name: None if value is None else value[rows] for name, value in values.items()}
