"""Embeddings and looping recurrent layers with PRL(G)."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import prl_keras as prl

RNG = np.random.default_rng(0)
Y = RNG.integers(0, 3, 32)
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def fit(model, x, y=Y, optimizer="adam"):
    model.compile(optimizer, LOSS)
    model.fit(x, y, epochs=2, batch_size=16, shuffle=False, verbose=0)
    return model


@pytest.mark.parametrize("optimizer", ["adam", "rmsprop"])
@pytest.mark.parametrize("microbatch_size", [None, 5])
def test_prl_g_with_an_embedding_is_plain_fit_at_epsilon_zero(optimizer, microbatch_size):
    """Optimizers with state treat an embedding's sparse gradient in their own way."""

    def text():
        keras.utils.set_random_seed(0)
        pooled = layers.GlobalAveragePooling1D()
        return keras.Sequential([keras.Input((4,), dtype="int32"), layers.Embedding(9, 4), pooled,
                                 layers.Dense(3)])  # fmt: skip

    x = RNG.integers(0, 9, (32, 4))
    plain = fit(text(), x, optimizer=optimizer)
    robust = prl.RobustModel(text(), "gradient", prl.Trim(0.0), microbatch_size=microbatch_size)
    fit(robust, x, optimizer=optimizer)
    for a, b in zip(plain.get_weights(), robust.network.get_weights()):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.fault(16)
def test_prl_g_with_a_looping_recurrent_layer_is_slow_but_right():
    def recurrent():
        keras.utils.set_random_seed(0)
        return keras.Sequential([keras.Input((4, 2)), layers.Dense(3), layers.LSTM(4), layers.Dense(3)])

    x = RNG.normal(size=(6, 4, 2)).astype(np.float32)
    with pytest.warns(UserWarning, match="unroll=True"):
        norms = prl.scores.gradient_norm(x, Y[:6], recurrent(), LOSS)
    one_by_one = recurrent()
    for i in range(6):
        with tf.GradientTape() as tape:
            loss = LOSS(Y[i : i + 1], one_by_one(x[i : i + 1]))
        gradient = tape.gradient(loss, one_by_one.trainable_weights)
        assert float(norms[i]) == pytest.approx(float(tf.linalg.global_norm(gradient)), rel=1e-4)
    fit(prl.RobustModel(recurrent(), "gradient"), np.tile(x, (5, 1, 1)), Y[:30])
