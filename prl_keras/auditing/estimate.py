"""How many labels are wrong? An estimate from a trained model, and an interval that admits its errors."""

import numbers

import numpy as np

from prl_keras.auditing.predictions import predict_beside
from prl_keras.epsilon.intervals import (
    EpsilonEstimate,
    admitted_errors,
    normal_deviations,
    of_classes,
    of_targets,
    probably_wrong,
    with_bad,
)

_MANY = 50_000  # losses of elements, from which on groups of them are fitted; there may be millions


def estimate_epsilon(model, dataset, trusted=None, confidence=0.9, batch_size=256):
    """Which fraction of the labels (or targets) of a data set is wrong, by a model that was trained on it.

    The model should have been trained robustly, with an epsilon that is not below the truth: what it has
    learnt by heart it cannot find. `estimate.high` above the epsilon that it was told says: train again, with
    more.

    **Class labels.** A model that errs at a rate `e` on right labels, and has learnt a share `m` of the wrong
    ones, predicts another class than the given one for a share

        d = epsilon (1 - m) + (1 - epsilon) e

    of the examples. The estimate is the epsilon of m = 0 and of the e that the model admits itself: how often
    its two networks disagree, or of a single one half of `1 - confidence`, on average. The interval is of all
    the epsilons that go with some `m` in [0, 0.1] and some `e` from half of the disagreement, or of
    `1 - confidence`, to twice the larger of the two. For hard data it is wide, since there nobody can tell
    noise from error without help. What a model gets wrong and is sure of it cannot admit: a class that
    training dropped nearly whole (`kept_by_class`) looks wrong.

    **Targets.** The losses are of two kinds, of right targets and of wrong ones. Two normal distributions of
    their logarithms, and two gamma distributions, are fitted by expectation maximization; the estimate is the
    share of the upper part in the one that fits better by Schwarz's criterion, 0 if one part fits better. The
    interval holds those of both fits, and what lies between the parts. Where they do not part well (less than
    2.5 standard deviations of the gamma distributions' logarithms), it begins at 0, and the estimate is that
    of the harder targets: of clean data, too.

    **Several labels for each example** (a sequence, pixels, attributes; see `audit`): the fraction is that of
    the wrong ones among those that count. The interval takes each for one draw; where an example's labels are
    wrong together, it is too narrow.

    Examples whose inputs or targets are not finite count as wrong, those of a label that the loss ignores
    (`ignore_class`) not at all.

    **With trusted labels** of some examples, drawn at random, the share of wrong labels among these is
    adjusted by what the model suspects in them and in all (the regression estimator of survey sampling;
    prediction-powered inference, Angelopoulos et al. 2023). That assumes nothing of the model.

    Args:
        model, dataset, batch_size: As in `audit`.
        trusted: `(examples, labels)`: places in the data set `[k]`, at least 2, drawn at random and all
            different, and their true class numbers `[k]` or targets `[k, q]`; or None. A target counts as
            wrong if any coordinate is not equal to the given one. Of examples with several labels each there
            is no such correction.
        confidence: Of the interval, in (0, 1), as far as chance goes.

    Returns:
        `EpsilonEstimate`.

    Raises:
        ValueError: as in `audit`; for trusted examples or a confidence that are none, no labels at all, or
            trusted examples that have several labels each.
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
        places = np.cumsum(found.is_labelled) - 1  # among those that have a label
        examples, is_wrong = places[examples[is_labelled]], is_wrong[is_labelled]
        return _corrected(found.only(found.is_labelled), examples, is_wrong, confidence)
    return estimate_from(found, confidence)


def estimate_from(found, confidence=0.9):
    """As `estimate_epsilon` without trusted labels, from `Predictions`."""
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
    """The means of `_MANY` groups of losses that are next to each other in size, and how many are in each."""
    groups = np.array_split(np.sort(losses.astype(float)), _MANY)
    return np.array([group.mean() for group in groups]), np.array([float(len(group)) for group in groups])


def _corrected(found, examples, is_wrong, confidence):
    """The regression estimator of survey sampling: what was counted, adjusted by what the model suspects.

    The interval is that of four examples more, one of each kind (wrong or right, suspected or not): of few
    counted ones the plain interval is too narrow, and too often has no width at all (Agresti and Caffo 2000,
    "Simple and effective confidence intervals for proportions and differences of proportions").
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
    """-> share of wrong examples, by regression on those suspected; its standard deviation."""
    slope = np.cov(is_wrong, seen)[0, 1] / seen.var(ddof=1) if seen.var() > 0 else 0.0
    rest = is_wrong - slope * seen
    return is_wrong.mean() + slope * (share - seen.mean()), rest.std() / np.sqrt(max(len(seen) - 2, 1))


def _check_trusted(trusted, given, classes):
    """-> examples int `[k]`, whether their given label is wrong, float `[k]`."""
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
    """float `[n]`: 1 where the model holds the given label, or target, for wrong."""
    is_finite = found.is_finite
    if found.probabilities is not None:
        return np.where(is_finite, found.predicted != found.given, True).astype(float)
    suspected = np.ones(len(is_finite))
    suspected[is_finite] = probably_wrong(found.losses[is_finite])
    return suspected
