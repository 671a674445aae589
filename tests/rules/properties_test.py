"""Rules and corruptions on inputs that hypothesis chooses: ties, NaN, 1e30, 1e-30, no example at all.

Each property is checked against a plain loop (`oracle.py`) or against the same call on changed inputs. Shapes
are few, since each is compiled once; the values are what varies. `derandomize`: the same cases in every run.
"""

import fractions
import functools
import math

import keras
import numpy as np
import oracle
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

import prl_keras as prl
from prl_keras.corruption import LABEL_KINDS, TARGET_KINDS
from prl_keras.rules.trim import kept_count

# However busy the machine is, the same cases and no limit of time.
few = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
many = settings(few, max_examples=300)

MODES = {
    "eager": lambda function: function,
    "graph": tf.function,
    "xla": functools.partial(tf.function, jit_compile=True),
}
FLOAT_MAX = np.finfo(np.float32).max


class Dial(keras.optimizers.schedules.LearningRateSchedule):
    """The epsilon is the step: one graph for all of them."""

    def __call__(self, step):
        return step


RULES = {"trim": prl.Trim(Dial()), "keep_lowest": prl.KeepLowest(3), "clip_norm": prl.ClipNorm(2.0)}

sizes = st.sampled_from([0, 1, 2, 9])
epsilons = st.floats(0, 1, exclude_max=True, allow_subnormal=False)
special = st.sampled_from([0.0, -0.0, 1.0, 1e30, -1e30, 1e-30, 2e-30, np.nan, np.inf, -np.inf])
values = special | st.floats(-100, 100, width=32, allow_subnormal=False)


@functools.cache
def compiled(rule, mode):
    return MODES[mode](lambda scores, ranked, epsilon: RULES[rule](scores, ranked, epsilon))


def weights_of(rule, scores, ranked=None, epsilon=0.3, mode="graph"):
    scores = np.asarray(scores, np.float32)
    ranked = np.ones(len(scores), bool) if ranked is None else np.asarray(ranked, bool)
    arguments = tf.constant(scores), tf.constant(ranked), tf.constant(epsilon, tf.float64)
    return compiled(rule, mode)(*arguments).numpy()


@st.composite
def batches(draw, of=values, unique=False):
    """-> (scores, ranked), float32 and bool `[n]`; `unique` leaves no ties."""
    n = draw(sizes)
    scores = draw(st.lists(of, min_size=n, max_size=n, unique=unique))
    return np.array(scores, np.float32), np.array(draw(st.lists(st.booleans(), min_size=n, max_size=n)), bool)


def loop_weights(rule, scores, ranked, epsilon):
    """What the docstring of each rule says, one example after the other."""
    if rule == "clip_norm":
        factors = [oracle.clip_factor(float(s), 2.0) if math.isfinite(s) else 0.0 for s in scores]
        return np.array(factors) * ranked
    n = int(ranked.sum())
    count = 3 if rule == "keep_lowest" else int(kept_count(n, float(round(epsilon, 7))))
    worst_first = np.where(np.isfinite(scores), scores, FLOAT_MAX)
    return oracle.keep(oracle.lowest(worst_first, ranked, count), ranked)


class TestKeptCount:
    @pytest.mark.fault(3)
    @many
    @given(st.integers(0, 100_000), epsilons)
    @example(0, 0.5)  # at least one is kept
    def test_is_the_floor_of_the_formula_in_exact_arithmetic(self, n, epsilon):
        kept = int(kept_count(n, epsilon))
        exact = (1 - fractions.Fraction(epsilon)) * n + fractions.Fraction(1, 10**6)
        rounding = fractions.Fraction(1, 10**10)  # of 100,000 in float64
        assert kept == 1 or kept <= exact + rounding
        assert kept >= 1 and exact - rounding < kept + 1

    @few
    @given(st.integers(0, 1000), epsilons)
    def test_does_not_depend_on_how_epsilon_is_given(self, n, epsilon):
        epsilon = round(epsilon, 6)
        assume(epsilon < 1)
        given_as = [tf.constant(epsilon, tf.float64), tf.constant(epsilon, tf.float32), np.float64(epsilon)]
        assert {int(kept_count(n, e)) for e in given_as} == {int(kept_count(tf.constant(n), epsilon))}

    @few
    @given(st.integers(0, 1000), epsilons, epsilons)
    def test_never_rises_with_epsilon(self, n, one, other):
        assert int(kept_count(n, max(one, other))) <= int(kept_count(n, min(one, other)))


