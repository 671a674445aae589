"""score_examples and SelectionQuality: looking at a model from outside."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from small_classifier import Batches

import prl_keras as prl

RNG = np.random.default_rng(0)
X = RNG.normal(size=(50, 6)).astype(np.float32)
Y = RNG.integers(0, 3, 50)
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def network(seed=0):
    keras.utils.set_random_seed(seed)
    layers = [keras.layers.Dense(8), keras.layers.BatchNormalization(), keras.layers.Dropout(0.5)]
    return keras.Sequential([keras.Input((6,)), *layers, keras.layers.Dense(3)])


def gradient_norms(logits):
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    return np.linalg.norm(p - np.eye(3)[Y], axis=1)


class TestScoreExamples:
    def model(self):
        model = prl.RobustModel(network())
        model.compile("sgd", LOSS)
        return model

    def test_gives_float32_in_data_order_without_dropout(self):
        model = self.model()
        before = model.get_weights()
        scores = prl.score_examples(model, (X, Y))
        assert scores.dtype == np.float32 and scores.shape == (50,)
        np.testing.assert_allclose(scores, gradient_norms(model.network(X).numpy()), rtol=1e-4)
        np.testing.assert_equal(model.get_weights(), before)

    def test_takes_every_kind_of_data(self):
        model = self.model()
        expected = prl.score_examples(model, (X, Y))
        weighted = tf.data.Dataset.from_tensor_slices((X, Y, np.zeros(50))).batch(7)
        for data in (Batches(X, Y), tf.data.Dataset.from_tensor_slices((X, Y)).batch(7), weighted):
            np.testing.assert_allclose(prl.score_examples(model, data), expected, rtol=1e-4, atol=1e-6)

    def test_of_a_pair_is_the_mean_of_both_networks(self):
        model = prl.CoTeachingModel(network(1), network(2))
        model.compile("sgd", LOSS)
        expected = np.mean([gradient_norms(n(X).numpy()) for n in model.networks], axis=0)
        np.testing.assert_allclose(prl.score_examples(model, (X, Y)), expected, rtol=1e-4)

    def test_of_a_plain_keras_model_is_the_loss_layer_gradient(self):
        model = network()
        model.compile("sgd", LOSS)
        expected = gradient_norms(model(X).numpy())
        np.testing.assert_allclose(prl.score_examples(model, (X, Y)), expected, rtol=1e-4)

    @pytest.mark.long
    def test_finds_the_corrupted_labels(self):
        x = np.random.default_rng(1).normal(size=(600, 6)).astype(np.float32)
        y = np.argmax(x[:, :3], axis=1)
        noisy, is_corrupted = prl.corrupt("symmetric", y, 0.3, np.random.default_rng(0))
        keras.utils.set_random_seed(0)
        plain = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3)])
        model = prl.RobustModel(plain, rule=prl.Trim(0.3))
        model.compile(keras.optimizers.Adam(0.01), LOSS)
        model.fit(x, noisy, epochs=40, batch_size=64, verbose=0)
        top = np.argsort(-prl.score_examples(model, (x, noisy)))[: is_corrupted.sum()]
        assert is_corrupted[top].mean() > 0.85

    def test_refuses_what_it_cannot_score(self):
        model = self.model()
        with pytest.raises(ValueError, match="empty"):
            prl.score_examples(model, (X[:0], Y[:0]))
        with pytest.raises(ValueError, match="targets"):
            prl.score_examples(model, tf.data.Dataset.from_tensor_slices(X).batch(5))
        with pytest.raises(ValueError, match=r"tuple of arrays \(x, y\)"):
            prl.score_examples(model, [X, Y])
        with pytest.raises(ValueError, match="compiled without one"):
            prl.score_examples(network(), (X, Y))
        pair = prl.CoTeachingModel(network(1), network(2), score=None, exchange="disagreement")
        pair.compile("sgd", LOSS)
        with pytest.raises(ValueError, match="score=None"):
            prl.score_examples(pair, (X, Y))


class TestSelectionQuality:
    """The ground truth stays in the callback."""

    def model(self, rule=None):
        rule = rule or prl.Trim(0.3)
        # The score is the first feature, so what is dropped is known.
        model = prl.RobustModel(
            keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, kernel_initializer="ones")]),
            score=lambda y_true, y_pred: y_pred[:, 0],
            rule=rule,
        )
        model.compile(keras.optimizers.SGD(0.0), "mse", run_eagerly=True)
        return model

    def test_counts_by_hand(self):
        x = np.arange(10.0, dtype=np.float32)[:, None]  # 7, 8 and 9 are dropped
        is_corrupted = np.isin(np.arange(10), [0, 1, 8, 9])
        quality = prl.SelectionQuality(x, np.zeros((10, 1)), is_corrupted, batch_size=10)
        history = self.model().fit(x, np.zeros((10, 1)), verbose=0, callbacks=[quality]).history
        assert history["kept_clean"] == [pytest.approx(5 / 7)]
        assert history["drop_precision"] == [pytest.approx(2 / 3)]
        assert history["drop_recall"] == [pytest.approx(2 / 4)]

    def test_an_empty_share_is_nan(self):
        x = np.arange(4.0, dtype=np.float32)[:, None]
        quality = prl.SelectionQuality(x, np.zeros((4, 1)), np.zeros(4, bool), batch_size=4)
        quality.set_model(self.model(prl.Trim(0.0)))
        measured = quality.measure()
        assert np.isnan(measured["drop_precision"]) and np.isnan(measured["drop_recall"])
        assert measured["kept_clean"] == 1

    @pytest.mark.long
    def test_never_enters_training(self):
        """The same weights with the truth, with its opposite, and without the callback."""
        weights = []
        for truth in (None, np.arange(50) < 25, np.arange(50) >= 25):
            model = prl.RobustModel(network())
            model.compile("sgd", LOSS, run_eagerly=True)
            keras.utils.set_random_seed(1)
            callbacks = [] if truth is None else [prl.SelectionQuality(X, Y, truth, 16)]
            model.fit(X, Y, epochs=2, batch_size=16, verbose=0, callbacks=callbacks)
            weights.append(model.get_weights())
        np.testing.assert_equal(weights[1:], [weights[0]] * 2)

    def test_refuses_unequal_lengths(self):
        with pytest.raises(ValueError, match="50, 50 and 3"):
            prl.SelectionQuality(X, Y, np.zeros(3, bool), 16)
