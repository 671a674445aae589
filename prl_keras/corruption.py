"""Wrong labels on purpose: the supervision corruptions of the paper's section 6, and two that follow x.

    labels  [n] or [n, 1], integer   symmetric, pairflip, instance, confusion
    targets [n, q], floating         linadv, signflip, uninoise, pairflip, mixture

Every kind proposes one wrong value for each example; `corrupt` then chooses the examples that take it, all
alike but for confusion.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from prl_keras.validate import is_integer, is_number, shortest

LABEL_KINDS = ("symmetric", "pairflip", "instance", "confusion")
TARGET_KINDS = ("linadv", "signflip", "uninoise", "pairflip", "mixture")

# Five facial landmarks, x then y: left eye (0, 1), right eye (2, 3), nose (4, 5), left mouth
# corner (6, 7), right mouth corner (8, 9). Left and right swap, the nose stays.
_LANDMARK_PAIRS = ((0, 2), (1, 3), (6, 8), (7, 9))


class Corrupted(NamedTuple):
    """The result of `corrupt`: the new targets, and which of them are wrong.

    Attributes:
        targets: array with the shape and dtype of the given targets.
        is_corrupted: bool `[n]`, True where the target was changed. Only for measuring: no training
            method may see it.
    """

    targets: np.ndarray
    is_corrupted: np.ndarray


def corrupt(
    kind: str,
    targets: Any,
    epsilon: float,
    rng: np.random.Generator | int,
    features: Any = None,
    *,
    num_classes: int | None = None,
    pairs: Sequence[tuple[int, int]] | np.ndarray | None = None,
    exact: bool = True,
) -> Corrupted:
    """Replaces a fraction epsilon of the targets by wrong ones.

    Labels y in {0, ..., C - 1}:

        symmetric   y -> a class drawn uniformly from the C - 1 others
        pairflip    y -> (y + 1) mod C
        instance    y -> another class, drawn with probability softmax(W^T x), W `[p, C]` standard normal
                    divided by sqrt(p), one draw per call; each feature is first shifted and scaled to mean
                    0 and standard deviation 1
        confusion   y -> another class, drawn in proportion to the features, which are a weak classifier's
                    probabilities `[n, C]`; an example is the likelier to be chosen the lower the
                    probability of its own class

    Targets y in R^q, features x in R^p (further axes are flattened):

        linadv      y -> W^T x,  W `[p, q]` standard normal, one draw per call
        signflip    y -> -y
        uninoise    y_j -> uniform on [min_i y_ij, max_i y_ij], each coordinate j independently
        pairflip    y_i <-> y_j for every (i, j) in `pairs`
        mixture     each example takes one of the four above, drawn uniformly

    Guarantees:
        * `exact=True`: exactly `floor(epsilon * n + 1e-6)` targets differ from those given, and
          `is_corrupted` marks exactly those; they are chosen uniformly without replacement among
          the examples whose proposal differs (confusion: with probabilities in proportion to 1 minus
          the probability of the own class). (1e-6 undoes rounding: 0.29 * 100 is 28.99...96.)
        * `exact=False`: each label is corrupted independently with probability epsilon; not for
          confusion.
        * The result depends only on the arguments and `rng`. With the same seed, the examples
          corrupted at a smaller epsilon stay corrupted, to the same value, at a larger epsilon.
        * The given arrays are neither changed nor shared with the result.

    Args:
        kind: one of `LABEL_KINDS` for labels, of `TARGET_KINDS` for regression targets.
        targets: integer `[n]` or `[n, 1]` (labels), or floating `[n, q]`, finite (regression).
        epsilon: number in [0, 1), the fraction to corrupt.
        rng: `np.random.Generator` (which advances, so a second call differs) or an int seed >= 0.
        features: `[n, ...]`, finite; required by linadv, mixture, instance and confusion, unused by the
            others. For confusion they are probabilities: at least 0, of which each row has a positive one
            besides that of its own class.
        num_classes: C >= 2. Defaults to the largest label plus one. Labels only.
        pairs: disjoint pairs of coordinates in [0, q) for pairflip and mixture. For q = 10 the
            default is left <-> right eye and left <-> right mouth corner of CelebA's landmarks; for
            any other q >= 2 it is (0, 1), (2, 3), ..., and an odd last coordinate does not change.
        exact: whether the number of corrupted examples is fixed; False is for labels only.

    Returns:
        `Corrupted(targets, is_corrupted)`.

    Raises:
        TypeError: if targets, pairs or rng have a wrong type.
        ValueError: if another argument is out of range, or the kind can change too few examples
            (signflip of zeros).

    Source: section 6 of "Learning Deep Neural Networks under Agnostic Corrupted Supervision"
    (kinds); Han et al. 2018, "Co-teaching", section 4 (independent draws, pair and symmetry); instance is
    the noise of Xia et al. 2020, "Part-dependent label noise", with one rate for all examples.
    """
    targets = np.asarray(targets)
    is_label, n = _check_targets(targets), len(targets)
    _check_kind(kind, is_label)
    epsilon, rng = _check_epsilon(epsilon), _check_rng(rng)
    if is_label and pairs is not None:
        raise ValueError(f"pairs={pairs!r} is for regression targets [n, q]; drop it for labels.")
    if not is_label and (num_classes is not None or not exact):
        given = f"num_classes={num_classes!r}, exact={exact!r}"
        raise ValueError(f"{given}: num_classes and exact=False are for labels; drop them here.")
    if kind == "confusion" and not exact:
        raise ValueError("exact=False is not for 'confusion', which chooses examples by their features.")
    if is_label:
        proposal = _propose_labels(kind, targets, features, num_classes, rng)
    else:
        proposal = _propose_targets(kind, targets, features, pairs, rng)
    if exact:
        changeable = np.flatnonzero((proposal != targets).reshape(n, -1).any(axis=1) if n else [])
        count = int(np.floor(epsilon * n + 1e-6))
        if len(changeable) < count:
            raise ValueError(
                f"{kind!r} with epsilon={epsilon} must change {count} of {n} targets, but only "
                f"{len(changeable)} of them can change. Lower epsilon or choose another kind."
            )
        # The head of one permutation, so that the choices at two epsilons are nested.
        order = rng.permutation(changeable)
        if kind == "confusion":
            order = _hardest_first(order, targets, features, rng)
        is_corrupted = np.isin(np.arange(n), order[:count])
    else:
        is_corrupted = rng.random(n) < epsilon

    proposal[~is_corrupted] = targets[~is_corrupted]
    return Corrupted(proposal, is_corrupted)


def _propose_labels(kind, labels, features, num_classes, rng):
    """One wrong label for each example, a new array with the shape and dtype of `labels`."""
    classes = _count_classes(labels, num_classes)
    if kind in ("instance", "confusion"):
        weights = _class_weights(kind, labels, features, classes, rng)
        totals = weights.cumsum(axis=1)
        drawn = (totals < rng.random((len(labels), 1)) * totals[:, -1:]).sum(axis=1)
        return drawn.reshape(labels.shape).astype(labels.dtype)
    # Adding 1, ..., C - 1 modulo C reaches each other class once and never the label itself.
    shift = 1 if kind == "pairflip" else rng.integers(1, classes, size=labels.shape)
    return ((labels.astype(np.int64) + shift) % classes).astype(labels.dtype)


def _class_weights(kind, labels, features, classes, rng):
    """`[n, classes]`, in proportion to the probability of each wrong label; 0 for the given one."""
    flat = _flat(kind, labels, features)
    _check_finite(flat, "features", "Give finite features.")
    if kind == "instance":
        if not flat.shape[1]:
            raise ValueError(
                f"features have shape {np.shape(features)}: 'instance' needs at least one feature."
            )
        if len(flat):
            varies = np.ptp(flat, axis=0) > 0  # rounding would make noise of a constant feature
            flat = np.where(varies, flat - flat.mean(axis=0), 0) / np.where(varies, flat.std(axis=0), 1)
        scores = flat @ rng.standard_normal((flat.shape[1], classes)) / np.sqrt(flat.shape[1])
        scores[np.arange(len(labels)), labels.reshape(-1)] = -np.inf
        weights = np.exp(scores - scores.max(axis=1, initial=-np.inf, keepdims=True))
    else:
        if flat.shape[1] != classes:
            raise ValueError(
                f"'confusion' needs features [n, {classes}], a classifier's probabilities, and they have "
                f"{flat.shape[1]} columns: write features=model.predict(x), or give num_classes."
            )
        weights = flat.copy()
    rows = np.arange(len(labels))
    weights[rows, labels.reshape(-1)] = 0
    bad = np.flatnonzero((weights < 0).any(axis=1) | ~(weights.sum(axis=1) > 0))
    if bad.size:
        raise ValueError(
            f"features[{bad[0]}] has a negative probability, or none besides that of its own class: give "
            "probabilities, not logits, such as those of a softmax."
        )
    return weights


def _hardest_first(order, labels, features, rng):
    """The order in which a draw without replacement, in proportion to 1 - p of the own class, takes rows."""
    flat = _flat("confusion", labels, features)
    own = flat[np.arange(len(flat)), labels.reshape(-1)] / flat.sum(axis=1)
    keys = np.log(np.maximum(1 - own, 1e-12)) + rng.gumbel(size=len(own))
    return order[np.argsort(-keys[order], kind="stable")]


def _propose_targets(kind, targets, features, pairs, rng):
    """One wrong target for each example, a new array with the shape and dtype of `targets`."""
    if kind == "linadv":
        flat = _flat("linadv", targets, features)
        proposal = (flat @ rng.standard_normal((flat.shape[1], targets.shape[1]))).astype(targets.dtype)
        _check_finite(proposal, "features @ W", "Give finite features, of a size this dtype can hold.")
        return proposal
    if kind == "signflip":
        return -targets
    if kind == "uninoise":
        if not len(targets):
            return targets.copy()  # no range to draw from
        low, high = targets.min(axis=0), targets.max(axis=0)
        return rng.uniform(low, high, size=targets.shape).astype(targets.dtype)
    if kind == "pairflip":
        return targets[:, _swap_order(pairs, targets.shape[1])]
    kinds = TARGET_KINDS[:4]
    proposals = np.stack([_propose_targets(k, targets, features, pairs, rng) for k in kinds])
    return proposals[rng.integers(4, size=len(targets)), np.arange(len(targets))]


def _flat(kind, targets, features):
    """The features as float64 `[n, p]`, after a check that there are as many as targets."""
    if features is None:
        raise ValueError(f"{kind!r} needs features: write features=x, [n, ...].")
    features = np.asarray(features)
    if features.ndim == 0 or len(features) != len(targets):
        raise ValueError(
            f"features have shape {features.shape}, but there are {len(targets)} targets: give "
            f"those of the same examples, [{len(targets)}, ...]."
        )
    return features.reshape(len(features), int(np.prod(features.shape[1:]))).astype(np.float64)


def _swap_order(pairs, width):
    """The permutation of range(width) that swaps i and j for each (i, j) in `pairs`."""
    if width == 1:
        raise ValueError("q = 1 leaves nothing to swap: 'pairflip' and 'mixture' need q >= 2.")
    if pairs is None:
        pairs = _LANDMARK_PAIRS if width == 10 else np.arange(width // 2 * 2).reshape(-1, 2)
    swaps = np.asarray(pairs)
    if swaps.ndim != 2 or swaps.shape[1] != 2 or not np.issubdtype(swaps.dtype, np.integer):
        raise TypeError(f"pairs={pairs!r} must be pairs of integers, such as ((0, 1), (2, 3)).")
    if swaps.min() < 0 or swaps.max() >= width or np.unique(swaps).size != swaps.size:
        raise ValueError(f"pairs={pairs!r} must name coordinates in [0, {width}), each once.")
    order = np.arange(width)
    order[swaps] = swaps[:, ::-1]
    return order


def _count_classes(labels, num_classes):
    """The number of classes C, after the check that C >= 2 and every label lies in [0, C)."""
    classes = num_classes
    if num_classes is None:
        classes = int(labels.max()) + 1 if labels.size else 2
    elif not is_integer(num_classes) or num_classes < 2:
        raise ValueError(f"num_classes={num_classes!r} must be an integer >= 2, or None.")
    outside = np.flatnonzero((labels < 0) | (labels >= classes))
    if outside.size:
        raise ValueError(
            f"targets[{outside[0]}] is {labels.flat[outside[0]]}, but labels must lie in [0, "
            f"{classes}): map them to 0, 1, ..., C - 1, or give num_classes=C."
        )
    if classes < 2:
        raise ValueError("every label is 0, at least 2 classes are needed: write num_classes=C.")
    if classes - 1 > np.iinfo(labels.dtype).max:
        raise ValueError(f"dtype {labels.dtype} cannot hold class {classes - 1}: use int64.")
    return classes


def _check_targets(targets):
    """Whether `targets` are labels; raises if they are neither labels nor regression targets."""
    form = f"targets have dtype {targets.dtype} and shape {targets.shape}"
    if np.issubdtype(targets.dtype, np.integer):
        if targets.ndim == 1 or (targets.ndim == 2 and targets.shape[1] == 1):
            return True
        raise ValueError(
            f"{form}; integer labels must be [n] or [n, 1]. Write targets.argmax(axis=1) for "
            "one-hot labels, targets.astype('float32') for regression."
        )
    if not np.issubdtype(targets.dtype, np.floating):
        raise TypeError(
            f"{form}; needed are integers [n] (labels) or floats [n, q] (regression). Convert "
            "with targets.astype('int64') or targets.astype('float32')."
        )
    if targets.ndim != 2 or targets.shape[1] == 0:
        raise ValueError(
            f"{form}; regression targets must be [n, q], q >= 1. Write targets[:, None] for one "
            "target per example, targets.astype('int64') for labels."
        )
    _check_finite(targets, "targets", "Drop or repair those examples first.")
    return False


def _check_finite(values, name, remedy):
    bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if bad.size:
        raise ValueError(f"{name} [n, ...] must be finite, but row {bad[0]} is not. {remedy}")


def _check_kind(kind, is_label):
    fitting, form = (LABEL_KINDS, "labels") if is_label else (TARGET_KINDS, "targets [n, q]")
    if kind not in fitting:
        other = "targets [n, q], floats" if is_label else "labels [n], integers"
        reason = f"for {other}" if kind in LABEL_KINDS + TARGET_KINDS else "unknown"
        raise ValueError(f"kind={kind!r} is {reason}; for {form} use one of {fitting}.")


def _check_epsilon(epsilon):
    if not (is_number(epsilon) and 0 <= epsilon < 1):  # a NaN fails the comparison too
        needed = "a number in [0, 1), the fraction to corrupt"
        raise ValueError(f"epsilon={epsilon!r} must be {needed}: write 0.3 for 30 percent.")
    return float(shortest(epsilon))


def _check_rng(rng: Any) -> np.random.Generator:
    if isinstance(rng, np.random.Generator):
        return rng
    if not is_integer(rng):
        needed = "a np.random.Generator or an int seed, so that the corruption can be repeated"
        raise TypeError(f"rng={rng!r} must be {needed}: write rng=0.")
    return np.random.default_rng(int(rng))  # rejects a negative seed
