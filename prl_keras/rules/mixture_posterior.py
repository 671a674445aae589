"""MixturePosterior: the probability that an example is of the half of the batch with the smaller losses."""

import dataclasses
from typing import Any, ClassVar

import keras
from keras import ops

from prl_keras.keras_gaps.saved_fields import SavedFields
from prl_keras.rules.ranking import LARGEST_SCORE, mean_one, prepare
from prl_keras.validate import check_integer

ITERATIONS = 10
VARIANCE = 5e-4  # added to each variance
_FEW = 1e-6  # examples that a component keeps at its last mean, so that it always has one


@keras.saving.register_keras_serializable(package="prl_keras")
@dataclasses.dataclass(frozen=True)
class MixturePosterior(SavedFields):
    """Weighs an example by the probability that its loss is of the lower of two Gaussians; needs no epsilon.

    For `score="loss"` and cross-entropy, `p = exp(-loss)` is the probability of the given label. In each
    batch `ITERATIONS` steps of expectation-maximization fit a mixture of two Gaussians to `x = 1 - p`;
    `VARIANCE` is added to their variances. They start from the smallest and the largest x as means, the
    variance of the batch, and equal shares. An example's weight is proportional to the posterior of the
    Gaussian with the smaller mean, with mean 1 over the ranked finite examples. A non-finite loss weighs 0.

    This is the first half of DivideMix (Li, Socher & Hoi 2020, "DivideMix: learning with noisy labels as
    semi-supervised learning"). DivideMix fits the losses of all examples once an epoch, scaled to [0, 1] by
    the smallest and the largest, and treats the examples of the other Gaussian as unlabeled. Here the fit is
    per batch, and the bounded `1 - p` replaces the scaled loss: after scaling, a single huge loss would
    leave all others at 0.

    A wide Gaussian reaches past the mean of a narrow one, and would give the largest losses a large weight.
    So below the smaller mean the posterior at that mean counts, and above the larger mean the posterior at
    the larger mean: a larger loss never weighs more. Equal losses weigh 1. The fit of a small batch is rough.

    Args:
        warm_up_steps: Optimizer steps for which all examples weigh 1, at least 0. At first the losses do
            not tell wrong labels apart: without a warm-up of some epochs the network may learn the classes
            alone whose losses happen to be small.

    Raises:
        ValueError: if warm_up_steps is negative or not a whole number.
    """

    warm_up_steps: int = 0

    #: As in `WeightByLoss`.
    reads_probability: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "warm_up_steps", check_integer("warm_up_steps", self.warm_up_steps, 0))

    def __call__(self, scores: Any, is_ranked: Any = None, step: Any = 0) -> Any:
        """The weights, float32 `[batch]`; `prl_keras.rules` describes the arguments."""
        losses, is_ranked, _ = prepare(scores, is_ranked)
        counts = ops.logical_and(losses < LARGEST_SCORE, is_ranked)
        counted = ops.cast(counts, "float32")
        # A probability is at most 1; rounding can make a loss slightly negative.
        posterior = _posterior(-ops.expm1(-ops.maximum(losses, 0.0)), counted)
        if self.warm_up_steps:
            posterior = ops.where(ops.cast(step, "int64") < self.warm_up_steps, 1.0, posterior)
        return mean_one(counted * posterior, counts)

    def most_kept(self, count: Any) -> Any:
        """`count`: every example may count."""
        return count


def _posterior(x, counted):
    """The posterior of the Gaussian with the smaller mean, `[batch]`; `x` is in [0, 1], `counted` 0 or 1."""
    number = ops.maximum(ops.sum(counted), 1.0)
    variance = ops.sum(counted * ops.square(x - ops.sum(counted * x) / number)) / number + VARIANCE
    smallest = 1.0 - ops.max(counted * (1.0 - x), initial=0.0)
    low, high = (smallest, variance, 1.0), (ops.max(counted * x, initial=0.0), variance, 1.0)
    for _ in range(ITERATIONS):
        at_low = _at_low(x, low, high)
        low = _moments(x, counted * at_low, low[0])
        high = _moments(x, counted * (1.0 - at_low), high[0])
    return _at_low(ops.clip(x, low[0], high[0]), low, high)


def _moments(x, shares, last_mean):
    """-> (mean, variance, number) of a Gaussian from its share in each example."""
    number = ops.sum(shares) + _FEW
    mean = (ops.sum(shares * x) + _FEW * last_mean) / number
    return mean, ops.sum(shares * ops.square(x - mean)) / number + VARIANCE, number


def _at_low(x, low, high):
    """The posterior of `low` at `x`; both are (mean, variance, number)."""
    logs = [
        ops.log(number) - 0.5 * ops.log(variance) - 0.5 * ops.square(x - mean) / variance
        for mean, variance, number in (low, high)
    ]
    return ops.sigmoid(logs[0] - logs[1])
