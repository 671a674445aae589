"""What one training step knows of its batch, one name for each fact."""

import typing

import keras
import tensorflow as tf

from prl_keras.inputs import class_labels, loss_kinds, nonfinite, outputs
from prl_keras.inputs.arrays import check_dense, check_targets_given
from prl_keras.models.configuration import check_compiled, check_trainable
from prl_keras.models.elements import elements_of, label_shape, spread
from prl_keras.scores.loss import unreduced_loss, values_of
from prl_keras.scores.names import resolve


class Batch(typing.NamedTuple):
    """A minibatch, in which good examples stand in the place of those that are not finite.

    `ranked_batch` makes of a batch of examples the one that is ranked: with `unit="element"` the flat one of
    their elements, in which everything but `x` and `given` is `[n, ...]`.

    Attributes:
        x, y, sample_weight: Structures of tensors `[batch, ...]`, as Keras's losses take them.
        given: `(x, y)` as they came. `SelectionRecord` knows an example by them.
        is_bad: bool `[batch]`, whether inputs, targets or the loss of an example are not finite.
        is_ranked: bool `[batch]`, False for padding: of which nothing counts (`scores.loss`).
        labels: int32 `[batch]`, the given class of each example; None if the loss takes no class labels.
        examples: Of a flat batch that of its examples; else None.
        each_has: How many elements an example of a flat batch has, int32 scalar; 1 of a batch of examples.
    """

    x: typing.Any
    y: typing.Any
    sample_weight: typing.Any
    given: tuple
    is_bad: tf.Tensor
    is_ranked: tf.Tensor
    labels: tf.Tensor | None = None
    examples: typing.Any = None
    each_has: typing.Any = 1

    @property
    def of_examples(self):
        """The batch itself, or that of the examples whose elements it holds."""
        return self.examples or self

    def by_example(self, values):
        """The mean over each example's elements that are ranked and finite, float32 `[batch]`; of examples as
        they are.

        Args:
            values: float32 `[n]`.
        """
        if self.examples is None:
            return values
        shape = [tf.size(self.examples.is_bad), -1]
        counted = tf.cast(tf.reshape(self.is_ranked & ~self.is_bad, shape), tf.float32)
        values = tf.where(counted > 0, tf.reshape(values, shape), 0.0)
        return tf.reduce_sum(values, axis=1) / tf.maximum(tf.reduce_sum(counted, axis=1), 1.0)


def read_batch(model, data):
    """The `Batch` of what `train_step` gets, and the networks built for it.

    Args:
        model: A `WeightedModel`.
        data: A batch of `fit`: `(x, y)` or `(x, y, sample_weight)`.

    Raises:
        ValueError: for a model without a loss or trainable weights, or a batch without targets.
    """
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
    check_compiled(model)
    check_targets_given(y)
    model.build_for(x)
    check_trainable(model)
    if resolve(model.score).needs_network:
        check_dense(x)
    return batch_of(x, y, sample_weight, model.unit)


def batch_of(x, y, sample_weight, unit):
    """The `Batch` of its parts, before anything is predicted.

    With `unit="element"` a target that is not finite makes its own element bad, not the example.
    """
    if sample_weight is not None and not hasattr(keras.tree.flatten(sample_weight)[0], "shape"):
        sample_weight = tf.convert_to_tensor(sample_weight)  # one list of numbers
    is_bad = nonfinite.find((x, y) if unit == "example" else x)
    finite_x, finite_y = nonfinite.replace((x, y), is_bad)
    return Batch(finite_x, finite_y, sample_weight, (x, y), is_bad, is_ranked_by(is_bad, sample_weight))


