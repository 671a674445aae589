"""One test for each promise of `corrupt`, in the order of its docstring."""

import re

import numpy as np
import pytest

from prl_keras.corruption import LABEL_KINDS, TARGET_KINDS, Corrupted, corrupt

LABELS = np.arange(200) % 10
FEATURES = np.random.default_rng(1).uniform(0.01, 1, size=(200, 10))  # of any sum, as confusion takes them
TARGETS = np.random.default_rng(2).normal(size=(200, 4)).astype("float32")
each_kind = pytest.mark.parametrize(
    ("kind", "targets"),
    [(kind, LABELS) for kind in LABEL_KINDS] + [(kind, TARGETS) for kind in TARGET_KINDS],
)


@pytest.mark.parametrize("fraction", [(0, 1), (29, 100), (1, 3), (9, 20), (1, 2), (999, 1000)])
@pytest.mark.parametrize("n", [0, 1, 2, 3, 7, 10, 100, 333])
def test_exactly_floor_epsilon_n_are_corrupted_and_really_differ(n, fraction):
    # Worked out in integers. In floats 0.29 * 100 is 28.999999999999996.
    expected = fraction[0] * n // fraction[1]
    rng = np.random.default_rng(n)
    labels, targets = rng.integers(5, size=n), rng.normal(size=(n, 4)).astype("float32")
    features = rng.normal(size=(n, 2, 3))
    likely = rng.uniform(0.01, 1, size=(n, 5))
    cases = [(kind, labels, {"num_classes": 5, "features": likely}) for kind in LABEL_KINDS]
    cases += [(kind, targets, {"features": features}) for kind in TARGET_KINDS]
    for kind, given, options in cases:
        result = corrupt(kind, given, fraction[0] / fraction[1], 0, **options)
        differs = [bool(np.any(new != old)) for new, old in zip(result.targets, given, strict=True)]
        assert result.is_corrupted.tolist() == differs, kind
        assert sum(differs) == expected, kind


def test_rows_that_cannot_change_are_never_counted():
    targets = np.zeros((10, 2))
    targets[:4] = 1.0
    result = corrupt("signflip", targets, 0.4, 0)
    np.testing.assert_array_equal(np.flatnonzero(result.is_corrupted), [0, 1, 2, 3])
    with pytest.raises(ValueError, match="must change 5 of 10 targets, but only 4 of them can"):
        corrupt("signflip", targets, 0.5, 0)


def test_choice_is_uniform_over_the_examples():
    times = sum(corrupt("pairflip", LABELS[:20], 0.3, seed).is_corrupted for seed in range(2000))
    # Each is Binomial(2000, 0.3): mean 600, std 20.5. Five stds, 20 examples.
    assert np.abs(times - 600).max() < 103


@pytest.mark.parametrize("kind", sorted({*LABEL_KINDS} - {"confusion"}))
def test_independent_draw_has_rate_epsilon_and_a_varying_count(kind):
    labels, x = np.arange(1000) % 7, np.random.default_rng(0).normal(size=(1000, 2))
    results = [corrupt(kind, labels, 0.3, seed, x, exact=False) for seed in range(200)]
    counts = np.array([result.is_corrupted.sum() for result in results])
    # Binomial(1000, 0.3) has std 14.5; the mean of 200 has std 1.02, their std has error 0.72.
    assert abs(counts.mean() - 300) < 5
    assert abs(counts.std() - 14.5) < 4
    assert all(np.array_equal(wrong, targets != labels) for targets, wrong in results)


@each_kind
def test_same_seed_same_result_different_seed_different_result(kind, targets):
    seeds = (5, np.random.default_rng(5), 6)
    one, same, other = (corrupt(kind, targets, 0.3, seed, FEATURES) for seed in seeds)
    for field in range(2):
        np.testing.assert_array_equal(one[field], same[field])
        assert (one[field] != other[field]).any()


def test_a_generator_goes_on_from_call_to_call():
    rng = np.random.default_rng(5)
    first, second = (corrupt("symmetric", LABELS, 0.3, rng) for _ in range(2))
    assert (first.is_corrupted != second.is_corrupted).any()


@each_kind
def test_what_is_corrupted_at_a_smaller_epsilon_stays_so_at_a_larger(kind, targets):
    small, large = (corrupt(kind, targets, epsilon, 5, FEATURES) for epsilon in (0.1, 0.4))
    assert large.is_corrupted[small.is_corrupted].all()
    assert (large.targets == small.targets)[small.is_corrupted].all()


