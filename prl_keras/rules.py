"""Rules: the scores of a batch in, one weight per example out.

A rule is called as `rule(scores, is_ranked=None, step=0)`:

* `scores`: `[batch]`, higher = more suspect. A score that is not a number ranks worst.
* `is_ranked`: bool `[batch]`; False marks padding, which is neither ranked nor counted and weighs 0.
* `step`: the optimizer step, for an epsilon that is a schedule.

It gives float32 weights `[batch]` that carry no gradient, in the convention of Keras's
`sample_weight`: the loss of the step is the *mean over the batch* of weight times loss. With `k` of
`n` examples kept, a kept example weighs `n / k`, so that the step is the mean over the kept ones and
does not shrink as more is dropped. Shapes are static throughout, as XLA needs them.
"""

import dataclasses
import math
import numbers
import warnings

import keras
import numpy as np
from keras import ops

_LARGEST_SCORE = float(np.finfo(np.float32).max)  # of real examples: padding is put at infinity
_SMALLEST_SCORE = float(np.finfo(np.float32).tiny)


def linear_ramp(epsilon, steps):
    """The paper's drop schedule: rises linearly from 0 to `epsilon` over `steps`, then stays.

    Args:
        epsilon: Final fraction to drop, in `[0, 1)`.
        steps: Number of optimizer steps of the rise, at least 1. The paper's code takes 10 epochs.

    Returns:
        A `keras.optimizers.schedules.LearningRateSchedule` for `Trim`.
    """
    check_fraction("epsilon", epsilon)
    check_count("steps", steps)
    _warn_of_half(epsilon, stacklevel=3)
    return keras.optimizers.schedules.PolynomialDecay(
        initial_learning_rate=0.0, decay_steps=steps, end_learning_rate=epsilon, power=1.0
    )


def kept_count(count, epsilon):
    """How many of `count` examples Trim keeps: `max(1, floor((1 - epsilon) * count + 1e-6))`.

    In float64, because `floor` makes any rounding visible: in float32 `(1 - 0.3) * 1000` is 699.99994.
    For the same reason an epsilon that went through float32 (every Keras schedule) is first rounded
    to 7 decimals; float32 cannot tell finer fractions apart.

    Args:
        count: Number of examples, an integer or an integer scalar tensor.
        epsilon: Fraction to drop, a number or a scalar tensor, clipped to `[0, 1]`.

    Returns:
        int32 scalar, between 1 and `max(1, count)`.
    """
    count = ops.cast(count, "float64")
    if isinstance(epsilon, (float, int)):
        epsilon = ops.convert_to_tensor(epsilon, dtype="float64")
    else:
        epsilon = ops.round(ops.cast(epsilon, "float64") * 1e7) / 1e7
    kept = ops.floor((1.0 - ops.clip(epsilon, 0.0, 1.0)) * count + 1e-6)
    return ops.cast(ops.maximum(kept, 1.0), "int32")


@keras.saving.register_keras_serializable(package="prl_keras")
@dataclasses.dataclass(frozen=True)
class Trim:
    """Drops the `epsilon` fraction with the highest scores (the paper's algorithm 1).

    Of `n` ranked examples exactly `k = max(1, floor((1 - epsilon) * n + 1e-6))` are kept and weigh
    `n / k`; the others weigh 0.

    | case | weights |
    |---|---|
    | `epsilon = 0` | all 1 |
    | ties | the earlier example of the batch is kept |
    | a score is NaN or infinite | dropped first |
    | one example | kept, weight 1 |
    | padding only, or an empty batch | all 0, or empty |
    | `epsilon` a number of 0.5 or more | the same, after a warning: the paper's theory ends there |
    | `min_keep_per_class=m` | the `m` lowest of each given class are among the kept; k rises if need be |

    Args:
        epsilon: A number in `[0, 1)`, or a `keras.optimizers.schedules.LearningRateSchedule` of the
            optimizer step, such as `linear_ramp(0.3, steps=1000)`.
        min_keep_per_class: At least 0. Above 0 the rule is called with a fourth argument, the given
            classes, int `[batch]`. It takes memory of `batch` squared.

    Raises:
        ValueError: for an epsilon outside the range, NaN included.
    """

    epsilon: float | keras.optimizers.schedules.LearningRateSchedule
    min_keep_per_class: int = 0

    def __post_init__(self):
        check_epsilon(self.epsilon)
        check_count("min_keep_per_class", self.min_keep_per_class, lowest=0)
        if not isinstance(self.epsilon, keras.optimizers.schedules.LearningRateSchedule):
            # By its shortest decimal: numpy.float32(0.3) means 0.3, not 0.30000001.
            decimal = str(self.epsilon) if isinstance(self.epsilon, np.floating) else self.epsilon
            object.__setattr__(self, "epsilon", float(decimal))
            _warn_of_half(self.epsilon, stacklevel=4)

    def __call__(self, scores, is_ranked=None, step=0, labels=None):
        scores, is_ranked, count = _prepare(scores, is_ranked)
        epsilon = self.epsilon if isinstance(self.epsilon, numbers.Real) else self.epsilon(step)
        kept = kept_count(count, epsilon)
        if self.min_keep_per_class:
            is_first = _lowest_of_each_class(scores, is_ranked, labels, self.min_keep_per_class)
            scores = ops.where(is_first, -math.inf, scores)
            kept = ops.maximum(kept, ops.sum(ops.cast(is_first, "int32")))
        return _keep_lowest(scores, is_ranked, count, kept)

    def get_config(self):
        config = dataclasses.asdict(self)
        return {**config, "epsilon": keras.saving.serialize_keras_object(self.epsilon)}

    @classmethod
    def from_config(cls, config):
        return cls(**{**config, "epsilon": keras.saving.deserialize_keras_object(config["epsilon"])})


