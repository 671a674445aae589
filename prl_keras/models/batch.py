"""The minibatch of one training step, with one name for each fact about it."""

import typing
from collections.abc import Sequence

import keras
import tensorflow as tf

from prl_keras.inputs import class_labels, loss_kinds, nonfinite, outputs
from prl_keras.inputs.arrays import check_dense, check_targets_given
from prl_keras.inputs.tensors import check_rows, number_of_examples
from prl_keras.models.configuration import check_compiled, check_trainable, needs_rows
from prl_keras.models.elements import elements_of, label_shape, spread
from prl_keras.scores.loss import unreduced_loss, values_of
from prl_keras.scores.names import resolve


class Batch(typing.NamedTuple):
    """A minibatch in which good examples replace the non-finite ones.

    `ranked_batch` turns a batch of examples into the batch that is ranked. With `unit="element"` that is the
    flat batch of their elements, in which everything but `x` and `given` is `[n, ...]`.

    Attributes:
        x, y, sample_weight: Structures of tensors `[batch, ...]`, as Keras's losses take them.
        given: `(x, y)` before the replacement. `SelectionRecord` identifies an example by them.
        is_bad: bool `[batch]`, True where the inputs, targets or loss of an example are non-finite.
        is_ranked: bool `[batch]`, False for padding: an example in which nothing counts (`scores.loss`).
        labels: int32 `[batch]`, the given class of each example; None if the loss takes no class labels.
        examples: For a flat batch, the batch of its examples; else None.
        each_has: Elements per example in a flat batch, int32 scalar; 1 in a batch of examples.
    """

    x: typing.Any
    y: typing.Any
    sample_weight: typing.Any
    given: tuple[typing.Any, typing.Any]
    is_bad: tf.Tensor
    is_ranked: tf.Tensor
    labels: tf.Tensor | None = None
    examples: "Batch | None" = None
    each_has: tf.Tensor | int = 1

    @property
    def of_examples(self) -> "Batch":
        """The batch of examples: `examples` of a flat batch, else the batch itself."""
        return self.examples or self

    def by_example(self, values: tf.Tensor) -> tf.Tensor:
        """The mean over the ranked, finite elements of each example, float32 `[batch]`.

        A batch of examples returns the values unchanged.

        Args:
            values: float32 `[n]`.
        """
        if self.examples is None:
            return values
        shape = [tf.size(self.examples.is_bad), -1]
        counted = tf.cast(tf.reshape(self.is_ranked & ~self.is_bad, shape), tf.float32)
        values = tf.where(counted > 0, tf.reshape(values, shape), 0.0)
        return tf.reduce_sum(values, axis=1) / tf.maximum(tf.reduce_sum(counted, axis=1), 1.0)


def read_batch(model: keras.Model, data: typing.Any) -> Batch:
    """The `Batch` of the data that `train_step` gets. Builds the networks for it.

    Raises:
        ValueError: for a model without a loss or trainable weights, or a batch without targets.
    """
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
    check_compiled(model)
    check_targets_given(y)
    model.build_for(x)
    check_trainable(model)
    check_inputs(model, x, y)
    y, sample_weight = outputs.without_lists(model.networks[0], model.loss, y, sample_weight)
    return batch_of(model, x, y, sample_weight)


def check_inputs(model: keras.Model, x: typing.Any, y: typing.Any) -> None:
    """Rejects inputs of which the score or `recompute` cannot take single examples (ValueError)."""
    needs = needs_rows(model)
    if needs is not None:
        check_rows(x, y, None, needs)
    if resolve(model.score).needs_network:
        check_dense(x)


def batch_of(model: keras.Model, x: typing.Any, y: typing.Any, sample_weight: typing.Any) -> Batch:
    """The `Batch` of `x`, `y` and `sample_weight`, before any prediction.

    With `unit="element"` a non-finite target makes its own element bad, not the example. If the loss may skip
    targets that are NaN, a target is bad only if its loss is non-finite, see `ranked_batch`.
    """
    given = [weight for weight in keras.tree.flatten(sample_weight) if weight is not None]
    if given and not hasattr(given[0], "shape"):
        sample_weight = tf.convert_to_tensor(sample_weight)  # one list of numbers
    keeps_nan = may_skip_targets(model)
    is_by_element = model.unit == "element"
    decides = x if keeps_nan or is_by_element else (x, y)
    is_bad = nonfinite.find(decides, inputs=x, number=number_of_examples(y))
    finite_x = nonfinite.replace(x, is_bad, inputs=x)
    finite_y = nonfinite.with_zeros(y) if is_by_element and not keeps_nan else y
    finite_y = nonfinite.replace(finite_y, is_bad)
    return Batch(finite_x, finite_y, sample_weight, (x, y), is_bad, is_ranked_by(is_bad, sample_weight))