@each_kind
def test_global_random_state_is_neither_read_nor_moved(kind, targets):
    np.random.seed(3)
    one = corrupt(kind, targets, 0.3, 5, FEATURES)
    drawn = np.random.random(700)  # more than the 624 words of the state
    np.random.seed(3)
    np.testing.assert_array_equal(np.random.random(700), drawn)
    np.testing.assert_array_equal(one.targets, corrupt(kind, targets, 0.3, 5, FEATURES).targets)


@pytest.mark.parametrize("epsilon", [0, 0.3])
@each_kind
def test_input_is_neither_changed_nor_shared(kind, targets, epsilon):
    given, features = targets.copy(), FEATURES.copy()
    given.flags.writeable = features.flags.writeable = False
    result = corrupt(kind, given, epsilon, 0, features)
    assert not np.shares_memory(result.targets, given)
    result.targets[:] = 0
    np.testing.assert_array_equal(given, targets)
    np.testing.assert_array_equal(features, FEATURES)


@pytest.mark.parametrize("label_dtype", ["int8", "uint8", "int64", "uint64"])
@pytest.mark.parametrize("target_dtype", ["float16", "float32", "float64"])
@each_kind
def test_dtype_and_shape_are_kept(kind, targets, label_dtype, target_dtype):
    given = targets.astype(label_dtype if targets.ndim == 1 else target_dtype)
    result = corrupt(kind, given, 0.5, 0, FEATURES)
    assert isinstance(result, Corrupted)
    assert (result.targets.dtype, result.targets.shape) == (given.dtype, given.shape)
    assert (result.is_corrupted.dtype, result.is_corrupted.shape) == (bool, (200,))
    if targets.ndim == 1:
        column = corrupt(kind, given[:, None], 0.5, 0, FEATURES).targets
        np.testing.assert_array_equal(column, result.targets[:, None], strict=True)


def test_symmetric_reaches_every_other_class_equally():
    result = corrupt("symmetric", np.full(9000, 3), 0.5, 0, num_classes=10)
    counts = np.bincount(result.targets[result.is_corrupted], minlength=10)
    assert counts[3] == 0
    # 4500 over nine classes: 500 each, std sqrt(4500 / 9 * 8 / 9) = 21. Five stds.
    assert np.abs(np.delete(counts, 3) - 500).max() < 105


def test_pairflip_of_labels_is_the_next_class_modulo_c():
    result = corrupt("pairflip", [0, 1, 2, 3] * 9, 0.9, 0)
    hit = result.is_corrupted
    np.testing.assert_array_equal(result.targets[hit], np.array([1, 2, 3, 0] * 9)[hit])
    assert corrupt("pairflip", [3, 3, 3], 0.4, 0, num_classes=5).targets.max() == 4
    assert corrupt("pairflip", [1, 1, 1], 0.4, 0).targets.min() == 0  # C = 1 + 1


def test_instance_draws_the_class_from_a_linear_function_of_the_features():
    """Equal features take the wrong classes in proportion to softmax(W^T x), without the class itself."""
    x = np.repeat([[-1.0, 0.5], [1.0, 0.5], [1.0, -2.0]], 6000, axis=0)
    labels = np.zeros(len(x), int)
    found = corrupt("instance", labels, 0.99, 0, x, num_classes=4)
    drawn = [
        np.bincount(found.targets[rows], minlength=4)[1:] / 5940 for rows in np.split(np.arange(18000), 3)
    ]
    rng = np.random.default_rng(0)
    standardized = (x - x.mean(axis=0)) / x.std(axis=0)
    expected = np.exp(standardized[::6000] @ rng.standard_normal((2, 4)) / np.sqrt(2))[:, 1:]
    expected /= expected.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(drawn, expected, atol=0.035)
    assert np.abs(expected[0] - expected[2]).max() > 0.05  # it does follow x


def test_instance_ignores_a_constant_feature_of_any_size():
    labels, x = np.arange(900) % 3, np.random.default_rng(0).normal(size=(900, 1))
    one, other = (
        corrupt("instance", labels, 0.4, 0, np.hstack([x, np.full((900, 1), c)])) for c in (0, 1e8 / 3)
    )
    np.testing.assert_array_equal(one.targets, other.targets)


def test_instance_of_an_outlier_still_takes_another_class():
    x = np.append(np.zeros((5000, 1)), [[1e6]], axis=0)
    found = corrupt("instance", np.arange(5001) % 3, 0.999, 0, x)
    assert (found.targets != np.arange(5001) % 3).sum() == 4995