@keras.saving.register_keras_serializable(package="prl_keras")
@dataclasses.dataclass(frozen=True)
class KeepLowest:
    """Keeps the `count` lowest scores, all of them if there are fewer; they weigh `n / count`.

    `KeepLowest(1)` on the loss is min-SGD (Shah et al. 2020, "Choosing the sample with lowest loss
    makes SGD robust"). Ties and scores that are not numbers: as in `Trim`.

    Args:
        count: Number of examples to keep, at least 1.
    """

    count: int = 1

    def __post_init__(self):
        check_count("count", self.count)
        object.__setattr__(self, "count", int(self.count))

    def __call__(self, scores, is_ranked=None, step=0):
        del step
        scores, is_ranked, count = _prepare(scores, is_ranked)
        kept = ops.minimum(self.count, ops.maximum(count, 1))
        return _keep_lowest(scores, is_ranked, count, kept)

    def get_config(self):
        return dataclasses.asdict(self)

    @classmethod
    def from_config(cls, config):
        return cls(**config)


@keras.saving.register_keras_serializable(package="prl_keras")
@dataclasses.dataclass(frozen=True)
class ClipNorm:
    """Weight `min(1, max_norm / score)`: on gradient norms, clipping every example's gradient.

    The mean stays over all `n` examples, clipped or not. A score of 0 weighs 1; a score that is not
    a number weighs 0; `ClipNorm(math.inf)` changes nothing.

    Args:
        max_norm: A positive number, or infinity.
    """

    max_norm: float

    def __post_init__(self):
        if not _is_number(self.max_norm) or not self.max_norm > 0:
            raise ValueError(
                f"max_norm={self.max_norm!r} must be a positive number, for example ClipNorm(max_norm=1.0)."
            )

    def __call__(self, scores, is_ranked=None, step=0):
        del step
        scores, is_ranked, _ = _prepare(scores, is_ranked)
        if math.isinf(self.max_norm):
            return ops.cast(is_ranked, "float32")
        weights = ops.minimum(1.0, self.max_norm / ops.maximum(scores, 1e-30))
        weights = ops.where(scores < _LARGEST_SCORE, weights, 0.0)
        return ops.where(is_ranked, weights, 0.0)

    def get_config(self):
        return dataclasses.asdict(self)

    @classmethod
    def from_config(cls, config):
        return cls(**config)


def check_epsilon(epsilon):
    """Refuses what is neither a fraction in `[0, 1)` nor a schedule."""
    if not isinstance(epsilon, keras.optimizers.schedules.LearningRateSchedule):
        check_fraction("epsilon", epsilon)


def _prepare(scores, is_ranked):
    """-> (float32 scores, not-a-number made the largest; bool is_ranked; int32 number of ranked)."""
    scores = ops.stop_gradient(ops.cast(scores, "float32"))
    scores = ops.where(ops.isfinite(scores), scores, _LARGEST_SCORE)
    # One zero for -0.0, which XLA sorts before 0.0, and for numbers too small to be kept everywhere.
    scores = ops.where(ops.abs(scores) < _SMALLEST_SCORE, 0.0, scores)
    if is_ranked is None:
        is_ranked = ops.ones_like(scores, dtype="bool")
    is_ranked = ops.cast(is_ranked, "bool")
    return scores, is_ranked, ops.sum(ops.cast(is_ranked, "int32"))


def _keep_lowest(scores, is_ranked, count, kept):
    """Weight `count / kept` for the `kept` lowest scores among the ranked, 0 for the others."""
    # The inverse of the sorting permutation is each example's rank; argsort keeps the order of ties.
    order = ops.argsort(ops.where(is_ranked, scores, math.inf))
    is_kept = ops.logical_and(ops.argsort(order) < kept, is_ranked)
    return ops.where(is_kept, ops.cast(count, "float32") / ops.cast(kept, "float32"), 0.0)


def _lowest_of_each_class(scores, is_ranked, labels, number):
    """bool `[batch]`: whether fewer than `number` examples of the same class have a lower score."""
    rank = ops.argsort(ops.argsort(ops.where(is_ranked, scores, math.inf)))  # all different
    is_lower = ops.logical_and(rank[None, :] < rank[:, None], labels[None, :] == labels[:, None])
    lower = ops.sum(ops.cast(ops.logical_and(is_lower, is_ranked[None, :]), "int32"), axis=1)
    return ops.logical_and(lower < number, is_ranked)


def _is_number(value):
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def check_fraction(name, value):
    if not _is_number(value) or not 0 <= value < 1:
        raise ValueError(
            f"{name}={value!r} must be a number in [0, 1), the fraction of examples to drop; write "
            f"{name}=0.3 to drop 30 percent, 0 to drop none. A schedule of the step is a "
            "keras.optimizers.schedules.LearningRateSchedule, such as prl_keras.linear_ramp(0.3, 1000)."
        )


def _warn_of_half(epsilon, stacklevel):
    if epsilon >= 0.5:
        # Without the value, so that Python says it once for a line of code and not for each epsilon.
        warnings.warn(
            "An epsilon of 0.5 or more drops at least as many examples as it keeps. The paper's theory "
            "assumes less: that of a batch the smaller part is wrong.",
            stacklevel=stacklevel,
        )


def check_count(name, value, lowest=1):
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < lowest:
        raise ValueError(f"{name}={value!r} must be a whole number of at least {lowest}.")
