"""What one training step knows of its batch, one name for each fact."""

import typing

import keras
import tensorflow as tf

from prl_keras.inputs import class_labels, nonfinite, outputs
from prl_keras.inputs.arrays import check_dense, check_targets_given
from prl_keras.models.configuration import check_compiled, check_trainable
from prl_keras.scores.loss import per_example_loss
from prl_keras.scores.names import resolve


class Batch(typing.NamedTuple):
    """A minibatch, in which good examples stand in the place of those that are not finite.

    Attributes:
        x, y, sample_weight: Structures of tensors `[batch, ...]`, as Keras's losses take them. Until the
            predictions are known, targets that are not finite are 0.
        given: `(x, y)` as they came. `SelectionRecord` knows an example by them.
        is_bad: bool `[batch]`, whether inputs, targets or the loss of an example are not finite.
        is_ranked: bool `[batch]`, False for padding (`sample_weight` 0).
        labels: int32 `[batch]`, the given class of each example; None if the loss takes no class labels.
    """

    x: typing.Any
    y: typing.Any
    sample_weight: typing.Any
    given: tuple
    is_bad: tf.Tensor
    is_ranked: tf.Tensor
    labels: tf.Tensor | None = None

    def with_bad_losses_replaced(self, model, predictions):
        """The batch once it is known what the networks predict.

        An example whose loss is not finite is bad, and gets the targets of a good one. The class labels are
        known now, too.

        Args:
            model: The `WeightedModel`, for its loss.
            predictions: A structure of tensors `[batch, ...]` for each network.

        Raises:
            ValueError: if the rule takes class labels and the loss has none.
        """
        losses = [per_example_loss(self.y, t, outputs.loss_of(model, t)) for t in predictions]
        is_bad = tf.logical_or(self.is_bad, ~tf.reduce_all(tf.math.is_finite(losses), axis=0))
        labels = _class_labels(model, self.given[1], predictions[0])
        return self._replace(y=nonfinite.replace(self.y, is_bad), is_bad=is_bad, labels=labels)


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
    return batch_of(x, y, sample_weight)


def batch_of(x, y, sample_weight):
    """The `Batch` of its parts, before anything is predicted."""
    is_bad = nonfinite.find((x, y))
    finite_x, finite_y = nonfinite.replace(x, is_bad), nonfinite.with_zeros(y)
    return Batch(finite_x, finite_y, sample_weight, (x, y), is_bad, is_ranked_by(is_bad, sample_weight))


def is_ranked_by(examples, sample_weight):
    """bool `[batch]`: False where the user's weight is 0 (for all the outputs), which marks padding.

    Args:
        examples: A tensor `[batch]`, for the number of examples.
        sample_weight: A tensor `[batch, ...]`, a structure of them, a list of numbers, or None.
    """
    given = [weight for weight in keras.tree.flatten(sample_weight) if weight is not None]
    if not given:
        return tf.ones_like(examples, tf.bool)
    if not hasattr(given[0], "shape"):
        given = [sample_weight]  # one list of numbers
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
