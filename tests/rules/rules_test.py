"""The rules: one test per promise and per row of the tables in their docstrings."""

import dataclasses
import fractions
import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

import prl_keras as prl
from prl_keras.rules.trim import kept_count

SCORES = np.array([0.3, 0.1, 0.5, 0.2, 0.4], np.float32)
RULES = [prl.Trim(0.4), prl.KeepLowest(2), prl.ClipNorm(0.25)]


def exact_kept_count(n, percent):
    """The promised k in exact arithmetic, for an epsilon of whole percents."""
    return max(1, math.floor((1 - fractions.Fraction(percent, 100)) * n))


class TestKeptCount:
    @pytest.mark.daily("?5", "?0", "99")
    @pytest.mark.fault(3)
    @pytest.mark.parametrize("percent", range(0, 100))
    def test_is_exact_for_every_whole_percent(self, percent):
        sizes = [*range(1, 130), 500, 512, 1000, 1024, 9999, 100_000]
        counts = [int(kept_count(n, percent / 100)) for n in sizes[:: 1 + percent % 3]]
        assert counts == [exact_kept_count(n, percent) for n in sizes[:: 1 + percent % 3]]

    def test_is_exact_for_an_epsilon_that_went_through_float32(self):
        for percent in range(100):
            epsilon = tf.constant(percent / 100, tf.float32)
            assert int(kept_count(1000, epsilon)) == exact_kept_count(1000, percent)

    def test_clips_an_epsilon_outside_its_range(self):
        """As a schedule may give."""
        assert int(kept_count(10, tf.constant(-0.5))) == int(kept_count(10, -0.5)) == 10
        assert int(kept_count(10, tf.constant(1.5))) == 1


class TestTrim:
    def test_keeps_the_k_lowest_with_weight_n_over_k(self):
        np.testing.assert_allclose(prl.Trim(0.4)(SCORES), [5 / 3, 5 / 3, 0, 5 / 3, 0], rtol=1e-6)

    @pytest.mark.fault(14)
    @settings(max_examples=200, deadline=None)
    @given(
        st.lists(
            st.floats(-(2.0**127), 2.0**127, width=32, allow_subnormal=False)
            | st.sampled_from([np.inf, -np.inf, np.nan]),
            max_size=40,
        ),
        st.integers(0, 99),
        st.integers(0, 2**32 - 1),
    )
    def test_keeps_exactly_k_for_any_scores(self, scores, percent, mask_bits):
        """Ties, NaN, infinities and padding included; the kept never score above the dropped."""
        scores = np.array(scores, np.float32)
        ranked = np.array([(mask_bits >> (i % 32)) & 1 for i in range(len(scores))], bool)
        weights = prl.Trim(percent / 100)(scores, ranked).numpy()
        n = int(ranked.sum())
        k = exact_kept_count(n, percent) if n else 0
        assert np.count_nonzero(weights) == k
        np.testing.assert_allclose(weights[weights > 0], n / max(k, 1), rtol=1e-6)
        assert not weights[~ranked].any()
        bad = np.where(np.isfinite(scores), scores, np.inf)
        kept, dropped = bad[weights > 0], bad[(weights == 0) & ranked]
        if kept.size and dropped.size:
            assert kept.max() <= dropped.min()

    def test_takes_scores_too_small_for_float32_to_be_zero(self):
        """Eager mode, XLA and accelerators differ in whether they keep subnormal numbers."""
        weights = prl.Trim(0.5)(np.float32([1e-40, 0.0, -0.0, 1e-45])).numpy()
        assert weights.tolist() == [2, 2, 0, 0]

    @pytest.mark.fault(14)
    def test_breaks_ties_deterministically_by_position(self):
        weights = prl.Trim(0.5)(np.array([1.0, 0.0, 1.0, 1.0], np.float32)).numpy()
        assert (weights > 0).tolist() == [True, True, False, False]

    def test_ranks_not_a_number_worst_but_above_padding(self):
        scores = np.array([np.nan, 9.0, np.inf, 5.0], np.float32)
        weights = prl.Trim(0.4)(scores, np.array([True, False, True, True])).numpy()
        # Three are ranked, one is kept: floor(0.6 * 3).
        assert weights.tolist() == [0, 0, 0, 3]
        assert prl.Trim(0)(scores).numpy().tolist() == [1, 1, 1, 1]

    def test_follows_a_schedule_of_the_step(self):
        rule = prl.Trim(prl.linear_ramp(0.4, steps=10))
        kept = [np.count_nonzero(rule(np.arange(1000.0), step=step)) for step in (0, 1, 5, 10, 99)]
        assert kept == [1000, 960, 800, 600, 600]
        assert np.count_nonzero(prl.Trim(prl.linear_ramp(0.4, steps=1))(np.arange(10.0))) == 10  # step 0

    def test_takes_an_epsilon_of_numpy_by_its_shortest_decimal(self):
        assert prl.Trim(np.float32(0.3)) == prl.Trim(np.float64(0.3)) == prl.Trim(0.3)
        assert type(prl.Trim(np.float32(0.3)).epsilon) is float

    def test_needs_no_dynamic_shapes(self):
        """XLA compiles it with batch size and epsilon unknown until the call."""
        rule = prl.Trim(prl.linear_ramp(0.4, steps=10))
        compiled = tf.function(lambda s, step: rule(s, step=step), jit_compile=True, reduce_retracing=True)
        for n in (5, 7, 1):
            scores = np.random.default_rng(n).random(n).astype(np.float32)
            np.testing.assert_allclose(compiled(scores, 10), rule(scores, step=10), rtol=1e-6)

    @pytest.mark.parametrize("epsilon", [-0.1, 1, 1.5, math.nan, math.inf, None, "0.3", True, [0.3]])
    def test_refuses_an_epsilon_outside_its_range(self, epsilon):
        with pytest.raises(ValueError, match=r"epsilon=.*\[0, 1\)"):
            prl.Trim(epsilon)