@pytest.mark.parametrize("rule", RULES)
class TestRules:
    @pytest.mark.daily("eager-*", "graph-trim")
    @pytest.mark.parametrize("mode", MODES)
    def test_equal_the_loop_over_examples(self, rule, mode):
        @few
        @given(batches(), epsilons)
        @example((np.float32([0, 0, 0, 0, 0, 0, 0, 0, -0.0]), np.ones(9, bool)), 0.5)  # ties, all of them
        @example((np.float32([0, 1]), np.zeros(2, bool)), 0.5)  # padding alone
        @example((np.float32([]), np.ones(0, bool)), 0.5)
        def check(batch, epsilon):
            scores, ranked = batch
            expected = loop_weights(rule, scores, ranked, epsilon)
            got = weights_of(rule, scores, ranked, epsilon, mode)
            assert got.dtype == np.float32 and got.shape == scores.shape
            np.testing.assert_allclose(got, expected, rtol=1e-6)

        check()

    @few
    @given(
        batches(unique=True, of=st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False)), st.data()
    )
    def test_go_with_the_examples_when_they_trade_places(self, rule, batch, data):
        scores, ranked = batch
        order = np.array(data.draw(st.permutations(range(len(scores)))), int)
        expected = weights_of(rule, scores, ranked)[order]
        np.testing.assert_array_equal(weights_of(rule, scores[order], ranked[order]), expected)

    @few
    @given(batches(), st.data(), epsilons)
    def test_do_not_see_what_padding_holds(self, rule, batch, data, epsilon):
        scores, ranked = batch
        other = np.array(data.draw(st.lists(values, min_size=len(scores), max_size=len(scores))), np.float32)
        expected = weights_of(rule, scores, ranked, epsilon)
        changed = np.where(ranked, scores, other)
        np.testing.assert_array_equal(weights_of(rule, changed, ranked, epsilon), expected)
        without = RULES[rule](scores[ranked], step=tf.constant(epsilon, tf.float64))
        np.testing.assert_array_equal(without, expected[ranked])
        assert not expected[~ranked].any()

    @few
    @given(batches(), st.sampled_from(["float16", "bfloat16", "float64"]))
    def test_give_float32_weights_for_scores_of_any_precision(self, rule, batch, dtype):
        scores, ranked = batch
        given_scores = tf.cast(scores, dtype)
        got = RULES[rule](given_scores, ranked, tf.constant(0.3, tf.float64))
        assert got.dtype == tf.float32
        rounded = tf.cast(given_scores, tf.float32).numpy()
        np.testing.assert_array_equal(got, weights_of(rule, rounded, ranked))


class TestTrimAndKeepLowest:
    @pytest.mark.parametrize("rule", ["trim", "keep_lowest"])
    @few
    @given(batches(), epsilons)
    def test_share_the_number_of_ranked_examples_among_the_kept(self, rule, batch, epsilon):
        weights = weights_of(rule, *batch, epsilon)
        np.testing.assert_allclose(weights.sum(), batch[1].sum(), rtol=1e-6)
        assert len(set(weights[weights > 0])) <= 1

    @pytest.mark.parametrize("rule", ["trim", "keep_lowest"])
    @few
    @given(batches(st.floats(0, 2.0**100, width=32, allow_subnormal=False)), st.integers(-8, 8))
    def test_see_the_order_of_the_scores_only(self, rule, batch, exponent):
        scores, ranked = batch
        assume(not np.any((scores > 0) & (scores < 1e-30)))  # below, their order is lost in rounding to 0
        expected = weights_of(rule, scores, ranked)
        np.testing.assert_array_equal(weights_of(rule, np.ldexp(scores, exponent), ranked), expected)
        np.testing.assert_array_equal(
            weights_of(rule, -1 / (1 + scores.argsort(kind="stable").argsort()), ranked), expected
        )

    @few
    @given(batches(), epsilons, epsilons)
    def test_what_a_larger_epsilon_keeps_a_smaller_one_keeps_too(self, batch, one, other):
        small, large = (
            weights_of("trim", *batch, min(one, other)),
            weights_of("trim", *batch, max(one, other)),
        )
        assert np.all(small[large > 0] > 0)


