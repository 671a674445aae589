"""Consistency: a term in each example's loss that compares a network's prediction with another one.

The other prediction is of the same example and has no gradient: the other network's of a pair, or that of a
teacher, the network with the moving averages of its weights. With the probabilities `p` of the network and
`q` of the other, the loss of example `i` becomes

    share_of_loss * loss_i + term(p_i, q_i)

The term is weighted and averaged like the loss. With `score="loss"` it is part of the score, too.

A consistency is a serializable object with `reference`, "peer" or "teacher"; `share_of_loss`, a number; and
`__call__(p, q)`, which takes float32 `[batch, classes]` and returns the terms, float32 `[batch]`.
"""

import dataclasses
import math
import typing
from collections.abc import Sequence

import keras
import tensorflow as tf

from prl_keras.inputs import class_labels, loss_kinds, outputs
from prl_keras.keras_gaps.internals import set_mask
from prl_keras.keras_gaps.optimizers import weight_averages
from prl_keras.keras_gaps.saved_fields import SavedFields
from prl_keras.models.forward import forward
from prl_keras.models.ranked import ranked_predictions
from prl_keras.validate import is_number, shortest

_SMALLEST = 1e-30  # a smaller probability counts as this: its gradient, 1e30, leaves room for a loss scale
_MARGIN = 1e-4  # the authors' of ELR


@keras.saving.register_keras_serializable(package="prl_keras")
@dataclasses.dataclass(frozen=True)
class Agreement(SavedFields):
    """The two networks of a pair agree: `(1 - strength) loss + strength (KL(p || q) + KL(q || p))`.

    With `score="loss"` and `exchange="joint"` the pair trains as JoCoR (Wei et al. 2020, "Combating noisy
    labels by agreement: a joint training method with co-regularization").

    Networks that agree hide errors: `epsilon="auto"` and the warning about epsilon count how often the two
    differ, and are less reliable here.

    Args:
        strength: The authors' lambda, in `[0, 1)`. They find 0.5 to 0.9 best; their code's default is 0.1.
            The gradient of the loss shrinks by `1 - strength`: plain SGD may need a higher learning rate.

    Raises:
        ValueError: for a strength out of its range.
    """

    strength: float = 0.5

    reference: typing.ClassVar[str] = "peer"

    def __post_init__(self) -> None:
        if not is_number(self.strength) or not 0 <= self.strength < 1:
            raise ValueError(f"strength={self.strength!r} must be a number in [0, 1).")
        object.__setattr__(self, "strength", float(shortest(self.strength)))

    @property
    def share_of_loss(self) -> float:
        """The factor on the loss."""
        return 1 - self.strength

    def __call__(self, p: tf.Tensor, q: tf.Tensor) -> tf.Tensor:
        """The terms, float32 `[batch]`."""
        logarithms = [tf.math.log(tf.maximum(each, _SMALLEST)) for each in (p, q)]
        # KL(p || q) + KL(q || p), in one sum.
        return self.strength * tf.reduce_sum((p - q) * (logarithms[0] - logarithms[1]), axis=1)


