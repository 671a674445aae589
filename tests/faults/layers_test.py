"""Embeddings and looping recurrent layers with PRL(G)."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from arrays import assert_all_close, assert_all_equal
from keras import layers

import prl_keras as prl

RNG = np.random.default_rng(0)
Y = RNG.integers(0, 3, 32)
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def fit(model, x, y=Y, optimizer="adam"):
    model.compile(optimizer, LOSS)
    model.fit(x, y, epochs=2, batch_size=16, shuffle=False, verbose=0)
    return model


@pytest.mark.daily("None-adam")
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
    assert_all_close(plain.get_weights(), robust.network.get_weights())


@pytest.mark.long
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


SIZED_BY_VALUES = {
    "boolean_mask": lambda t: t + tf.reduce_sum(tf.boolean_mask(t, t[0] > 0, axis=1)),
    "where": lambda t: t + tf.cast(tf.reduce_sum(tf.where(t > 0)), tf.float32) / 100,
    "unique": lambda t: t * tf.cast(tf.size(tf.unique(tf.round(4 * tf.reshape(t, [-1])))[0]), tf.float32),
    "partition": lambda t: t * tf.reduce_sum(tf.dynamic_partition(t[0], tf.cast(t[0] > 0, tf.int32), 2)[0]),
    "ragged": lambda t: (
        t + tf.reduce_sum(tf.RaggedTensor.from_tensor(tf.nn.relu(t), padding=0.0), axis=1)[:, None]
    ),
    "in a tf.function": tf.function(lambda t: t + tf.reduce_sum(tf.boolean_mask(t, t > 0)), autograph=False),
}


@pytest.mark.daily("where", "in a tf.function")
@pytest.mark.fault(47)
@pytest.mark.filterwarnings("ignore:The per-example gradients")
@pytest.mark.parametrize("name", SIZED_BY_VALUES)
def test_prl_g_with_a_result_whose_size_depends_on_the_values(name):
    keras.utils.set_random_seed(0)
    inner = layers.Lambda(SIZED_BY_VALUES[name], output_shape=(4,))
    network = keras.Sequential([keras.Input((4,)), layers.Dense(4), inner, layers.Dense(3)])
    x = RNG.normal(size=(6, 4)).astype(np.float32)
    with pytest.warns(UserWarning, match="cannot be vectorized"):
        norms = prl.scores.gradient_norm(x, Y[:6], network, LOSS)
    np.testing.assert_allclose(norms, norms_one_by_one(network, x), rtol=1e-4)


@pytest.mark.fault(47)
@pytest.mark.filterwarnings("ignore:The per-example gradients", "ignore:.*cannot be vectorized")
def test_prl_g_with_text_is_plain_fit_at_epsilon_zero():
    def text():
        keras.utils.set_random_seed(0)
        words = layers.TextVectorization(output_sequence_length=3, vocabulary=["a", "b", "c"])
        pooled = [layers.Embedding(8, 4, mask_zero=True), layers.GlobalAveragePooling1D(), layers.Dense(3)]
        return keras.Sequential([keras.Input((1,), dtype="string"), words, *pooled])

    x = tf.constant([["a b"], ["b"], ["c a d"], ["d d a b"]] * 8)
    plain, robust = fit(text(), x), fit(prl.RobustModel(text(), "gradient", prl.Trim(0.0)), x)
    assert_all_close(plain.get_weights(), robust.network.get_weights())


def spectral():
    keras.utils.set_random_seed(0)
    normalized = layers.SpectralNormalization(layers.Dense(5, activation="tanh"))
    return keras.Sequential([keras.Input((4,)), normalized, layers.Dense(3)])


def norms_one_by_one(network, x, training=False):
    """The gradient norm of each example, each from the same weights."""
    before, norms = network.get_weights(), []
    for i in range(len(x)):
        network.set_weights(before)
        with tf.GradientTape() as tape:
            loss = LOSS(Y[i : i + 1], network(x[i : i + 1], training=training))
        norms.append(tf.linalg.global_norm(tape.gradient(loss, network.trainable_weights)))
    network.set_weights(before)
    return norms


OPTIONS = {
    "plain": {"score": None},
    "loss layer": {"score": "loss_layer_gradient"},
    "gradient": {"score": "gradient"},
    "microbatches": {"score": "gradient", "microbatch_size": 3},
    "recompute": {"score": "loss", "recompute": True},
}


@pytest.mark.fault(55)
@pytest.mark.filterwarnings("ignore:The per-example gradients", "ignore:.*cannot be vectorized")
@pytest.mark.parametrize("name", OPTIONS)
def test_a_weight_that_a_layer_assigns_changes_as_in_plain_fit(name):
    x = RNG.normal(size=(8, 4)).astype(np.float32)
    plain, seen = spectral(), []
    plain.compile(keras.optimizers.SGD(0.1), LOSS, run_eagerly=True)
    network = spectral()
    expected = norms_one_by_one(network, x, training=True)
    model = prl.RobustModel(
        network, rule=lambda scores, *_: seen.append(scores) or tf.ones_like(scores), **OPTIONS[name]
    )
    model.compile(keras.optimizers.SGD(0.1), LOSS, run_eagerly=True)

    before = network.get_weights()
    model.train_on_batch(np.full_like(x, np.nan), Y[:8])  # a skipped step
    assert_all_equal(before, network.get_weights())
    seen.clear()
    for each in (plain, model):
        each.train_on_batch(x, Y[:8])
    assert_all_close(plain.get_weights(), network.get_weights())
    if OPTIONS[name]["score"] == "gradient":
        np.testing.assert_allclose(seen[0], expected, rtol=1e-4)
