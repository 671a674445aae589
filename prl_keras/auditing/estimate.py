"""How many labels are wrong? An estimate from a trained model, and an interval that allows for its errors."""

import numbers
import typing

import numpy as np

from prl_keras.auditing.predictions import Predictions, predict_beside
from prl_keras.epsilon.intervals import (
    EpsilonEstimate,
    admitted_errors,
    normal_deviations,
    of_classes,
    of_targets,
    probably_wrong,
    with_bad,
)

_MANY = 50_000  # losses of elements; more are grouped before the fit, because there may be millions


def estimate_epsilon(
    model: typing.Any,
    dataset: typing.Any,
    trusted: tuple[typing.Any, typing.Any] | None = None,
    confidence: float = 0.9,
    batch_size: int = 256,
) -> EpsilonEstimate:
    """Estimates the fraction of wrong labels (or targets) in a data set, with a model trained on it.

    Train the model robustly, with an epsilon at least as large as the true fraction: a memorised wrong label
    cannot be found. If `estimate.high` is above the epsilon of training, train again with a larger one.

    **Class labels.** A model that errs at a rate `e` on right labels, and has memorised a share `m` of the
    wrong ones, predicts another class than the given one for a share

        d = epsilon (1 - m) + (1 - epsilon) e

    of the examples. The estimate is the epsilon for m = 0 and for the `e` that the model itself suggests: how
    often its two networks disagree, or for a single network half of the mean of `1 - confidence`. The
    interval covers every `m` in [0, 0.1] and every `e` from half of the disagreement (of `1 - confidence` for
    a single network) to twice the larger of the two. It is wide for hard data, where noise and model errors
    look the same. Confident errors of the model count as wrong labels: a class that training dropped nearly
    whole (`kept_by_class`) looks wrong.

    **Targets.** The losses of right and of wrong targets form two components. Expectation maximization fits
    two normal distributions to their logarithms, and two gamma distributions to the losses. The estimate is
    the share of the upper component in the fit that is better by Schwarz's criterion; it is 0 if a single
    component fits better. The interval covers the shares of both fits, and the examples that may belong to
    either component. If the components are less than 2.5 standard deviations apart (of the logarithms in the
    gamma fit), the interval begins at 0, and the estimate is the share of the harder targets, even for clean
    data.

    **Several labels for each example** (a sequence, pixels, attributes; see `audit`). The fraction is that of
    the wrong labels among those that count. The interval treats labels as independent draws; it is too narrow
    if the labels of an example tend to be wrong together.

    Examples with non-finite inputs or targets count as wrong. Labels that the loss ignores (`ignore_class`)
    do not count.

    **Trusted labels** for some examples, drawn at random, correct the estimate: the share of wrong labels
    among them is adjusted by what the model suspects in them and in all examples (the regression estimator of
    survey sampling; prediction-powered inference, Angelopoulos et al. 2023). This assumes nothing about the
    model.

    Args:
        model: As in `audit`.
        dataset: As in `audit`.
        trusted: `(examples, labels)`, or None: at least 2 different indices `[k]` into the data set, drawn at
            random, and their true class numbers `[k]` or targets `[k, q]`. A target counts as wrong if any
            coordinate differs from the given one. Not available if examples have several labels each.
        confidence: The confidence level of the interval, in (0, 1); it covers sampling error only.
        batch_size: As in `audit`.

    Raises:
        ValueError: as in `audit`; for invalid trusted examples or an invalid confidence, no labels at all, or
            trusted examples with several labels each.
    """
    if not isinstance(confidence, numbers.Real) or not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence!r} must be a number in (0, 1), such as 0.9.")
    found = predict_beside(model, dataset, batch_size)
    if trusted is not None and found.by_element is not None:
        raise ValueError(
            "trusted takes the true label of each of some examples, and these examples have a label for each "
            f"{' and '.join(found.by_element.axes)}. Leave trusted out."
        )
    if trusted is not None:
        classes = None if found.probabilities is None else found.probabilities.shape[1]
        examples, is_wrong = _check_trusted(trusted, found.given, classes)
        is_wrong = np.where(found.is_finite[examples], is_wrong, 1.0)
        is_labelled = found.is_labelled[examples]
        if is_labelled.sum() < 2:
            raise ValueError(
                "Fewer than 2 of the trusted examples have a label that the loss does not ignore."
            )
        places = np.cumsum(found.is_labelled) - 1  # indices among the labelled examples
        examples, is_wrong = places[examples[is_labelled]], is_wrong[is_labelled]
        return _corrected(found.only(found.is_labelled), examples, is_wrong, confidence)
    return estimate_from(found, confidence)