def ranked_batch(model, batch, passes):
    """The `Batch` that is ranked, once it is known what the networks predict.

    An example is bad if a value of its loss is not finite. If its target can be the cause, it gets that of a
    good one. What masks hide is known now, and the class labels are.

    Args:
        model: The `WeightedModel`, for its loss, rule and unit.
        batch: Of examples.
        passes: As of `passes.forward_pass`, one for each network; `predictions` and `y_pred` are read.

    Raises:
        ValueError: if the rule takes class labels and the loss has none.
    """
    if model.unit == "element":
        return _flat(model, batch, passes)
    parts = [
        part
        for each in passes
        for part in outputs.split(
            outputs.loss_of(model, each.y_pred), batch.y, each.y_pred, batch.sample_weight
        )
    ]
    values = [values_of(part) for part in parts]
    is_finite = [_by_row(tf.reduce_all, tf.math.is_finite(losses)) for losses, _ in values]
    is_bad = tf.logical_or(batch.is_bad, ~tf.reduce_all(is_finite, axis=0))
    counted = [counts for _, counts in values]
    if None not in counted:
        is_counted = tf.reduce_any([_by_row(tf.reduce_any, counts) for counts in counted], axis=0)
        # In the place of a bad example stands another, of which nothing may count.
        batch = batch._replace(is_ranked=batch.is_ranked & (is_counted | is_bad))
    # A label has a finite loss wherever the predictions are finite; the loss of the same y is computed once.
    is_of_classes = all(loss_kinds.is_of_classes(part.loss) for part in parts)
    y = batch.y if is_of_classes else nonfinite.replace(batch.y, is_bad)
    labels = _class_labels(model, batch.given[1], passes[0].y_pred)
    return batch._replace(y=y, is_bad=is_bad, labels=labels)


def _by_row(reduce, values):
    """bool `[batch]` of `[batch, ...]`."""
    return reduce(values, axis=range(1, len(values.shape))) if len(values.shape) > 1 else values


def _flat(model, batch, passes):
    """The batch of the elements of a batch of examples; one is bad if its target or loss is not finite."""
    y_pred, losses = passes[0].predictions, [outputs.loss_of(model, each.y_pred) for each in passes]
    y, counts, sample_weight = elements_of(batch.y, y_pred, losses[0], batch.sample_weight)
    shape, given = label_shape(batch.y, y_pred, losses[0]), tf.reshape(batch.given[1], tf.shape(y))
    values = [unreduced_loss(y, each.y_pred, loss) for each, loss in zip(passes, losses)]
    is_bad = spread(batch.is_bad, shape) | nonfinite.find([given, *values])
    if not loss_kinds.is_of_classes(losses[0]):
        y = tf.where(tf.reshape(is_bad, [-1] + [1] * (len(y.shape) - 1)), tf.zeros_like(y), y)
    is_ranked = spread(batch.is_ranked, shape)
    return batch._replace(
        y=y,
        sample_weight=sample_weight,
        is_bad=is_bad,
        is_ranked=is_ranked if counts is None else is_ranked & counts,
        labels=_class_labels(model, given, passes[0].y_pred),
        examples=batch._replace(is_ranked=_any_ranked(batch, counts)),
        each_has=tf.reduce_prod(shape[1:]),
    )


def _any_ranked(batch, counts):
    if counts is None:
        return batch.is_ranked
    return batch.is_ranked & tf.reduce_any(tf.reshape(counts, [tf.size(batch.is_ranked), -1]), axis=1)


def is_ranked_by(examples, sample_weight):
    """bool `[batch]`: False where the user's weight is 0 (for all the outputs), which marks padding.

    Args:
        examples: A tensor `[batch]`, for the number of examples.
        sample_weight: A tensor `[batch, ...]`, a structure of them, or None.
    """
    given = [weight for weight in keras.tree.flatten(sample_weight) if weight is not None]
    if not given:
        return tf.ones_like(examples, tf.bool)
    nonzero = [tf.cast(weight, "float32") != 0 for weight in given]
    return tf.reduce_any(
        [tf.reduce_any(tf.reshape(t, [tf.shape(t)[0], -1]), axis=1) for t in nonzero], axis=0
    )


def _class_labels(model, y, y_pred):
    is_several = keras.tree.is_nested(y_pred) or keras.tree.is_nested(model.loss)
    labels = None if is_several else class_labels.class_labels(y, y_pred, keras.losses.get(model.loss))
    if labels is None and getattr(model.rule, "takes_labels", False):
        raise ValueError(
            f"rule={model.rule!r} needs one class label per example; the loss {model.loss!r} on outputs of "
            f"shape {keras.tree.map_structure(lambda t: tuple(t.shape), y_pred)} has none. Leave "
            "min_keep_per_class=0."
        )
    return labels
