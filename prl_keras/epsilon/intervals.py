"""A fraction of wrong labels and its interval, from counts and a model of how often the network errs."""

import math
import statistics
import typing

import numpy as np

_LEARNT = 0.1  # the largest share of the wrong labels that was learnt
_APART = 2.5  # standard deviations of the logarithms, above which two gamma distributions are distinct
_STEPS = 200  # at most, of expectation maximization
_SETTLED = 1e-9  # the change of posteriors at convergence


class EpsilonEstimate(typing.NamedTuple):
    """A fraction of wrong labels, `estimate`, and the interval `[low, high]` around it, all in `[0, 1]`.

    `print` shows it with three decimals, such as "0.203 (0.171 to 0.262)".
    """

    estimate: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.estimate:.3f} ({self.low:.3f} to {self.high:.3f})"


class AdmittedErrors(typing.NamedTuple):
    """The rate at which a model errs on right labels, by its own confidence: lowest, likely and highest."""

    few: float
    likely: float
    many: float


def admitted_errors(
    unsure: float, disagreement: float | None = None, factor: float = 2.0, overconfidence: float = 2.0
) -> AdmittedErrors:
    """`AdmittedErrors` from the mean of `1 - confidence` or, for a pair, how often its networks disagree.

    The rate lies within `factor` of that value. The networks of a pair may make the same errors, which no
    disagreement shows, so the highest rate is at least `overconfidence` times the mean of `1 - confidence`.
    """
    if disagreement is None:  # half: it was trained on these examples
        return AdmittedErrors(unsure / factor, unsure / 2, min(unsure * factor, 1.0))
    many = max(disagreement * factor, unsure * overconfidence)
    return AdmittedErrors(disagreement / factor, disagreement, min(many, 1.0))


def of_classes(differ: float, errors: AdmittedErrors, n: float, confidence: float) -> EpsilonEstimate:
    """`EpsilonEstimate` of class labels.

    Args:
        differ: Share of the `n` examples whose predicted class differs from the given one.
        errors: `AdmittedErrors`.
        n: Number of examples.
        confidence: Confidence of the interval, in (0, 1).
    """
    chance = normal_deviations(confidence) * np.sqrt(differ * (1 - differ) / n)
    low = _solve(differ - chance, errors.many, 0.0)
    high = _solve(differ + chance, errors.few, _LEARNT)
    estimate = _solve(differ, errors.likely, 0.0)
    return EpsilonEstimate(estimate, min(low, estimate), max(high, estimate))


def with_bad(of_good: EpsilonEstimate, bad: float) -> EpsilonEstimate:
    """`EpsilonEstimate` of all examples, from `of_good` and the share `bad` of non-finite ones, all wrong."""
    return EpsilonEstimate(*(float(bad + (1 - bad) * share) for share in of_good))


def _solve(d, e, m):
    """The epsilon of `d = epsilon (1 - m) + (1 - epsilon) e`, in [0, 1]."""
    return float(np.clip((d - e) / max(1 - m - e, 1e-9), 0, 1))


def of_targets(losses: np.ndarray, counts: np.ndarray, confidence: float) -> EpsilonEstimate:
    """`EpsilonEstimate` of real-valued targets.

    Args:
        losses: Losses, float `[k]`, at least 0.
        counts: The number of examples with each loss, float `[k]`.
        confidence: Confidence of the interval, in (0, 1).
    """
    fits = [_fit(losses, counts, kind, parts) for kind in (_normal, _gamma) for parts in (1, 2)]
    best = min(fits, key=lambda fit: fit.criterion)
    lows, highs = [best.share], [best.share]
    for fit in fits[1::2]:  # the fits of two parts
        slack = fit.between + normal_deviations(confidence) * np.sqrt(
            fit.share * (1 - fit.share) / counts.sum()
        )
        lows.append(fit.share - slack)
        highs.append(fit.share + slack)
    is_apart = best.share > 0 and fits[-1].distance > _APART
    low = min(lows) if is_apart else 0.0
    return EpsilonEstimate(best.share, max(float(low), 0.0), min(float(max(highs)), 1.0))


