"""Every number of PRL(G)'s gradients is finite on good data, whatever is zero on the way."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import prl_keras as prl
from prl_keras.scores import gradient
from prl_keras.scores.layerwise import graph

SPARSE = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
PROBABILITIES = keras.losses.SparseCategoricalCrossentropy()
MSE = keras.losses.MeanSquaredError()


def dense(units, activation=None):
    return layers.Dense(units, activation, kernel_initializer="zeros", bias_initializer="zeros")


def convolution(filters, activation=None):
    return layers.Conv2D(filters, 3, padding="same", activation=activation)


# Name -> (shape of an example, loss, layers).
NETWORKS = {
    "dead_units": ((6,), SPARSE, lambda: [dense(5, "relu"), dense(3)]),
    "layer_norm_of_zeros": ((5,), SPARSE, lambda: [dense(4), layers.LayerNormalization(), dense(3)]),
    "layer_norm_of_two_axes": (
        (5, 4),
        SPARSE,
        lambda: [layers.LayerNormalization(axis=(1, 2)), layers.Flatten(), layers.Dense(3)],
    ),
    "group_norm_directly": (
        (8, 8, 2),
        SPARSE,
        lambda: [
            convolution(4),
            layers.GroupNormalization(2),
            layers.ReLU(),
            layers.GlobalMaxPooling2D(),
            layers.Dense(3),
        ],
    ),
    "group_norm_by_gram_matrices": (
        (3, 3, 32),
        SPARSE,
        lambda: [convolution(32, "relu"), layers.GroupNormalization(4), layers.Flatten(), layers.Dense(3)],
    ),
    "softmax": ((6,), PROBABILITIES, lambda: [layers.Dense(5, "softplus"), layers.Dense(3, "softmax")]),
    "losses_of_zero": ((6,), MSE, lambda: [dense(5, "sigmoid"), dense(3)]),
}


@pytest.fixture(autouse=True)
def checked():
    tf.debugging.enable_check_numerics()
    yield
    tf.debugging.disable_check_numerics()


def assert_checks_pass(network, loss, x, y):
    """Norms and weighted sums, eagerly and in a graph, with every operation looked at."""
    assert graph.obstacle(network) is None
    losses_of = functools.partial(prl.scores.per_example_loss, loss=loss)

    def gradients(x, y):
        found = gradient.gradients(losses_of, network, x, y)
        return found.norms, found.weighted_sum(tf.cast(found.norms > 0, tf.float32))

    for run in (gradients, tf.function(gradients)):
        norms, sums = run(x, y)
        assert np.isfinite(norms).all()
        for total in sums:
            assert np.isfinite(tf.convert_to_tensor(total)).all()


@pytest.mark.daily("losses_of_zero")
@pytest.mark.parametrize("name", NETWORKS)
def test_nothing_divides_by_a_norm_or_a_deviation_of_zero(name):
    shape, loss, body = NETWORKS[name]
    keras.utils.set_random_seed(1)
    network = keras.Sequential([keras.Input(shape), *body()])
    x = np.random.default_rng(0).normal(size=(6, *shape)).astype("float32")
    x[:3] = 0
    y = tf.zeros((6, 3)) if loss is MSE else tf.constant([0, 1, 2, 0, 1, 2])
    assert_checks_pass(network, loss, tf.constant(x), y)


def test_embeddings():
    body = [layers.Embedding(5, 3), layers.Conv1D(4, 2, activation="relu"), layers.GlobalAveragePooling1D()]
    network = keras.Sequential([keras.Input((6,), dtype="int32"), *body, layers.Dense(3)])
    assert_checks_pass(network, SPARSE, tf.zeros((4, 6), tf.int32), tf.constant([0, 1, 2, 0]))


@pytest.mark.daily("prl_l-False", "prl_g-True")
@pytest.mark.parametrize("is_recorded", [False, True])
@pytest.mark.parametrize("name", prl.METHODS)
def test_a_method_trains_in_a_graph(name, is_recorded):
    """The check refuses constants that are not finite, too, such as the NaN of a mask that masks nothing."""
    x, y = np.random.default_rng(0).normal(size=(16, 4)).astype("float32"), np.arange(16) % 3
    x[:3] = 0
    is_class = "classification" in prl.METHODS[name].tasks
    loss, data = (SPARSE, (x, y)) if is_class else (MSE, (x, np.stack([y] * 3, axis=1).astype("float32")))
    model = prl.build(name, a_network, epsilon=0.3, loss=loss, optimizer="sgd")
    if is_recorded and not hasattr(model, "record_selection"):
        pytest.skip("It drops no examples, so that there is no record of them.")
    callbacks = [prl.SelectionRecord(data)] if is_recorded else []
    logs = model.fit(*data, batch_size=8, epochs=1, callbacks=callbacks, verbose=0).history
    assert np.isfinite(list(logs.values())).all()


def a_network():
    body = [layers.Dense(5, "relu"), layers.LayerNormalization(), layers.Dense(3)]
    return keras.Sequential([keras.Input((4,)), *body])
