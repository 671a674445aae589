"""PRL(G) where one pass, or the map over the examples, would not give what a tape for each example gives."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import prl_keras as prl

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(16, 10, 6)).astype("float32"), np.arange(16) % 3
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


@keras.saving.register_keras_serializable("one_pass_test")
class Counting(layers.Layer):
    """Counts its calls in training."""

    def build(self, input_shape):
        self.count = self.add_weight(shape=(), initializer="zeros", trainable=False)

    def call(self, x, training=None):
        if training:
            self.count.assign_add(1.0)
        return x


def attention():
    inputs = keras.Input((10, 6))
    return keras.Model(
        inputs, layers.Dense(3)(layers.Flatten()(layers.MultiHeadAttention(2, 4)(inputs, inputs)))
    )


def with_layers(*middle):
    return keras.Sequential([keras.Input((10, 6)), *middle, layers.Flatten(), layers.Dense(3)])


NETWORKS = {
    "attention": attention,
    "einsum_dense": lambda: with_layers(layers.EinsumDense("abc,cde->abde", (10, 4, 4))),
}


@pytest.mark.daily("None-einsum_dense")
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("microbatch_size", [None, 5])
def test_what_the_map_would_get_wrong_is_looped_over(name, microbatch_size):
    keras.utils.set_random_seed(0)
    network = NETWORKS[name]()
    expected = []
    for i in range(len(X)):
        with tf.GradientTape() as tape:
            loss = prl.scores.per_example_loss(Y[i : i + 1], network(X[i : i + 1], training=True), LOSS)[0]
        gradient = tape.gradient(loss, [w.value for w in network.trainable_weights])
        expected.append(tf.linalg.global_norm(gradient).numpy())
    with pytest.warns(UserWarning, match="cannot be vectorized over the batch"):
        norms = prl.scores.gradient_norm(X, Y, network, LOSS, microbatch_size)
    np.testing.assert_allclose(norms, expected, rtol=1e-5)
    model = prl.RobustModel(network, "gradient", prl.Trim(0.3), microbatch_size=microbatch_size)
    model.compile("sgd", LOSS)
    model.fit(X, Y, batch_size=8, verbose=0)
    assert all(np.isfinite(w).all() for w in model.get_weights())


def test_layers_that_branch_train():
    model = prl.RobustModel(with_layers(layers.SpectralNormalization(layers.Dense(4))), "gradient")
    model.compile("sgd", LOSS)
    with pytest.warns(UserWarning, match="cannot be vectorized over the batch"):
        losses = model.fit(X, Y, batch_size=8, epochs=3, verbose=0).history["loss"]
    assert np.isfinite(losses).all() and losses[-1] < losses[0]


@pytest.mark.daily("0.3")
@pytest.mark.parametrize("epsilon", [0.0, 0.3])
def test_a_class_that_is_ignored_does_not_shrink_the_step(epsilon):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-1)
    y = np.where(np.arange(16) % 2, Y, -1)
    weights = []
    for options in ({}, {"recompute": True}):
        keras.utils.set_random_seed(0)
        model = prl.RobustModel(with_layers(), "gradient", prl.Trim(epsilon), **options)
        model.compile(keras.optimizers.SGD(1.0), loss)
        model.fit(X, y, batch_size=16, shuffle=False, verbose=0)
        weights.append(model.get_weights())
    if not epsilon:
        keras.utils.set_random_seed(0)
        plain = with_layers()
        plain.compile(keras.optimizers.SGD(1.0), loss)
        plain.fit(X, y, batch_size=16, shuffle=False, verbose=0)
        weights.append(plain.get_weights())
    for other in weights[1:]:
        for a, b in zip(weights[0], other, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.daily("False-{}")
@pytest.mark.parametrize("options", [{}, {"microbatch_size": 3}, {"recompute": True}], ids=str)
@pytest.mark.parametrize("eager", [True, False])
def test_a_layers_own_state_and_seeds_move_once_a_step(options, eager):
    regularized = layers.Dense(4, activity_regularizer="l2")
    network = with_layers(Counting(), regularized, layers.Dropout(0.5, seed=1))
    model = prl.RobustModel(network, "gradient", prl.Trim(0.3), **options)
    model.compile("sgd", LOSS, run_eagerly=eager)
    model.fit(X, Y, batch_size=8, epochs=2, verbose=0)
    assert network.layers[0].count.numpy() == 4
    assert network.layers[2].seed_generator.state.numpy().tolist() == [1, 4]


def test_extreme_inputs_have_the_norms_of_the_loop():
    network = keras.Sequential([keras.Input((6,)), layers.Dense(4, "tanh"), layers.Dense(3)])
    for scale, target in ((1e30, 1.0), (1e-25, 1e10), (1.0, 1e-22)):
        x = (scale * np.abs(X[:4, 0])).astype("float32")
        y = np.full((4, 3), target, "float32")
        expected = []
        for i in range(4):
            with tf.GradientTape() as tape:
                loss = target * prl.scores.per_example_loss(y[i : i + 1], network(x[i : i + 1]), "mae")[0]
            gradients = tape.gradient(loss, [w.value for w in network.trainable_weights])
            expected.append(np.sqrt(sum((g.numpy().astype("float64") ** 2).sum() for g in gradients)))
        norms = prl.scores.gradient_norm(
            x, y, network, lambda y, y_pred, t=target: t * keras.losses.mean_absolute_error(y, y_pred)
        )
        np.testing.assert_allclose(norms, expected, rtol=1e-4)
