"""InverseScore: an example weighs the less the larger its score; with distances, the geometric median."""

import dataclasses
import math
from typing import Any

import keras
from keras import ops

from prl_keras.keras_gaps.saved_fields import SavedFields
from prl_keras.rules.ranking import LARGEST_SCORE, mean_one, prepare
from prl_keras.validate import is_number, shortest


@keras.saving.register_keras_serializable(package="prl_keras")
@dataclasses.dataclass(frozen=True)
class InverseScore(SavedFields):
    """Weight proportional to `1 / max(score, smallest)`, with mean 1; it needs no epsilon.

    With `score="distance_to_median"` the weighted mean of the gradients at the logits,
    `sum_i weight_i g_i / n`, is their geometric median `m`: it is where the sum of the unit vectors
    `(g_i - m) / ||g_i - m||` is 0. It is so if no distance is below `smallest`, and all examples are on one
    replica. The gradient of the network's weights is the mean with the same weights, not a median itself.

    Non-finite scores weigh 0; the weights of the `k` ranked finite examples add up to `k`.

    Args:
        smallest: A positive number, below which scores weigh alike. An example at the very median would else
            have all the weight.

    Raises:
        ValueError: for any other value.
    """

    smallest: float = 0.01

    def __post_init__(self) -> None:
        if not is_number(self.smallest) or not 0 < self.smallest < math.inf:
            raise ValueError(f"smallest={self.smallest!r} must be a positive number, such as 0.01.")
        object.__setattr__(self, "smallest", shortest(self.smallest))

    def __call__(self, scores: Any, is_ranked: Any = None, step: Any = 0) -> Any:
        """The weights, float32 `[batch]`; `prl_keras.rules` describes the arguments."""
        scores, is_ranked, _ = prepare(scores, is_ranked)
        counts = ops.logical_and(scores < LARGEST_SCORE, is_ranked)
        weights = self.smallest / ops.maximum(scores, self.smallest)
        return mean_one(ops.where(counts, weights, 0.0), counts)

    def most_kept(self, count: Any) -> Any:
        """`count`: every example may count."""
        return count
