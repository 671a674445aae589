"""MixturePosterior against scikit-learn's mixture of Gaussians, and at its ends."""

import json
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from loss_layer_step import assert_step_is_that_of_a_loop, modes
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

import prl_keras as prl

MODES = modes(tf.TensorSpec([None]), tf.TensorSpec([None], tf.bool))


def losses(n=64, wrong=0.4, seed=0):
    """Two groups: losses around 0.3 and around 3."""
    rng = np.random.default_rng(seed)
    found = np.where(rng.random(n) < wrong, rng.normal(3, 0.8, n), rng.exponential(0.3, n))
    return np.abs(found).astype("float32")


def by_sklearn(losses):
    """The weights, from the posteriors that scikit-learn gives from the same start."""
    x = 1 - np.exp(-losses.astype(float))
    precision = np.full((2, 1, 1), 1 / (x.var() + 5e-4))
    mixture = GaussianMixture(
        2, max_iter=10, tol=0, reg_covar=5e-4,
        weights_init=[0.5, 0.5], means_init=[[x.min()], [x.max()]], precisions_init=precision,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        mixture.fit(x[:, None])
    assert mixture.n_iter_ == 10
    low, high = np.sort(mixture.means_.ravel())
    posterior = mixture.predict_proba(np.clip(x, low, high)[:, None])[:, np.argmin(mixture.means_)]
    return posterior / posterior.mean()


@pytest.mark.daily("eager", "unknown batch size")
@pytest.mark.parametrize("mode", MODES)
def test_is_the_posterior_of_scikit_learn(mode):
    rule = MODES[mode](prl.MixturePosterior())
    for seed, n in ((0, 64), (1, 64), (2, 7)):
        scores, is_ranked = losses(n, seed=seed), np.arange(n) % 5 != 1
        found = rule(tf.constant(scores), tf.constant(is_ranked)).numpy()
        np.testing.assert_allclose(found[is_ranked], by_sklearn(scores[is_ranked]), rtol=1e-3, atol=1e-4)
        assert not found[~is_ranked].any()


def test_tells_two_groups_apart_whatever_the_largest_loss_is():
    scores = losses()
    for largest in (scores.max(), 1e30):
        scores[np.argmax(scores)] = largest
        found = prl.MixturePosterior()(scores).numpy()
        assert found[scores < 0.7].min() > 1.2 and found[scores > 1.8].max() < 0.2
        assert found.mean() == pytest.approx(1, rel=1e-5)


def test_a_larger_loss_never_weighs_more():
    rng = np.random.default_rng(0)
    for _ in range(20):
        # A wide group of small losses and a narrow one of large ones, whose Gaussian the wide one outreaches.
        scores = np.concatenate([rng.uniform(0, 1, 30), rng.normal(1.5, 0.02, 30), rng.exponential(1, 4)])
        found = prl.MixturePosterior()(np.sort(scores)).numpy()
        assert (np.diff(found) <= 1e-6).all() and found[0] > 1


def test_padding_and_non_finite_losses_weigh_0_and_change_no_other_weight():
    rule, scores = prl.MixturePosterior(), losses(20)
    more = np.append(scores, np.float32([np.nan, np.inf, -np.inf, 0.1, 90]))
    found = rule(more, np.arange(25) < 23).numpy()
    np.testing.assert_allclose(found[:20], rule(scores), rtol=1e-4)
    assert found[20:].tolist() == [0] * 5


@pytest.mark.daily("eager", "unknown batch size")
@pytest.mark.parametrize("mode", MODES)
def test_is_finite_at_its_ends(mode):
    rule = MODES[mode](prl.MixturePosterior())
    ends = [
        [],
        [2],
        [0],
        [1e30],
        [1, 1],
        [0.1, 5],
        [3, 3, 3, 3],
        [6e4, 6e-8, 1],
        [-1e-6, 0],
        [np.inf, np.nan],
    ]
    for scores in ends:
        for is_ranked in (True, False):
            found = rule(tf.constant(scores, tf.float32), tf.fill([len(scores)], is_ranked)).numpy()
            assert np.isfinite(found).all() and found.shape == (len(scores),) and (found >= 0).all()
            counted = np.isfinite(scores).sum() * is_ranked
            assert found.sum() == pytest.approx(counted, rel=1e-4)
            if len(set(scores)) == 1 and is_ranked:
                np.testing.assert_allclose(found, 1, rtol=1e-5)


def test_the_warm_up_is_plain_training():
    rule, scores = prl.MixturePosterior(3), np.append(losses(9), np.float32(np.nan))
    assert rule(scores, step=2).numpy().tolist() == [1] * 9 + [0]
    np.testing.assert_array_equal(rule(scores, step=3), prl.MixturePosterior()(scores))


def network():
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(5)])


@pytest.mark.daily("False")
@pytest.mark.parametrize("jit_compile", [False, True])
def test_a_step_is_that_of_a_loop(jit_compile):
    rng = np.random.default_rng(0)
    x, y = 4 * rng.normal(size=(30, 5)).astype("float32"), rng.integers(0, 5, 30)
    padding = np.where(np.arange(30) % 5 == 1, 0, 2).astype("float32")

    def rule(run, counts):
        given = np.zeros(30)
        given[counts] = by_sklearn(run.losses[counts])
        return given

    assert_step_is_that_of_a_loop("gmm", rule, y, x, padding, jit_compile)


def test_a_model_with_it_is_saved_and_loaded(tmp_path):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model = prl.build("gmm", network, epsilon=0.1, loss=loss, optimizer="sgd", warm_up_steps=7)
    model.train_on_batch(np.ones((4, 4), "float32"), np.arange(4))
    model.save(tmp_path / "model.keras")
    rule = keras.models.load_model(tmp_path / "model.keras").rule
    assert rule == model.rule == prl.MixturePosterior(7) != prl.MixturePosterior()
    json.dumps(prl.MixturePosterior(np.int64(7)).get_config())
    assert prl.METHODS["gmm"].options == {"warm_up_steps": 0}


def test_a_loss_that_is_not_of_one_probability_is_refused():
    with pytest.raises(ValueError, match=r"method='gmm'.*regression"):
        prl.build("gmm", network, epsilon=0.1, loss="mse", optimizer="sgd")
    smoothed = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1)
    model = prl.build("gmm", network, epsilon=0.1, loss=smoothed, optimizer="sgd")
    with pytest.raises(ValueError, match=r"MixturePosterior\(warm_up_steps=0\) reads the probability"):
        model.train_on_batch(np.ones((5, 4), "float32"), np.eye(5))


@pytest.mark.parametrize("warm_up_steps", [-1, 0.5, "a", True])
def test_bad_arguments(warm_up_steps):
    with pytest.raises(ValueError, match=r"warm_up_steps=.* must be a whole number of at least 0"):
        prl.MixturePosterior(warm_up_steps)
