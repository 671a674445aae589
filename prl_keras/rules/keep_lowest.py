"""KeepLowest: a fixed number of examples of each batch."""

import dataclasses

import keras
from keras import ops

from prl_keras.rules.ranking import keep_lowest, prepare
from prl_keras.validate import check_count


@keras.saving.register_keras_serializable(package="prl_keras")
@dataclasses.dataclass(frozen=True)
class KeepLowest:
    """Of `n` ranked examples keeps the `min(count, n)` lowest scores; each weighs `n / min(count, n)`.

    `KeepLowest(1)` on the loss is min-SGD (Shah et al. 2020, "Choosing the sample with lowest loss
    makes SGD robust"). Ties and scores that are not numbers: as in `Trim`.

    Args:
        count: Number of examples to keep, at least 1.

    Raises:
        ValueError: for a count below 1, or one that is not a whole number.
    """

    count: int = 1

    def __post_init__(self):
        check_count("count", self.count)
        object.__setattr__(self, "count", int(self.count))

    #: As of `Trim`.
    ranks = True

    def __call__(self, scores, is_ranked=None, step=0, ties=None):
        del step
        scores, is_ranked, count = prepare(scores, is_ranked)
        return keep_lowest(scores, is_ranked, count, self.most_kept(count), ties)

    def most_kept(self, count):
        """How many of `count` examples are kept at most, a scalar."""
        return ops.minimum(self.count, ops.maximum(count, 1))

    def get_config(self):
        return dataclasses.asdict(self)

    @classmethod
    def from_config(cls, config):
        return cls(**config)
