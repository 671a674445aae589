"""Scores against float64 loops, on predictions that hypothesis chooses: 1e30, 1e-30, NaN, half precision."""

import functools

import keras
import numpy as np
import oracle
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from keras import losses
from scipy.special import expit

import prl_keras as prl

# However busy the machine is, the same cases and no limit of time.
few = settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])

MODES = {
    "eager": lambda function: function,
    "graph": tf.function,
    "xla": functools.partial(tf.function, jit_compile=True),
}
FLOAT_MAX = np.finfo(np.float32).max

Q, ROWS = 3, 5
LOSSES = {
    "sparse_softmax_cross_entropy": losses.SparseCategoricalCrossentropy(from_logits=True),
    "softmax_cross_entropy": losses.CategoricalCrossentropy(from_logits=True),
    "sigmoid_cross_entropy": losses.BinaryCrossentropy(from_logits=True),
    "mse": losses.MeanSquaredError(),
    "mae": losses.MeanAbsoluteError(),
    "huber": losses.Huber(),
}
each_loss = pytest.mark.parametrize("name", LOSSES)
SCORES = {"loss": prl.scores.per_example_loss, "loss_layer_gradient": prl.scores.loss_layer_gradient_norm}
each_score = pytest.mark.parametrize("score", SCORES)


@functools.cache
def scorer(score, name, mode):
    return MODES[mode](lambda y, z: SCORES[score](y, z, LOSSES[name]))


@st.composite
def predictions(draw, name, largest=1e30):
    """-> (targets, float32 logits or predictions `[5, 3]`)."""
    one = st.sampled_from([0.0, largest, -largest, 1e-30, -1e-30]) | st.floats(
        -30, 30, width=32, allow_subnormal=False
    )
    z = np.array(draw(st.lists(one, min_size=ROWS * Q, max_size=ROWS * Q)), np.float32).reshape(ROWS, Q)
    labels = np.array(draw(st.lists(st.integers(0, Q - 1), min_size=ROWS, max_size=ROWS)))
    if name == "sparse_softmax_cross_entropy":
        return labels, z
    one_hot = np.eye(Q, dtype=np.float32)[labels]
    return (one_hot if "cross_entropy" in name else draw(st.just(z[::-1].copy()) | st.just(one_hot))), z


def loop_scores(score, name, y, z):
    """In float64, one example after the other."""
    z = np.asarray(z, np.float64)
    with np.errstate(over="ignore"):
        if score == "loss":
            return np.array([oracle.example_loss(name, tf.constant(a), b).numpy() for a, b in zip(z, y)])
        return np.array([np.linalg.norm(oracle.loss_layer_gradient(name, a, b)) for a, b in zip(z, y)])


def assert_scores(got, expected, name):
    got = got.numpy()
    assert got.dtype == np.float32 and np.all(got >= 0)
    fits = expected < FLOAT_MAX
    # A cross-entropy takes 1 - p, known to float32 rounding; a difference is known to its own.
    np.testing.assert_allclose(
        got[fits], expected[fits], rtol=2e-5, atol=2e-6 if "entropy" in name else 1e-37
    )
    assert np.all(got[~fits] == np.inf)


@pytest.mark.daily("*-eager-*", "mse-xla-loss_layer_gradient", "sparse_softmax_cross_entropy-graph-*")
@each_score
@pytest.mark.parametrize(
    ("name", "mode"),
    [(name, mode) for name in LOSSES for mode in ("eager", "graph")]
    + [(name, "xla") for name in ("sparse_softmax_cross_entropy", "mse")],  # one of each form
)
def test_scores_equal_the_loop_in_float64_and_are_finite_and_not_negative(score, name, mode):
    @few
    @given(predictions(name))
    def check(batch):
        y, z = batch
        got = scorer(score, name, mode)(tf.constant(y), tf.constant(z))
        assert_scores(got, loop_scores(score, name, y, z), name)

    check()


@each_score
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", ["sparse_softmax_cross_entropy", "sigmoid_cross_entropy", "mse"])
def test_scores_of_half_precision_are_the_float32_ones_of_the_rounded_predictions(score, dtype, name):
    @settings(few, max_examples=15)
    @given(predictions(name, largest=6e4))
    def check(batch):
        y, z = batch
        half = tf.cast(z, dtype)
        got = SCORES[score](y, half, LOSSES[name])
        assert_scores(got, loop_scores(score, name, y, tf.cast(half, tf.float64)), name)

    check()


@each_score
@each_loss
def test_a_score_is_of_its_own_example_alone_and_that_of_nan_is_not_finite(score, name):
    @settings(few, max_examples=15)
    @given(predictions(name), st.integers(0, ROWS - 1), st.sampled_from([np.nan, 1.0, 1e30]))
    def check(batch, row, value):
        y, z = batch
        function = scorer(score, name, "graph")
        before = function(tf.constant(y), tf.constant(z)).numpy()
        z[row] = value
        after = function(tf.constant(y), tf.constant(z)).numpy()
        np.testing.assert_array_equal(np.delete(after, row), np.delete(before, row))
        assert np.isnan(value) <= ~np.isfinite(after[row])

    check()


@pytest.mark.parametrize("head", ["softmax", "sigmoid"])
def test_behind_a_head_a_regression_loss_is_scored_at_the_logits(head):
    activation = keras.activations.get(head)
    score = tf.function(lambda y, z: SCORES["loss_layer_gradient"](y, activation(z), LOSSES["mse"]))

    @settings(few, max_examples=30)
    @given(predictions("softmax_cross_entropy"))
    def check(batch):
        y, z = batch
        expected = []
        for target, logits in zip(y, np.float64(z)):
            softmax = oracle.softmax(logits)
            # Where both heads give the same probabilities nobody can tell which it was.
            assume(np.abs(softmax - expit(logits)).max() > 1e-6 or softmax.max() == 1)
            p = softmax if head == "softmax" else expit(logits)
            jacobian = np.diag(p) - np.outer(p, p) if head == "softmax" else np.diag(p * (1 - p))
            expected.append(np.linalg.norm(jacobian @ (2 * (p - target) / Q)))
        np.testing.assert_allclose(score(y, tf.constant(z)), expected, rtol=1e-4, atol=1e-6)

    check()
