"""Bare: keeps labels that are probable for their class in the batch; it needs no epsilon."""

import dataclasses
from typing import Any, ClassVar

import keras
from keras import ops

from prl_keras.keras_gaps.saved_fields import SavedFields
from prl_keras.rules.ranking import LARGEST_SCORE, prepare
from prl_keras.validate import is_number


@keras.saving.register_keras_serializable(package="prl_keras")
@dataclasses.dataclass(frozen=True)
class Bare(SavedFields):
    """Keeps an example if its label's probability is high among the examples with that label.

    For `score="loss"` and cross-entropy, `p = exp(-loss)` is the probability of the given label. In each
    batch an example is kept if `p >= mean + kappa std` of the p of all examples with the same given label
    (Patel & Sastry 2023, "Adaptive sample selection for robust learning under label noise"; std is divided
    by n). So the fraction that is dropped follows the network. Of `n` examples the `k` kept ones weigh
    `n / k`. A class keeps at least its most probable example. A non-finite loss is not kept.

    Args:
        kappa: A number of at least 0; the authors' code uses 1. 0 keeps about half of each class.

    Raises:
        ValueError: for any other value.
    """

    kappa: float = 1.0

    takes_labels: ClassVar[bool] = True
    reads_probability: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not is_number(self.kappa) or not 0 <= self.kappa < float("inf"):
            raise ValueError(f"kappa={self.kappa!r} must be a number of at least 0, such as 1.")

    def __call__(
        self,
        scores: Any,
        is_ranked: Any = None,
        step: Any = 0,
        labels: Any = None,
        classes: int | None = None,
    ) -> Any:
        """The weights, float32 `[batch]`; `prl_keras.rules` describes the arguments."""
        if labels is None:
            raise ValueError("Bare needs the given classes: write labels=y, int [batch].")
        losses, is_ranked, count = prepare(scores, is_ranked)
        counts = ops.logical_and(losses < LARGEST_SCORE, is_ranked)
        p = ops.where(counts, ops.exp(-ops.maximum(losses, 0.0)), 0.0)
        same = ops.logical_and(labels[:, None] == labels[None, :], counts[None, :])
        members = ops.maximum(ops.sum(ops.cast(same, "float32"), axis=1), 1.0)
        mean = ops.sum(ops.where(same, p[None, :], 0.0), axis=1) / members
        deviations = ops.where(same, ops.square(p[None, :] - mean[:, None]), 0.0)
        threshold = mean + self.kappa * ops.sqrt(ops.sum(deviations, axis=1) / members)
        # With large kappa, or equal p, rounding could leave none: the most probable of a class stays.
        threshold = ops.minimum(threshold, ops.max(ops.where(same, p[None, :], 0.0), axis=1))
        is_kept = ops.logical_and(p >= threshold, counts)
        kept = ops.sum(ops.cast(is_kept, "float32"))
        return ops.where(is_kept, count / ops.maximum(kept, 1.0), 0.0)