def test_confusion_follows_a_classifier():
    rng = np.random.default_rng(0)
    labels = np.arange(3000) % 3
    # Of its own class an example has 0.9 or 0.1; of the others one has three times the other.
    own = np.where(np.arange(3000) % 2, 0.9, 0.1)
    p = np.empty((3000, 3))
    for shift, share in ((0, own), (1, (1 - own) * 0.75), (2, (1 - own) * 0.25)):
        p[np.arange(3000), (labels + shift) % 3] = share
    found = corrupt("confusion", labels, 0.2, rng, p)
    wrong = found.is_corrupted
    # 600 without replacement of 1500 of weight 0.9 and 1500 of 0.1: about 1 in 8 or fewer is sure.
    assert 20 < np.sum(wrong & (own > 0.5)) < 110
    shifts = (found.targets - labels)[wrong] % 3
    assert abs(np.mean(shifts == 1) - 0.75) < 0.08
    with pytest.raises(ValueError, match="exact=False is not for 'confusion'"):
        corrupt("confusion", labels, 0.2, 0, p, exact=False)


def test_linadv_is_one_standard_normal_matrix_for_all_rows():
    features = np.random.default_rng(0).normal(size=(5000, 2, 10))
    matrices = []
    for seed in (0, 1):
        result = corrupt("linadv", np.zeros((5000, 40)), 0.5, seed, features)
        flat, wrong = features.reshape(5000, 20)[result.is_corrupted], result.targets[result[1]]
        matrices.append(np.linalg.lstsq(flat, wrong, rcond=None)[0])
        np.testing.assert_allclose(flat @ matrices[-1], wrong, atol=1e-9)
    # 800 standard normal entries: std of the mean 0.035, of the std 0.025.
    assert abs(matrices[0].mean()) < 0.18
    assert abs(matrices[0].std() - 1) < 0.13
    assert not np.isclose(*matrices).all(axis=1).any()


def test_signflip_is_the_negative():
    result = corrupt("signflip", TARGETS, 0.3, 0)
    expected = np.where(result.is_corrupted[:, None], -TARGETS, TARGETS)
    np.testing.assert_array_equal(result.targets, expected)


def test_uninoise_fills_the_range_of_each_coordinate():
    targets = np.random.default_rng(0).normal(size=(20000, 2)) * [1, 100] + [5, 0]
    result = corrupt("uninoise", targets, 0.5, 0)
    drawn = result.targets[result.is_corrupted]
    low, high = targets.min(axis=0), targets.max(axis=0)
    fraction = (drawn - low) / (high - low)
    assert 0 <= fraction.min() <= fraction.max() <= 1
    # Uniform on [0, 1]: mean 1/2, quartiles 1/4 and 3/4; 10,000 draws, std of each under 0.005.
    np.testing.assert_allclose(fraction.mean(axis=0), 0.5, atol=0.02)
    np.testing.assert_allclose(np.quantile(fraction, 0.25, axis=0), 0.25, atol=0.025)
    assert abs(np.corrcoef(fraction.T)[0, 1]) < 0.05  # each coordinate on its own


@pytest.mark.parametrize(
    ("width", "pairs", "expected"),
    [
        (2, None, [1, 0]),
        (5, None, [1, 0, 3, 2, 4]),
        (10, None, [2, 3, 0, 1, 4, 5, 8, 9, 6, 7]),  # eyes, eyes, nose, mouth, mouth
        (4, [(0, 3)], [3, 1, 2, 0]),
        (10, ((0, 6), (1, 7)), [6, 7, 2, 3, 4, 5, 0, 1, 8, 9]),
    ],
)
def test_pairflip_of_targets_swaps_coordinates(width, pairs, expected):
    targets = np.arange(3 * width, dtype=float).reshape(3, width)
    result = corrupt("pairflip", targets, 0.99, 0, pairs=pairs)
    hit = result.is_corrupted
    assert hit.sum() == 2
    np.testing.assert_array_equal(result.targets[hit], targets[:, expected][hit])


def test_mixture_takes_each_of_the_four_kinds_equally_often():
    n = 8000
    rng = np.random.default_rng(0)
    features, targets = rng.normal(size=(n, 6)), rng.normal(size=(n, 8))
    result = corrupt("mixture", targets, 0.5, 0, features)
    hit = result.is_corrupted
    got, given, x = result.targets[hit], targets[hit], features[hit]
    sign = (got == -given).all(axis=1)
    pair = (got == given[:, [1, 0, 3, 2, 5, 4, 7, 6]]).all(axis=1)
    uniform_or_linear = ~sign & ~pair
    # Rows outside the range of the targets can only be linear: they give W, W gives the others.
    outside = uniform_or_linear & (np.abs(got) > np.abs(targets).max(axis=0)).any(axis=1)
    matrix = np.linalg.lstsq(x[outside], got[outside], rcond=None)[0]
    linear = uniform_or_linear & np.isclose(x @ matrix, got).all(axis=1)
    counts = [linear.sum(), sign.sum(), (uniform_or_linear & ~linear).sum(), pair.sum()]
    # 4,000 over four kinds: 1,000 each, std 27.
    assert np.abs(np.array(counts) - 1000).max() < 140, counts


