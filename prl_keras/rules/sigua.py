"""Sigua: Trim that unlearns a part of what it drops."""

import dataclasses
from typing import Any

import keras
from keras import ops

from prl_keras.keras_gaps.saved_fields import SavedFields
from prl_keras.rules.epsilon import check_epsilon, epsilon_at
from prl_keras.rules.ranking import LARGEST_SCORE, is_among_lowest, prepare
from prl_keras.rules.trim import kept_count
from prl_keras.validate import is_number, shortest


@keras.saving.register_keras_serializable(package="prl_keras")
@dataclasses.dataclass(frozen=True)
class Sigua(SavedFields):
    """Keeps what `Trim` keeps, and takes a small step against the dropped examples with the lowest scores.

    Of `n` ranked examples `Trim` keeps `k`, which weigh `n / k`. Of the `n - k` dropped ones the
    `floor(share * (n - k))` with the lowest scores weigh `-gamma n / k`, so that the network unlearns labels
    that it may have begun to memorize; the others weigh 0 (Han et al. 2020, "SIGUA: forgetting may make
    learning with noisy labels more robust"). The bound of the paper on `Trim` does not hold for it.

    Args:
        epsilon: As in `Trim`.
        gamma: Size of the step against an example, in `[0, 1]`; 0.01 in the authors' code.
        share: Share of the dropped examples that are unlearned, in `[0, 1]`; 0.3 in the authors' code.

    Raises:
        ValueError: for a value out of its range.
    """

    epsilon: float | keras.optimizers.schedules.LearningRateSchedule
    gamma: float = 0.01
    share: float = 0.3

    def __post_init__(self) -> None:
        check_epsilon(self.epsilon)
        object.__setattr__(self, "epsilon", shortest(self.epsilon))
        for name in ("gamma", "share"):
            value = getattr(self, name)
            if not is_number(value) or not 0 <= value <= 1:
                raise ValueError(f"{name}={value!r} must be a number in [0, 1].")

    def __call__(self, scores: Any, is_ranked: Any = None, step: Any = 0) -> Any:
        """The weights, float32 `[batch]`; `prl_keras.rules` describes the arguments."""
        scores, is_ranked, count = prepare(scores, is_ranked)
        kept = ops.cast(kept_count(count, epsilon_at(self.epsilon, step)), "float32")
        unlearned = ops.floor(self.share * ops.maximum(count - kept, 0.0) + 1e-6)
        is_kept = is_among_lowest(scores, is_ranked, kept)
        is_low = is_among_lowest(scores, is_ranked, kept + unlearned)
        is_low = ops.logical_and(is_low, scores < LARGEST_SCORE)  # nothing to unlearn where it is not finite
        weights = ops.where(is_kept, 1.0, ops.where(is_low, -self.gamma, 0.0))
        return weights * count / kept
