"""WeightByLoss: every robust loss that depends only on p, the probability of the given label.

Let `l = -log p` be the cross-entropy of an example and `h(p)` another loss. The gradient of `h` with respect
to the logits is `w (softmax - one_hot)` with `w = -h'(p) p`, and `softmax - one_hot` is the gradient of `l`.
So a step on `h` is a step on cross-entropy in which the example weighs `w`: `h` needs a rule, not a loss.
"""

import dataclasses
import inspect
import math
import types
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self

import keras
from keras import ops

from prl_keras.rules.ranking import LARGEST_SCORE, mean_one, prepare
from prl_keras.validate import check_integer, is_number, shortest


def _gce(losses, is_ranked, *, q=0.7):
    _check("q", q, lambda: 0 < q <= 1, "a number in (0, 1]; 1 is the mean absolute error")
    return ops.exp(-q * losses)


def _sce(losses, is_ranked, *, alpha=0.1, beta=1.0, log_of_zero=-4.0):
    _check("alpha", alpha, lambda: alpha >= 0, "at least 0")
    _check("beta", beta, lambda: beta >= 0 and alpha + beta > 0, "at least 0, and positive if alpha is 0")
    _check("log_of_zero", log_of_zero, lambda: log_of_zero < 0, "negative")
    return alpha - beta * log_of_zero * ops.exp(-losses)


def _mae(losses, is_ranked):
    return 2 * ops.exp(-losses)


def _phuber(losses, is_ranked, *, tau=10.0):
    _check("tau", tau, lambda: tau > 1, "larger than 1")
    return ops.minimum(1.0, tau * ops.exp(-losses))


def _clipped_ce(losses, is_ranked, *, max_loss=5.0):
    _check("max_loss", max_loss, lambda: max_loss > 0, "positive")
    return ops.cast(losses < max_loss, "float32")


def _taylor(losses, is_ranked, *, terms=2):
    check_integer("terms", terms)
    return 1 - (1 - ops.exp(-losses)) ** terms


def _term(losses, is_ranked, *, t=-1.0):
    _check("t", t, lambda: t < 0, "negative; towards 0 all examples weigh 1")
    lowest = ops.min(ops.where(is_ranked, losses, LARGEST_SCORE))
    tilted = ops.where(is_ranked, ops.exp(t * (losses - lowest)), 0.0)  # the largest is 1
    return mean_one(tilted, is_ranked)


#: Name -> function of (losses, is_ranked, *, parameter=default) that returns the weights of finite losses.
LOSSES: Mapping[str, Callable[..., Any]] = types.MappingProxyType(
    {
        "gce": _gce,
        "sce": _sce,
        "mae": _mae,
        "phuber": _phuber,
        "clipped_ce": _clipped_ce,
        "taylor": _taylor,
        "term": _term,
    }
)


@keras.saving.register_keras_serializable(package="prl_keras")
@dataclasses.dataclass(frozen=True)
class WeightByLoss:
    """Trains on a robust loss of p, the probability of the given label, by weighting cross-entropy.

    It is a rule for `score="loss"` and a cross-entropy without label smoothing: sparse, categorical (one-hot,
    not shares of classes) or binary with one output. Labels per time step, pixel or attribute need
    `unit="element"`. With p of each example:

    | `loss` | loss `h(p)` | weight | source |
    |---|---|---|---|
    | `"gce"` | `(1 - p**q) / q` | `p**q` | Zhang & Sabuncu 2018 |
    | `"sce"` | `-alpha log p - beta log_of_zero (1 - p)` | `alpha - beta log_of_zero p` | Wang et al. 2019 |
    | `"mae"` | `2 (1 - p)` | `2 p` | Ghosh et al. 2017 |
    | `"phuber"` | `-log p`, below `p = 1 / tau` its tangent | `min(1, tau p)` | Menon et al. 2020 |
    | `"clipped_ce"` | `min(-log p, max_loss)` | 1 below `max_loss`, else 0 | |
    | `"taylor"` | `sum over k = 1..terms of (1 - p)**k / k` | `1 - (1 - p)**terms` | Feng et al. 2020 |
    | `"term"` | `log(mean of p**-t) / t`, one for the batch | `n p**-t / sum of p**-t` | Li et al. 2021 |

    A non-finite loss weighs 0.

    Args:
        loss: A name of the table.
        warm_up_steps: Optimizer steps for which all examples weigh 1, at least 0. At first no label is
            probable, and a loss that ignores improbable labels may learn nothing.
        **parameters: Those of the loss, by default `q=0.7`; `alpha=0.1, beta=1, log_of_zero=-4`; `tau=10`;
            `max_loss=5`; `terms=2`; `t=-1`.

    Raises:
        ValueError: for an unknown loss or parameter, or a value out of its range.
    """

    loss: str
    warm_up_steps: int = 0
    parameters: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    #: Whether it takes `exp(-score)` for the probability of the given label.
    reads_probability: ClassVar[bool] = True

    def __init__(self, loss: str, warm_up_steps: int = 0, **parameters: Any) -> None:
        if not isinstance(loss, str) or loss not in LOSSES:
            raise ValueError(f"loss={loss!r} is not known; write one of {', '.join(LOSSES)}.")
        known = defaults(loss)
        unknown = sorted(set(parameters) - set(known))
        if unknown:
            takes = f"it takes {', '.join(known)}" if known else "it takes none"
            raise ValueError(f"loss={loss!r} has no parameter {', '.join(unknown)}; {takes}.")
        check_integer("warm_up_steps", warm_up_steps, 0)
        object.__setattr__(self, "loss", loss)
        object.__setattr__(self, "warm_up_steps", warm_up_steps)
        plain = {name: shortest(value) for name, value in parameters.items()}
        object.__setattr__(self, "parameters", {**known, **plain})
        self([1.0])  # checks the parameters

    def __hash__(self) -> int:
        return hash((self.loss, self.warm_up_steps, tuple(sorted(self.parameters.items()))))

    def __call__(self, scores: Any, is_ranked: Any = None, step: Any = 0) -> Any:
        """The weights, float32 `[batch]`; `prl_keras.rules` describes the arguments."""
        losses, is_ranked, _ = prepare(scores, is_ranked)
        is_finite = losses < LARGEST_SCORE
        counts = ops.logical_and(is_finite, is_ranked)
        # A probability is at most 1; rounding can make a loss slightly negative.
        weights = LOSSES[self.loss](ops.maximum(losses, 0.0), counts, **self.parameters)
        if self.warm_up_steps:
            weights = ops.where(ops.cast(step, "int64") < self.warm_up_steps, 1.0, weights)
        return ops.where(counts, weights, 0.0)

    def most_kept(self, count: Any) -> Any:
        """`count`: every example may count."""
        return count

    def get_config(self) -> dict[str, Any]:
        return {"loss": self.loss, "warm_up_steps": self.warm_up_steps, **self.parameters}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        return cls(**config)


def defaults(loss: str) -> dict[str, Any]:
    """The parameters of a loss in `LOSSES` and their defaults."""
    parameters = inspect.signature(LOSSES[loss]).parameters.values()
    return {one.name: one.default for one in parameters if one.kind is one.KEYWORD_ONLY}


def _check(name, value, holds, wanted):
    if not is_number(value) or not math.isfinite(value) or not holds():
        raise ValueError(f"{name}={value!r} must be {wanted}.")