def estimate_from(found: Predictions, confidence: float = 0.9) -> EpsilonEstimate:
    """`estimate_epsilon` without trusted labels, from `Predictions`.

    Raises:
        ValueError: if no label counts.
    """
    found = found.only(found.is_labelled)
    if not len(found.given):
        raise ValueError(
            "No example has a label that the loss does not ignore."
            if found.by_element is None
            else "No label counts: masks, ignore_class or weights of 0 hide all of them."
        )
    is_finite = found.is_finite
    good, bad = found.only(is_finite), float(np.mean(~is_finite))
    if bad == 1:
        return EpsilonEstimate(1.0, 1.0, 1.0)
    if good.is_of_classes:
        differ = float(np.mean(good.predicted != good.given))
        unsure = float(np.mean(1 - good.confidence))
        of_good = of_classes(differ, admitted_errors(unsure, good.disagreement), len(good.given), confidence)
    else:
        losses, counts = good.losses, np.ones(len(good.losses))
        if good.by_element is not None and len(losses) > _MANY:
            losses, counts = _in_groups(losses)
        of_good = of_targets(losses, counts, confidence)
    return with_bad(of_good, bad)


def _in_groups(losses):
    """The means of `_MANY` groups of losses of similar size, and the size of each group."""
    groups = np.array_split(np.sort(losses.astype(float)), _MANY)
    return np.array([group.mean() for group in groups]), np.array([float(len(group)) for group in groups])


def _corrected(found, examples, is_wrong, confidence):
    """The regression estimator of survey sampling: the counted share, adjusted by what the model suspects.

    The interval adds four examples, one of each kind (wrong or right, suspected or not): for few counted
    examples the plain interval is too narrow and often has no width (Agresti and Caffo 2000, "Simple and
    effective confidence intervals for proportions and differences of proportions").
    """
    suspected = _suspected(found)
    seen, share, n = suspected[examples], suspected.mean(), len(suspected)
    estimate, _ = _adjusted(is_wrong, seen, share)
    middle, deviation = _adjusted(np.append(is_wrong, [0, 0, 1, 1]), np.append(seen, [0, 1, 0, 1]), share)
    slack, left = normal_deviations(confidence) * deviation, np.sqrt(1 - len(examples) / n)
    low = min(estimate, estimate + left * (middle - slack - estimate))
    high = max(estimate, estimate + left * (middle + slack - estimate))
    return EpsilonEstimate(*(float(np.clip(value, 0, 1)) for value in (estimate, low, high)))


def _adjusted(is_wrong, seen, share):
    """-> (the share of wrong examples by regression on the suspected ones, its standard deviation)."""
    slope = np.cov(is_wrong, seen)[0, 1] / seen.var(ddof=1) if seen.var() > 0 else 0.0
    rest = is_wrong - slope * seen
    return is_wrong.mean() + slope * (share - seen.mean()), rest.std() / np.sqrt(max(len(seen) - 2, 1))


def _check_trusted(trusted, given, classes):
    """-> (examples int `[k]`, whether their given label is wrong, float `[k]`)."""
    try:
        examples, true = trusted
        examples, true = np.asarray(examples), np.asarray(true)
    except (TypeError, ValueError):
        raise ValueError("trusted must be (examples, labels), two arrays of one length.") from None
    is_integer = examples.ndim == 1 and examples.dtype.kind in "iu"
    if not is_integer or len(examples) < 2 or len(np.unique(examples)) < len(examples):
        raise ValueError("The trusted examples must be at least 2 places in the data set, all different.")
    if examples.min() < 0 or examples.max() >= len(given):
        raise ValueError(
            f"The trusted examples must be places in the data set, 0 to {len(given) - 1}; they are "
            f"{examples.min()} to {examples.max()}."
        )
    if true.size != given[examples].size or len(true) != len(examples):
        raise ValueError(
            f"The trusted labels have shape {true.shape}; {len(examples)} examples need "
            f"{given[examples].shape}."
        )
    if true.dtype.kind not in ("iu" if given.dtype.kind == "i" else "iuf"):
        raise ValueError(f"The trusted labels have dtype {true.dtype}; give class numbers, or real targets.")
    differs = true.reshape(given[examples].shape).astype(given.dtype) != given[examples]
    if given.dtype.kind == "i" and (true.min() < 0 or (classes is not None and true.max() >= classes)):
        raise ValueError(
            f"The trusted labels must be classes, 0 to {classes - 1}; they are {true.min()} to {true.max()}."
        )
    return examples, differs.reshape(len(examples), -1).any(axis=1).astype(float)


def _suspected(found):
    """float `[n]`: 1 (or the probability, for targets) where the model finds the given label wrong."""
    is_finite = found.is_finite
    if found.probabilities is not None:
        return np.where(is_finite, found.predicted != found.given, True).astype(float)
    suspected = np.ones(len(is_finite))
    suspected[is_finite] = probably_wrong(found.losses[is_finite])
    return suspected