def may_skip_targets(model: keras.Model) -> bool:
    """Whether a loss of the model may have finite values for targets that are NaN: one that is not of Keras.

    With PRL(G) it takes two passes: a target is known to be bad, and replaced, only after the prediction.
    """
    return not loss_kinds.is_by_example(model.loss)


def ranked_batch(model: keras.Model, batch: Batch, passes: Sequence[typing.Any]) -> Batch:
    """The `Batch` that is ranked, made after the networks have predicted.

    An example is bad if any value of its loss is non-finite. If its target can be the cause, the target of a
    good example replaces it. Masks and class labels are applied here, because they need the predictions.

    Args:
        model: The `WeightedModel`; its loss, rule and unit are used.
        batch: A batch of examples.
        passes: One pass per network, from `passes.forward_pass`; `predictions` and `y_pred` are read.

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
        # The example that replaces a bad one may have no value that counts.
        batch = batch._replace(is_ranked=batch.is_ranked & (is_counted | is_bad))
    # A class label's loss is finite if the predictions are, so y may stay: its loss is then computed once.
    is_of_classes = all(loss_kinds.is_of_classes(part.loss) for part in parts)
    y = batch.y if is_of_classes else nonfinite.replace(batch.y, is_bad)
    labels = _class_labels(model, batch.given[1], passes[0].y_pred)
    return batch._replace(y=y, is_bad=is_bad, labels=labels)


def _by_row(reduce, values):
    """bool `[batch]` of `[batch, ...]`."""
    return reduce(values, axis=range(1, len(values.shape))) if len(values.shape) > 1 else values


def _flat(model, batch, passes):
    """The flat batch of elements; an element is bad if its target or loss is non-finite."""
    y_pred, losses = passes[0].predictions, [outputs.loss_of(model, each.y_pred) for each in passes]
    y, counts, sample_weight = elements_of(batch.y, y_pred, losses[0], batch.sample_weight)
    shape, given = label_shape(batch.y, y_pred, losses[0]), tf.reshape(batch.given[1], tf.shape(y))
    values = [unreduced_loss(y, each.y_pred, loss) for each, loss in zip(passes, losses)]
    targets = [] if may_skip_targets(model) else [given]
    is_bad = spread(batch.is_bad, shape) | nonfinite.find([*targets, *values])
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


def is_ranked_by(examples: tf.Tensor, sample_weight: typing.Any) -> tf.Tensor:
    """bool `[batch]`: False for padding, where the user's weight is 0 for every output.

    Args:
        examples: A tensor `[batch]`; only its shape is used.
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
    loss = outputs.loss_of(model, y_pred)
    labels = class_labels.class_labels(y, y_pred, loss) if outputs.is_single(loss, y_pred) else None
    if labels is None and getattr(model.rule, "takes_labels", False):
        raise ValueError(
            f"rule={model.rule!r} needs one class label per example; the loss "
            f"{loss_kinds.names_of(model.loss)} on outputs of "
            f"shape {keras.tree.map_structure(lambda t: tuple(t.shape), y_pred)} has none. "
            "Leave min_keep_per_class=0, or take a rule that needs no classes."
        )
    if getattr(model.rule, "reads_probability", False):
        _check_reads_probability(model, loss, labels)
    return labels


def _check_reads_probability(model, loss, labels):
    """Rejects a score other than -log p, with p the probability of one given label."""
    if model.score != "loss":
        raise ValueError(
            f"rule={model.rule!r} reads the probability of the given label from the loss; score="
            f"{model.score!r} does not tell it. Write score='loss'."
        )
    if labels is None or not loss_kinds.is_log_probability(loss):
        raise ValueError(
            f"rule={model.rule!r} reads the probability of the given label from the loss, and of "
            f"{loss_kinds.names_of(model.loss)} it cannot. Take one of Keras's cross-entropies or a class "
            "derived from it, without label smoothing, with one label per example; where an example has "
            "several, write unit='element'."
        )
