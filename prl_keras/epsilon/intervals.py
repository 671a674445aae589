"""From what was counted to a fraction of wrong labels and its interval; how a model errs is the hard part."""

import math
import statistics
import typing

import numpy as np

_LEARNT = 0.1  # at most this share of the wrong labels was learnt
_APART = 2.5  # standard deviations between the logarithms of two gamma distributions that tell them apart
_STEPS = 200  # of expectation maximization, at most
_SETTLED = 1e-9  # posteriors that change by less


class EpsilonEstimate(typing.NamedTuple):
    """A fraction of wrong labels, `estimate`, and the interval `[low, high]` around it, all in `[0, 1]`."""

    estimate: float
    low: float
    high: float


class AdmittedErrors(typing.NamedTuple):
    """At which rate a model errs on right labels, by what it admits: at least, likely, and at most."""

    few: float
    likely: float
    many: float


def admitted_errors(unsure, disagreement=None, factor=2.0, overconfidence=2.0):
    """`AdmittedErrors` by the mean of `1 - confidence`, and for a pair how often its networks disagree.

    The rate lies within `factor` of that. Networks of a pair may err alike, which no disagreement shows: they
    may err `overconfidence` times as often as they are unsure, too.
    """
    if disagreement is None:  # half: it was trained on these examples
        return AdmittedErrors(unsure / factor, unsure / 2, min(unsure * factor, 1.0))
    many = max(disagreement * factor, unsure * overconfidence)
    return AdmittedErrors(disagreement / factor, disagreement, min(many, 1.0))


def of_classes(differ, errors, n, confidence):
    """`EpsilonEstimate` of class labels.

    Args:
        differ: Share of the `n` examples whose predicted class is not the given one.
        errors: `AdmittedErrors`.
        n, confidence: Number of examples; of the interval.
    """
    chance = normal_deviations(confidence) * np.sqrt(differ * (1 - differ) / n)
    low = _solve(differ - chance, errors.many, 0.0)
    high = _solve(differ + chance, errors.few, _LEARNT)
    estimate = _solve(differ, errors.likely, 0.0)
    return EpsilonEstimate(estimate, min(low, estimate), max(high, estimate))


def with_bad(of_good, bad):
    """`EpsilonEstimate` of all, from that of the good examples and the share of bad ones, which are wrong."""
    return EpsilonEstimate(*(float(bad + (1 - bad) * share) for share in of_good))


def _solve(d, e, m):
    """The epsilon of `d = epsilon (1 - m) + (1 - epsilon) e`, in [0, 1]."""
    return float(np.clip((d - e) / max(1 - m - e, 1e-9), 0, 1))


def of_targets(losses, counts, confidence):
    """`EpsilonEstimate` of targets.

    Args:
        losses, counts: Losses, float `[k]`, at least 0, and how many examples have each.
        confidence: Of the interval.
    """
    fits = [_fit(losses, counts, kind, parts) for kind in (_normal, _gamma) for parts in (1, 2)]
    best = min(fits, key=lambda fit: fit.criterion)
    lows, highs = [best.share], [best.share]
    for fit in fits[1::2]:  # those of two parts
        slack = fit.between + normal_deviations(confidence) * np.sqrt(
            fit.share * (1 - fit.share) / counts.sum()
        )
        lows.append(fit.share - slack)
        highs.append(fit.share + slack)
    is_apart = best.share > 0 and fits[-1].distance > _APART
    low = min(lows) if is_apart else 0.0
    return EpsilonEstimate(best.share, max(float(low), 0.0), min(float(max(highs)), 1.0))


def probably_wrong(losses):
    """float `[n]`: the probability that a target is of the part with the higher losses, float `[n]`."""
    counts = np.ones(len(losses))
    fits = [_fit(losses, counts, kind, parts=2) for kind in (_normal, _gamma)]
    return min(fits, key=lambda fit: fit.criterion).posterior


class _Fit(typing.NamedTuple):
    """A mixture of one or two parts: the share of the upper one, the share of examples that may be of either,
    how many standard deviations of the logarithms lie between the two, Schwarz's criterion (less is better),
    and the probability `[k]` that an example is of the upper part."""

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
        if min(totals) < 1:  # less than one example: there is no second part
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
    """The logarithm of a normal distribution's density of logarithms, `[parts, k]`; weights as well."""
    del weights
    spreads = spreads[:, None]
    return -np.log(spreads * np.sqrt(2 * np.pi)) - ((logs - means[:, None]) / spreads) ** 2 / 2


def _gamma(logs, weights, means, spreads):
    """The same of a gamma distribution of the losses, as squares of normal errors have; its shape by Minka's
    first guess (2002, "Estimating a gamma distribution")."""
    del spreads
    losses = np.exp(logs)
    of_losses = weights @ losses
    s = np.maximum(np.log(of_losses) - means, 1e-9)
    shapes = np.minimum((3 - s + np.sqrt((s - 3) ** 2 + 24 * s)) / (12 * s), 1e6)
    scales = of_losses / shapes
    constants = [math.lgamma(shape) + shape * math.log(scale) for shape, scale in zip(shapes, scales)]
    return shapes[:, None] * logs - losses / scales[:, None] - np.array(constants)[:, None]


def normal_deviations(confidence):
    """Standard deviations on each side of a normal distribution's mean that hold this share of it."""
    return statistics.NormalDist().inv_cdf((1 + confidence) / 2)
