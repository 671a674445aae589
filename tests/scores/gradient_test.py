"""Per-example gradients against the slow loop: one example, one tape."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import prl_keras as prl
from prl_keras.scores import gradient as per_example

RNG = np.random.default_rng(0)
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def conv_network():
    inputs = keras.Input((8, 8, 2))
    x = layers.Conv2D(4, 3, strides=2, padding="same")(inputs)
    x = layers.LeakyReLU()(layers.GroupNormalization(2)(x))
    return keras.Model(inputs, layers.Dense(3)(layers.Flatten()(x)))


def depthwise_network():
    """The map has no vectorized form of its gradient and falls back to a loop."""
    inputs = keras.Input((8, 8, 2))
    x = layers.DepthwiseConv2D(3, dilation_rate=2)(inputs)
    return keras.Model(inputs, layers.Dense(3)(layers.Flatten()(x)))


def text_network():
    inputs = keras.Input((5,), dtype="int32")
    x = layers.LayerNormalization()(layers.Embedding(7, 4)(inputs))
    return keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling1D()(x)))


def shared_and_frozen_network():
    inputs = keras.Input((4,))
    shared = layers.Dense(4, activation="tanh")
    frozen = layers.Dense(4)
    frozen.trainable = False
    return keras.Model(inputs, layers.Dense(3)(shared(frozen(shared(inputs)))))


def residual_network():
    inputs = keras.Input((6,))
    x = layers.LayerNormalization()(layers.Dense(6, activation="tanh")(inputs))
    return keras.Model(inputs, layers.Dense(3)(layers.Add()([inputs, x])))


NETWORKS = {
    "conv": (conv_network, (8, 8, 2)),
    "depthwise": (depthwise_network, (8, 8, 2)),
    "text": (text_network, (5,)),
    "shared_and_frozen": (shared_and_frozen_network, (4,)),
    "residual": (residual_network, (6,)),
}


def batch(name, n):
    keras.utils.set_random_seed(1)
    make, shape = NETWORKS[name]
    x = RNG.integers(0, 7, (n, *shape)) if name == "text" else RNG.normal(size=(n, *shape))
    dtype = "int32" if name == "text" else "float32"
    return make(), tf.constant(x.astype(dtype)), tf.constant(RNG.integers(0, 3, n))


def loop(network, x, y):
    """Every example's gradient, one after the other."""
    gradients = []
    for i in range(len(x)):
        with tf.GradientTape() as tape:
            value = LOSS(y[i : i + 1], network(x[i : i + 1], training=True))
        gradients.append([tf.convert_to_tensor(g) for g in tape.gradient(value, network.trainable_weights)])
    return gradients


def losses_of(y, y_pred):
    return prl.scores.per_example_loss(y, y_pred, LOSS)


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_and_norms_equal_the_loop(name):
    network, x, y = batch(name, 7)
    y_pred, norms, weighted_sum, _ = per_example.gradients(losses_of, network, x, y)
    gradients = [[tf.convert_to_tensor(g) for g in weighted_sum(one_hot)] for one_hot in tf.eye(7)]
    expected = loop(network, x, y)
    np.testing.assert_allclose(y_pred, network(x), rtol=1e-4, atol=1e-5)
    for i, gradient in enumerate(expected):
        for ours, single in zip(gradients[i], gradient):
            np.testing.assert_allclose(ours, single, rtol=1e-3, atol=1e-6)
    flat = [np.concatenate([np.ravel(g) for g in gradient]) for gradient in expected]
    np.testing.assert_allclose(norms, np.linalg.norm(flat, axis=1), rtol=1e-4)


@pytest.mark.daily("1")
@pytest.mark.parametrize("microbatch_size", [None, 1])
def test_a_last_batch_of_one_example_has_the_norm_of_that_example(microbatch_size):
    network, x, y = batch("residual", 2)
    norms = tf.function(
        lambda x, y: per_example.gradient_norms(losses_of, network, x, y, microbatch_size),
        input_signature=[tf.TensorSpec([None, 6]), tf.TensorSpec([None], tf.int64)],
    )
    np.testing.assert_allclose(norms(x[:1], y[:1]), norms(x, y)[:1], rtol=1e-5)


@pytest.mark.parametrize("n", [0, 1, 7])
@pytest.mark.parametrize("microbatch_size", [None, 1, 3, 100])
def test_microbatches_never_change_the_norms(n, microbatch_size):
    network, x, y = batch("conv", n)
    norms = prl.scores.gradient_norm(x, y, network, LOSS, microbatch_size)
    expected = [np.sqrt(sum(np.sum(np.square(g)) for g in gradient)) for gradient in loop(network, x, y)]
    assert norms.shape == (n,) and norms.dtype == tf.float32
    np.testing.assert_allclose(norms, expected, rtol=1e-4)


@pytest.mark.daily("None")
@pytest.mark.parametrize("microbatch_size", [None, 3])
def test_compiles_with_xla_and_a_batch_size_unknown_until_the_call(microbatch_size):
    network, _, _ = batch("conv", 1)
    norms = tf.function(
        lambda x, y: per_example.gradient_norms(losses_of, network, x, y, microbatch_size),
        jit_compile=True,
        reduce_retracing=True,
    )
    for n in (4, 5):
        _, x, y = batch("conv", n)
        np.testing.assert_allclose(
            norms(x, y), per_example.gradient_norms(losses_of, network, x, y), rtol=1e-4
        )


@pytest.mark.fault(16)
def test_weights_that_the_loss_does_not_reach_count_zero():
    inputs = keras.Input((4,))
    unused = layers.Dense(2)(inputs)
    network = keras.Model(inputs, layers.Dense(3)(inputs) + 0 * layers.Dense(3)(unused))
    x, y = tf.ones((2, 4)), tf.constant([0, 1])
    norms = prl.scores.gradient_norm(x, y, network, LOSS)
    assert np.isfinite(norms).all() and (norms.numpy() > 0).all()


def test_masks_of_dropout_move_on_from_step_to_step_and_repeat_with_the_seed():
    def two_steps():
        keras.utils.set_random_seed(0)
        network = keras.Sequential([keras.Input((32,)), layers.Dropout(0.5, seed=3), layers.Dense(1)])
        x, y = tf.ones((4, 32)), tf.zeros((4, 1))
        return [per_example.gradients(lambda y, p: p[:, 0], network, x, y)[0].numpy() for _ in range(2)]

    first, second = two_steps()
    assert not np.allclose(first, second)
    np.testing.assert_array_equal(two_steps(), [first, second])


@pytest.mark.fault(15)
def test_batch_normalization_is_refused_by_name_with_the_way_out():
    network = keras.Sequential([keras.Input((4,)), layers.BatchNormalization(name="bn_7"), layers.Dense(3)])
    x, y = tf.ones((2, 4)), tf.constant([0, 1])
    with pytest.raises(prl.BatchMixingError, match=r"bn_7.*GroupNormalization"):
        prl.scores.gradient_norm(x, y, network, LOSS)
    with pytest.raises(prl.BatchMixingError, match=r"bn_7.*GroupNormalization"):
        prl.RobustModel(network, score="gradient")
    assert prl.scores.gradient_norm(x, y, network, LOSS, training=False).shape == (2,)
    network.layers[0].trainable = False
    assert prl.scores.gradient_norm(x, y, network, LOSS).shape == (2,)