@keras.saving.register_keras_serializable(package="prl_keras")
@dataclasses.dataclass(frozen=True)
class EarlyLearning(SavedFields):
    """The network holds on to what it learnt early: `loss + strength log(1 - <p, q>)`.

    `q` is what a teacher predicts in inference mode, the network with the moving averages that its optimizer
    keeps of the weights (`use_ema=True`; before the first step the weights themselves). The gradient of the
    term is largest where the network already agrees with the teacher, so examples with a correct label keep
    their part of the gradient, and that of a wrong label is opposed (Liu et al. 2020, "Early-learning
    regularization prevents memorization of noisy labels"). The original averages the predictions for each
    example of the data; a teacher of averaged weights is a part of the authors' ELR+. As in their code, `p`
    is clipped to `[1e-4, 1 - 1e-4]`. The term is negative, and so may be the loss that `fit` shows.

    Keras puts the averages into the weights when `fit` ends: `evaluate`, `predict` and a further `fit` start
    from them. Validation and checkpoints in `fit` see the weights that train; for the averages add
    `keras.callbacks.SwapEMAWeights()`. `train_on_batch` never puts them in.

    Args:
        strength: The authors' lambda, at least 0: 3 for CIFAR-10 with symmetric noise, 1 with asymmetric
            noise, 7 for CIFAR-100.

    Raises:
        ValueError: for a negative or non-finite strength.
    """

    strength: float = 3.0

    reference: typing.ClassVar[str] = "teacher"
    share_of_loss: typing.ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        if not is_number(self.strength) or not 0 <= self.strength < math.inf:
            raise ValueError(f"strength={self.strength!r} must be a finite number of at least 0.")
        object.__setattr__(self, "strength", float(shortest(self.strength)))

    def __call__(self, p: tf.Tensor, q: tf.Tensor) -> tf.Tensor:
        """The terms, float32 `[batch]`."""
        p = tf.clip_by_value(p, _MARGIN, 1 - _MARGIN)
        # In half precision the sum of `q` may be above 1.
        return self.strength * tf.math.log(tf.maximum(1 - tf.reduce_sum(p * q, axis=1), _MARGIN / 2))


def compare(model: typing.Any, batch: typing.Any, passes: Sequence[typing.Any]) -> None:
    """Tells each pass the probabilities that `model.consistency`, if any, compares its own with, as `other`.

    Args:
        batch: The `Batch` that is ranked.

    Raises:
        ValueError: for a loss without one class label per example, a reduction that does not fit, or an
            optimizer that keeps no averages.
    """
    if model.consistency is None:
        return
    others = [each.y_pred for each in passes][::-1]
    if model.consistency.reference == "teacher":
        others = [_predictions_of_teacher(model, network, batch) for network in model.networks]
    for each, y_pred in zip(passes, others):
        each.other = tf.stop_gradient(_probabilities(model, y_pred))


def _predictions_of_teacher(model, network, batch):
    if not model.optimizer.built:
        model.optimizer.build([weight for each in model.networks for weight in each.trainable_weights])
    averages = weight_averages(model.optimizer, network.trainable_weights)
    predictions = forward(network, batch.x, training=False, weights=averages)
    return ranked_predictions(model, batch.of_examples.y, predictions)


def _probabilities(model, y_pred):
    loss = outputs.loss_of(model, y_pred)
    probabilities = class_labels.predicted_probabilities(y_pred, loss)
    if probabilities is None:
        raise ValueError(
            f"consistency={model.consistency!r} compares the probabilities of one class label per example, "
            f"which are not known for the loss {loss_kinds.names_of(model.loss)} on these outputs. Take "
            "one of Keras's cross-entropies or a class derived from it, with one output; where an example "
            "has several labels, write unit='element'."
        )
    is_by_weights = loss_kinds.reduction_of(loss) == "mean_with_sample_weight"
    if is_by_weights and model.consistency.share_of_loss != 1:
        raise ValueError(
            f"consistency={model.consistency!r} gives the loss a factor, which reduction="
            "'mean_with_sample_weight' divides out. Write reduction='sum_over_batch_size'."
        )
    return probabilities


def mean_of_terms(loss: typing.Any, terms: tf.Tensor, weights: tf.Tensor, counts: typing.Any) -> tf.Tensor:
    """The terms, weighted and reduced as Keras reduces the loss.

    Args:
        loss: The compiled loss; its reduction is used.
        terms: float32 `[n]`.
        weights: The weights that the loss gets, `[n]` or `[n, 1]`.
        counts: bool `[n]`, which values Keras counts; None for all.
    """
    if counts is not None:
        set_mask(terms, counts)
    return _Given(name="consistency", reduction=loss_kinds.reduction_of(loss))(terms, terms, weights)


class _Given(keras.losses.Loss):
    """Given values, reduced by Keras: with masks, weights and replicas."""

    def call(self, y_true, y_pred):
        return y_true
