"""The distance to the geometric median, and the step on it, against Weiszfeld's algorithm in float64."""

import numpy as np
import pytest
import scipy.optimize
import tensorflow as tf
from loss_layer_step import NAME, SPARSE, assert_step_is_that_of_a_loop, gradients_by_hand, modes

import prl_keras as prl
from prl_keras.scores.geometric_median import distance_to_median
from prl_keras.scores.loss_layer import loss_layer_gradients
from prl_keras.scores.names import resolve

MODES = modes(tf.TensorSpec([None], tf.int64), tf.TensorSpec([None, 6]), tf.TensorSpec([None]))


def batch(n=40):
    """-> (labels, logits); a third of the labels are not what the network predicts."""
    rng = np.random.default_rng(0)
    y, z = rng.integers(0, 6, n), rng.normal(size=(n, 6))
    predicted = np.where(rng.random(n) < 0.3, (y + 1) % 6, y)
    return y, (z + 1.5 * np.eye(6)[predicted]).astype("float32")


def median_by_hand(gradients):
    """By 5,000 iterations of Weiszfeld's algorithm from the mean; `scipy` finds no smaller sum."""

    def distances(m):
        return np.linalg.norm(gradients - m, axis=1)

    m = gradients.mean(axis=0)
    for _ in range(5000):
        near = 1 / np.maximum(distances(m), 1e-12)
        m = near @ gradients / near.sum()
    smallest = scipy.optimize.minimize(lambda m: distances(m).sum(), gradients.mean(axis=0), tol=1e-10).fun
    assert distances(m).sum() <= smallest * (1 + 1e-6)
    return m


@pytest.mark.daily("eager")
@pytest.mark.parametrize("mode", MODES)
def test_is_the_distance_to_the_minimum_of_the_summed_distances(mode):
    y, z = batch()
    weights = np.where(np.arange(40) % 4 == 0, 0.0, 7.0)
    function = MODES[mode](lambda y, z, w: distance_to_median(y, z, SPARSE, w))
    found = function(tf.constant(y), tf.constant(z), tf.constant(weights, tf.float32)).numpy()
    g, counts = gradients_by_hand(NAME, y, z), weights > 0
    expected = np.linalg.norm(g - median_by_hand(g[counts]), axis=1)
    np.testing.assert_allclose(found[counts], expected[counts], rtol=1e-4, atol=1e-5)


def test_in_a_regression():
    rng = np.random.default_rng(0)
    y = rng.normal(size=(30, 3)).astype("float32")
    y[:9] += 1000
    found = distance_to_median(y, tf.zeros([30, 3]), "mse").numpy()
    g = gradients_by_hand("mse", y, np.zeros((30, 3)))
    m = median_by_hand(g)
    assert np.linalg.norm(m) < 1 and np.linalg.norm(g.mean(axis=0)) > 100  # the mean is carried away
    np.testing.assert_allclose(found, np.linalg.norm(g - m, axis=1), rtol=1e-3)


def test_with_one_output_it_is_the_median():
    y = np.float32([[0], [1], [2], [50], [-70]])
    found = distance_to_median(y, tf.zeros([5, 1]), "mse").numpy()
    np.testing.assert_allclose(found, np.abs(2 * y[:, 0] - 2), atol=1e-2)


def test_the_weighted_mean_of_the_gradients_is_the_median():
    y, z = batch()
    g, distances = gradients_by_hand(NAME, y, z), distance_to_median(y, tf.constant(z), SPARSE)
    rule = prl.InverseScore()
    assert float(tf.reduce_min(distances)) > rule.smallest
    mean = np.mean(rule(distances).numpy()[:, None] * g, axis=0)
    np.testing.assert_allclose(mean, median_by_hand(g), atol=1e-4)


@pytest.mark.daily("*-False")
@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("is_padded", [False, True])
def test_a_step_is_that_of_a_loop(is_padded, jit_compile):
    y, x = batch()
    weights = np.where(np.arange(40) % 5 == 1, 0, 2).astype("float32") if is_padded else np.ones(40)

    def rule(run, counts):
        g = gradients_by_hand(NAME, y, run.outputs)
        near = counts / np.maximum(np.linalg.norm(g - median_by_hand(g[counts]), axis=1), 0.01)
        return near * counts.sum() / near.sum()

    assert_step_is_that_of_a_loop("geomed", rule, y, x, weights, jit_compile)


def test_rules_that_rank_get_the_distances_of_rescaled_gradients():
    rng = np.random.default_rng(0)
    z, y = rng.normal(size=(5, 4, 6)).astype("float32"), rng.integers(0, 6, (5, 4))
    weights = (rng.random((5, 4)) < 0.6).astype("float32")
    score = resolve("distance_to_median")
    for function, is_rescaled in ((score.function, True), (score.norm, False)):
        g, counts, _ = loss_layer_gradients(y, tf.constant(z), SPARSE, weights, is_rescaled)
        expected = np.linalg.norm(g - median_by_hand(g.numpy().astype(float)), axis=1)
        found = function(y, tf.constant(z), SPARSE, weights).numpy()
        np.testing.assert_allclose(found, expected, rtol=1e-3)
        assert counts.numpy().all()


def test_rows_that_are_not_finite_or_padding_move_nothing():
    y, z = batch()
    alone = distance_to_median(y, tf.constant(z), SPARSE).numpy()
    z = np.concatenate([z, np.full((2, 6), np.nan, "float32"), np.full((2, 6), 50, "float32")])
    weights = np.float32([1] * 42 + [0] * 2)
    found = distance_to_median(np.append(y, [0, 1, 2, 3]), tf.constant(z), SPARSE, weights).numpy()
    np.testing.assert_allclose(found[:40], alone, rtol=1e-5)
    assert np.isinf(found[40:42]).all() and np.isfinite(found[42:]).all()


def test_a_gradient_whose_square_overflows_moves_nothing():
    y = np.float32([[0.1], [0.2], [0.3], [1e25]])
    found = distance_to_median(y, tf.zeros([4, 1]), "mae").numpy()
    assert np.isfinite(found).all()  # signs
    found = distance_to_median(y, tf.zeros([4, 1]), "mse").numpy()
    np.testing.assert_allclose(found[:3], [0.2, 0, 0.2], atol=1e-2)
    assert np.isinf(found[3])


@pytest.mark.daily("*-eager")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("n", [0, 1, 2])
def test_small_batches_and_padding_alone(mode, n):
    y, z = batch()
    function = MODES[mode](lambda y, z, w: distance_to_median(y, z, SPARSE, w))
    for weight in (0, 1):
        found = function(tf.constant(y[:n]), tf.constant(z[:n]), tf.fill([n], float(weight))).numpy()
        assert found.shape == (n,) and np.isfinite(found).all()