def probably_wrong(losses: np.ndarray) -> np.ndarray:
    """The probability that each target belongs to the part with the higher losses; both float `[n]`."""
    counts = np.ones(len(losses))
    fits = [_fit(losses, counts, kind, parts=2) for kind in (_normal, _gamma)]
    return min(fits, key=lambda fit: fit.criterion).posterior


class _Fit(typing.NamedTuple):
    """A mixture of one or two parts.

    Attributes:
        share: The share of the upper part.
        between: The share of examples that may belong to either part.
        distance: Standard deviations of the logarithms between the two parts.
        criterion: Schwarz's criterion; less is better.
        posterior: `[k]`, the probability that an example belongs to the upper part.
    """

    share: float
    between: float
    distance: float
    criterion: float
    posterior: np.ndarray


def _fit(losses, counts, density, parts):
    """Expectation maximization, from the halves below and above the median."""
    logs = np.log(np.maximum(losses.astype(float), np.finfo(np.float32).tiny))
    n, order = counts.sum(), np.argsort(logs)
    middle = logs[order][np.searchsorted(np.cumsum(counts[order]), n / 2)]
    logs -= middle
    posteriors = np.stack([logs <= 0, logs > 0]) if parts == 2 else np.ones((1, len(logs)))
    for _ in range(_STEPS if parts == 2 else 1):
        before, weights = posteriors, counts * posteriors
        totals = weights.sum(axis=1)
        if min(totals) < 1:  # a part with less than one example
            return _Fit(0.0, 0.0, 0.0, math.inf, np.zeros(len(logs)))
        means = weights @ logs / totals
        spreads = np.sqrt((weights * (logs - means[:, None]) ** 2).sum(axis=1) / totals) + 1e-6
        joint = np.log(totals / n)[:, None] + density(logs, weights / totals[:, None], means, spreads)
        likelihood = np.logaddexp.reduce(joint)
        posteriors = np.exp(joint - likelihood)
        if np.abs(posteriors - before).max() < _SETTLED:
            break
    criterion = -2 * (counts * likelihood).sum() + (3 * parts - 1) * np.log(n)
    if parts == 1:
        return _Fit(0.0, 0.0, 0.0, criterion, np.zeros(len(logs)))
    upper = int(means[1] >= means[0])
    between = float((counts * np.minimum(*posteriors)).sum() / n)
    distance = abs(means[1] - means[0]) / max(spreads)
    return _Fit(float(totals[upper] / n), between, distance, criterion, posteriors[upper])


def _normal(logs, weights, means, spreads):
    """The log density of the logarithms under normal distributions, `[parts, k]`."""
    spreads = spreads[:, None]
    return -np.log(spreads * np.sqrt(2 * np.pi)) - ((logs - means[:, None]) / spreads) ** 2 / 2


def _gamma(logs, weights, means, spreads):
    """The log density of the logarithms of gamma-distributed losses (such as squared normal errors).

    The result is `[parts, k]`. The shape is Minka's first guess (2002, "Estimating a gamma distribution").
    """
    losses = np.exp(logs)
    of_losses = weights @ losses
    s = np.maximum(np.log(of_losses) - means, 1e-9)
    shapes = np.minimum((3 - s + np.sqrt((s - 3) ** 2 + 24 * s)) / (12 * s), 1e6)
    scales = of_losses / shapes
    constants = [math.lgamma(shape) + shape * math.log(scale) for shape, scale in zip(shapes, scales)]
    return shapes[:, None] * logs - losses / scales[:, None] - np.array(constants)[:, None]


def normal_deviations(confidence: float) -> float:
    """The standard deviations on each side of a normal distribution's mean that hold this share of it."""
    return statistics.NormalDist().inv_cdf((1 + confidence) / 2)