class TestKeepLowest:
    def test_keeps_count_with_weight_n_over_count(self):
        assert prl.KeepLowest(1)(SCORES).numpy().tolist() == [0, 5, 0, 0, 0]
        np.testing.assert_allclose(prl.KeepLowest(2)(SCORES), [0, 2.5, 0, 2.5, 0])

    def test_keeps_one_unless_told_otherwise(self):
        assert prl.KeepLowest() == prl.KeepLowest(1)

    def test_keeps_all_of_fewer(self):
        assert prl.KeepLowest(9)(SCORES).numpy().tolist() == [1] * 5

    @pytest.mark.parametrize("count", [0, -1, 1.5, None, True])
    def test_refuses_a_count_below_one(self, count):
        with pytest.raises(ValueError, match="count="):
            prl.KeepLowest(count)


class TestClipNorm:
    def test_weighs_min_of_one_and_max_norm_over_score(self):
        scores = np.array([0.0, 0.5, 1.0, 4.0, np.inf, np.nan, 1e-38], np.float32)
        np.testing.assert_allclose(prl.ClipNorm(1.0)(scores), [1, 1, 1, 0.25, 0, 0, 1])

    def test_takes_any_positive_norm(self):
        np.testing.assert_allclose(prl.ClipNorm(0.25)(np.float32([0.1, 0.5, 1.0])), [1, 0.5, 0.25])
        # However large, it lets no score through that is not a number.
        assert prl.ClipNorm(1e30)(np.float32([1.0, np.inf, np.nan])).numpy().tolist() == [1, 0, 0]

    def test_of_infinity_changes_nothing(self):
        scores = np.array([0.0, 1e30, np.inf], np.float32)
        assert prl.ClipNorm(math.inf)(scores).numpy().tolist() == [1, 1, 1]

    @pytest.mark.parametrize("max_norm", [0, -1, math.nan, None, "1"])
    def test_refuses_what_is_not_positive(self, max_norm):
        with pytest.raises(ValueError, match="max_norm="):
            prl.ClipNorm(max_norm)


class TestEveryRule:
    @pytest.mark.parametrize("rule", RULES)
    def test_carries_no_gradient(self, rule):
        scores = tf.constant(SCORES)
        with tf.GradientTape() as tape:
            tape.watch(scores)
            weights = rule(scores)
        assert tape.gradient(weights, scores) is None

    @pytest.mark.parametrize("rule", RULES)
    def test_is_a_value_that_never_changes(self, rule):
        again = type(rule)(*vars(rule).values())
        assert again == rule and hash(again) == hash(rule)
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(rule, *next(iter(vars(rule).items())))

    @pytest.mark.parametrize("rule", [*RULES, prl.Trim(prl.linear_ramp(0.3, 7)), prl.ClipNorm(math.inf)])
    def test_survives_serialization(self, rule):
        again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(rule))
        assert type(again) is type(rule)
        np.testing.assert_array_equal(again(SCORES, step=3), rule(SCORES, step=3))


class TestLinearRamp:
    @pytest.mark.fault(1)
    def test_rises_linearly_and_stays(self):
        ramp = prl.linear_ramp(0.4, steps=8)
        np.testing.assert_allclose([ramp(s) for s in (0, 2, 8, 80)], [0, 0.1, 0.4, 0.4], rtol=1e-6)

    def test_refuses_bad_arguments(self):
        with pytest.raises(ValueError, match="steps=0"):
            prl.linear_ramp(0.3, 0)
        with pytest.raises(ValueError, match="epsilon=1"):
            prl.linear_ramp(1, 5)
