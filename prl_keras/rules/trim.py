"""Trim: the paper's rule, which drops the fraction epsilon with the highest scores."""

import dataclasses
import numbers
from typing import Any, ClassVar

import keras
from keras import ops

from prl_keras.keras_gaps.saved_fields import SavedFields
from prl_keras.rules.epsilon import check_epsilon, epsilon_at, is_schedule, warn_of_half
from prl_keras.rules.ranking import LARGEST_SCORE, keep_lowest, lowest_of_each_class, prepare
from prl_keras.validate import check_integer, shortest


@keras.saving.register_keras_serializable(package="prl_keras")
@dataclasses.dataclass(frozen=True)
class Trim(SavedFields):
    """Drops the `epsilon` fraction with the highest scores (the paper's algorithm 1).

    Of `n` ranked examples exactly `k = max(1, floor((1 - epsilon) * n + 1e-6))` are kept and weigh
    `n / k`; the others weigh 0.

    | case | weights |
    |---|---|
    | `epsilon = 0` | all 1 |
    | ties | the earlier example of the batch is kept; with `ties` the one with the lower entry |
    | a score is NaN or infinite | dropped first |
    | one example | kept, weight 1 |
    | padding only, or an empty batch | all 0, or empty |
    | `epsilon` a number of 0.5 or more | the same, after a warning: the paper's theory ends there |
    | `min_keep_per_class=m` | the `m` lowest of each given class are kept; k rises if necessary |

    Args:
        epsilon: A number in `[0, 1)`, or a `keras.optimizers.schedules.LearningRateSchedule` of the
            optimizer step, such as `linear_ramp(0.3, steps=1000)`.
        min_keep_per_class: At least 0. Above 0 the rule is called with a fourth argument, the given
            classes, int `[batch]`, and with `classes`, their number.

    Raises:
        ValueError: if epsilon is out of range (or NaN), or min_keep_per_class is invalid.
    """

    epsilon: float | keras.optimizers.schedules.LearningRateSchedule
    min_keep_per_class: int = 0

    def __post_init__(self) -> None:
        check_epsilon(self.epsilon)
        check_integer("min_keep_per_class", self.min_keep_per_class, 0)
        if not is_schedule(self.epsilon):
            object.__setattr__(self, "epsilon", float(shortest(self.epsilon)))
            warn_of_half(self.epsilon, stacklevel=4)

    #: Whether it only compares scores. If many may be equal, it is called with `ties`, losses `[batch]`.
    ranks: ClassVar[bool] = True

    def __call__(
        self,
        scores: Any,
        is_ranked: Any = None,
        step: Any = 0,
        labels: Any = None,
        ties: Any = None,
        classes: int | None = None,
    ) -> Any:
        """The weights, float32 `[batch]`; `prl_keras.rules` describes the arguments."""
        scores, is_ranked, count = prepare(scores, is_ranked)
        kept = kept_count(count, epsilon_at(self.epsilon, step))
        if self.min_keep_per_class:
            is_first = lowest_of_each_class(scores, is_ranked, labels, self.min_keep_per_class, classes)
            scores = ops.where(is_first, -LARGEST_SCORE, scores)
            kept = ops.maximum(ops.cast(kept, "float32"), ops.sum(ops.cast(is_first, "float32")))
        return keep_lowest(scores, is_ranked, count, kept, ties)

    @property
    def takes_labels(self) -> bool:
        """Whether it is called with the given classes."""
        return self.min_keep_per_class > 0

    def most_kept(self, count: Any) -> Any:
        """How many of `count` examples are kept at most, int32 scalar; None if the step or batch decides."""
        is_known = isinstance(self.epsilon, numbers.Real) and not self.min_keep_per_class
        return kept_count(count, self.epsilon) if is_known else None


def kept_count(count: Any, epsilon: Any) -> Any:
    """How many of `count` examples Trim keeps: `max(1, floor((1 - epsilon) * count + 1e-6))`.

    The result is computed in float64, because `floor` exposes any rounding: in float32 `(1 - 0.3) * 1000` is
    699.99994. For the same reason a tensor epsilon (every Keras schedule returns float32) is first rounded to
    7 decimals, the resolution of float32.

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
