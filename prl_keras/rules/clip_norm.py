"""ClipNorm: every example counts, but none more than with a given gradient norm."""

import dataclasses
import math
from typing import Any

import keras
from keras import ops

from prl_keras.keras_gaps.saved_fields import SavedFields
from prl_keras.rules.ranking import LARGEST_SCORE, prepare
from prl_keras.validate import is_number


@keras.saving.register_keras_serializable(package="prl_keras")
@dataclasses.dataclass(frozen=True)
class ClipNorm(SavedFields):
    """Weight `min(1, max_norm / score)`: applied to gradient norms, this clips every example's gradient.

    The mean stays over all `n` examples, clipped or not. A score of 0 weighs 1; a non-finite score weighs 0;
    `ClipNorm(math.inf)` changes nothing.

    Args:
        max_norm: A positive number, or infinity.

    Raises:
        ValueError: for any other value.
    """

    max_norm: float

    def __post_init__(self) -> None:
        if not is_number(self.max_norm) or not self.max_norm > 0:
            raise ValueError(
                f"max_norm={self.max_norm!r} must be a positive number, for example ClipNorm(max_norm=1.0)."
            )

    def __call__(self, scores: Any, is_ranked: Any = None, step: Any = 0) -> Any:
        """The weights, float32 `[batch]`; `prl_keras.rules` describes the arguments."""
        scores, is_ranked, _ = prepare(scores, is_ranked)
        if math.isinf(self.max_norm):
            return ops.cast(is_ranked, "float32")
        weights = ops.minimum(1.0, self.max_norm / ops.maximum(scores, 1e-30))
        weights = ops.where(scores < LARGEST_SCORE, weights, 0.0)
        return ops.where(is_ranked, weights, 0.0)

    def most_kept(self, count: Any) -> Any:
        """`count`: every example is kept."""
        return count
