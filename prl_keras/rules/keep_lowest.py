"""KeepLowest: keeps a fixed number of examples of each batch."""

import dataclasses
from typing import Any, ClassVar

import keras
from keras import ops

from prl_keras.keras_gaps.saved_fields import SavedFields
from prl_keras.rules.ranking import keep_lowest, prepare
from prl_keras.validate import check_integer


@keras.saving.register_keras_serializable(package="prl_keras")
@dataclasses.dataclass(frozen=True)
class KeepLowest(SavedFields):
    """Keeps the `min(count, n)` lowest scores of `n` ranked examples; each weighs `n / min(count, n)`.

    `KeepLowest(1)` on the loss is min-SGD (Shah et al. 2020, "Choosing the sample with lowest loss
    makes SGD robust"). Ties and non-finite scores are treated as in `Trim`.

    Args:
        count: Number of examples to keep, at least 1.

    Raises:
        ValueError: if count is below 1 or not a whole number.
    """

    count: int = 1

    def __post_init__(self) -> None:
        check_integer("count", self.count)
        object.__setattr__(self, "count", int(self.count))

    #: As in `Trim`.
    ranks: ClassVar[bool] = True

    def __call__(self, scores: Any, is_ranked: Any = None, step: Any = 0, ties: Any = None) -> Any:
        """The weights, float32 `[batch]`; `prl_keras.rules` describes the arguments."""
        scores, is_ranked, count = prepare(scores, is_ranked)
        return keep_lowest(scores, is_ranked, count, self.most_kept(count), ties)

    def most_kept(self, count: Any) -> Any:
        """The number of `count` examples that are kept, an integer scalar tensor."""
        return ops.minimum(self.count, ops.maximum(count, 1))