@pytest.mark.parametrize("epsilon", [-0.1, 1, 1.0, float("nan"), float("inf"), True, "0.3", None])
def test_error_epsilon(epsilon):
    message = re.escape(f"epsilon={epsilon!r} must be a number in [0, 1)")
    with pytest.raises(ValueError, match=message):
        corrupt("symmetric", LABELS, epsilon, 0)


@pytest.mark.parametrize("rng", [None, True, 1.0, "0", np.random.RandomState(0), -1])
def test_error_rng(rng):
    with pytest.raises((TypeError, ValueError), match=r"Generator or an int seed|non-negative"):
        corrupt("symmetric", LABELS, 0.3, rng)


@pytest.mark.parametrize(
    ("kind", "targets", "options", "message"),
    [
        ("pairflip", np.zeros(3), {}, r"shape \(3,\); .* Write targets\[:, None\]"),
        ("pairflip", np.zeros((3, 0)), {}, r"must be \[n, q\], q >= 1"),
        ("pairflip", np.zeros((3, 2), int), {}, r"\[n\] or \[n, 1\].*argmax\(axis=1\)"),
        ("pairflip", ["cat", "dog"], {}, "needed are integers"),
        ("pairflip", [[1.0, 2.0], [1.0, np.nan]], {}, "must be finite, but row 1 is not"),
        ("pairflip", [0, 1, -2, 3], {}, r"targets\[2\] is -2, .* in \[0, 4\)"),
        ("pairflip", [0, 0, 0], {}, "every label is 0, at least 2 classes are needed"),
        ("pairflip", [0, 4], {"num_classes": 4}, r"targets\[1\] is 4, .* \[0, 4\)"),
        ("pairflip", [0, 1], {"num_classes": 1}, "num_classes=1 must be an integer >= 2"),
        ("pairflip", np.uint8([0, 1]), {"num_classes": 300}, "uint8 cannot hold class 299"),
        ("pairflip", LABELS, {"pairs": [(0, 1)]}, "pairs=.* drop it for labels"),
        ("pairflip", TARGETS, {"num_classes": 3}, "num_classes=3.* are for labels"),
        ("pairflip", TARGETS, {"exact": False}, "exact=False are for labels"),
        ("pairflip", TARGETS, {"pairs": [(0, 4)]}, r"coordinates in \[0, 4\), each once"),
        ("pairflip", TARGETS, {"pairs": [(0, 1), (1, 2)]}, "each once"),
        ("pairflip", TARGETS, {"pairs": [(0.0, 1.0)]}, "must be pairs of integers"),
        ("pairflip", TARGETS[:, :1], {}, "q = 1 leaves nothing to swap"),
        ("linadv", TARGETS, {}, "'linadv' needs features: write features=x"),
        ("instance", LABELS, {}, "'instance' needs features: write features=x"),
        ("instance", LABELS, {"features": FEATURES * np.nan}, "must be finite, but row 0"),
        ("instance", LABELS, {"features": FEATURES[:, :0]}, "needs at least one feature"),
        ("confusion", LABELS, {"features": FEATURES[:, :4]}, r"features \[n, 10\].* have 4 columns"),
        ("confusion", LABELS, {"features": FEATURES - 0.5}, "probabilities, not logits"),
        ("confusion", LABELS, {"features": np.eye(10)[LABELS]}, r"features\[0\] .* or none besides"),
        ("linadv", TARGETS, {"features": FEATURES[:5]}, r"\(5, 10\), but there are 200 targets"),
        ("linadv", TARGETS, {"features": FEATURES * np.nan}, "Give finite features"),
        ("symetric", LABELS, {}, "'symetric' is unknown; for labels use one of .*'symmetric'"),
        ("noise", TARGETS, {}, r"unknown; for targets \[n, q\] use one of .*'mixture'"),
        ("linadv", LABELS, {}, r"is for targets \[n, q\], floats; for labels use one of"),
        ("symmetric", TARGETS, {}, r"is for labels \[n\], integers; for targets \[n, q\]"),
    ],
)
def test_error_arguments(kind, targets, options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        corrupt(kind, targets, 0.3, 0, **options)