@few
@given(batches(st.floats(0, 2.0**100, width=32, allow_subnormal=False)))
def test_clip_norm_bounds_every_weighted_score(batch):
    weights = weights_of("clip_norm", *batch)
    assert np.all((weights >= 0) & (weights <= 1) & (weights * batch[0] <= 2.0 * (1 + 1e-6)))


# The corruptions.


@st.composite
def corruptions(draw):
    """-> (kind, targets, features) with ties, zeros, tiny and huge values."""
    n, q = draw(st.integers(0, 12)), draw(st.sampled_from([2, 3, 10]))
    if draw(st.booleans()):
        labels = draw(st.lists(st.integers(0, 3), min_size=n, max_size=n))
        likely = draw(st.lists(st.floats(1e-3, 1), min_size=n * 4, max_size=n * 4))
        return (
            draw(st.sampled_from(LABEL_KINDS)),
            np.array(labels, draw(st.sampled_from(["int8", "int64"]))),
            np.array(likely).reshape(n, 4),
        )
    one = st.sampled_from([0.0, -0.0, 1.0, 1e30, -1e30, 1e-30]) | st.floats(-9, 9, width=32)
    targets = np.array(draw(st.lists(one, min_size=n * q, max_size=n * q)), np.float32).reshape(n, q)
    features = np.array(draw(st.lists(one, min_size=n * 2, max_size=n * 2)), np.float32).reshape(n, 2)
    return draw(st.sampled_from(TARGET_KINDS)), targets, features


def corrupted_or_none(kind, targets, features, epsilon, seed):
    """None where too few targets can change, as the docstring has it."""
    options = {"num_classes": 4} if targets.ndim == 1 else {}
    try:
        return prl.corrupt(kind, targets, epsilon, seed, features, **options)
    except ValueError as error:
        assert "of them can change" in str(error)
        return None


class TestCorruptions:
    @many
    @given(corruptions(), epsilons, st.integers(0, 2**32))
    def test_change_exactly_the_marked_ones_and_to_what_the_kind_says(self, case, epsilon, seed):
        kind, targets, features = case
        result = corrupted_or_none(kind, targets, features, epsilon, seed)
        if result is None:
            assert kind in TARGET_KINDS
            return
        differs = (result.targets != targets).reshape(len(targets), -1).any(axis=1) if len(targets) else []
        assert result.is_corrupted.tolist() == list(differs)
        assert sum(differs) == math.floor(epsilon * len(targets) + 1e-6)
        assert result.targets.dtype == targets.dtype and np.isfinite(result.targets).all()
        new, old = result.targets[result.is_corrupted], targets[result.is_corrupted]
        if targets.ndim == 1:
            assert np.all((new >= 0) & (new < 4))
        if kind == "pairflip":
            np.testing.assert_array_equal(new if targets.ndim == 1 else np.sort(new), (old + 1) % 4
                                          if targets.ndim == 1 else np.sort(old))  # fmt: skip
        if kind == "signflip":
            np.testing.assert_array_equal(new, -old)
        if kind == "uninoise" and len(new):
            assert np.all((new >= targets.min(axis=0)) & (new <= targets.max(axis=0)))

    @many
    @given(corruptions(), epsilons, epsilons, st.integers(0, 2**32))
    def test_are_nested_in_epsilon(self, case, one, other, seed):
        small, large = (corrupted_or_none(*case, e, seed) for e in (min(one, other), max(one, other)))
        if large is None:
            return
        assert large.is_corrupted[small.is_corrupted].all()
        np.testing.assert_array_equal(large.targets[small.is_corrupted], small.targets[small.is_corrupted])
