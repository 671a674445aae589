"""The loss-layer gradient behind any head, with a loss of one's own, against a numeric gradient."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import prl_keras as prl

RNG = np.random.default_rng(0)
SOFTMAX, SIGMOID = keras.activations.softmax, keras.activations.sigmoid
norm = prl.scores.loss_layer_gradient_norm


def of_probabilities(y_true, y_pred):
    return tf.reduce_mean(tf.abs(y_true - y_pred) ** 1.5, axis=-1)


def of_logarithms(y_true, y_pred):
    return -tf.reduce_sum(y_true * y_pred, axis=-1)


def numeric(loss, head, y, logits, step=1e-6):
    """The norms by central differences in float64."""
    found = np.zeros_like(logits)

    def losses(z):
        values = loss(tf.constant(y), head(tf.constant(z))).numpy()
        return values.reshape(len(y), -1).mean(1)

    for place in np.ndindex(logits.shape[1:]):
        moved = np.zeros_like(logits)
        moved[(slice(None), *place)] = step
        found[(slice(None), *place)] = (losses(logits + moved) - losses(logits - moved)) / (2 * step)
    return np.linalg.norm(found.reshape(len(y), -1), axis=1)


def reshaped(z):
    return tf.reshape(SOFTMAX(tf.reshape(z, [5, 6])), [5, 6, 1])[..., 0]


HEADS = {
    "last": ((5, 4), SOFTMAX, of_probabilities),
    "two": ((5, 2), SOFTMAX, of_probabilities),
    "sigmoid": ((5, 4), SIGMOID, of_probabilities),
    "one_sigmoid": ((5, 1), SIGMOID, of_probabilities),
    "steps": ((5, 3, 4), SOFTMAX, of_probabilities),
    "over_steps": ((5, 3, 4), lambda z: SOFTMAX(z, axis=1), of_probabilities),
    "over_both": ((5, 3, 4), lambda z: SOFTMAX(z, axis=(1, 2)), of_probabilities),
    "channels_first": ((5, 3, 2, 2), lambda z: SOFTMAX(z, axis=1), of_probabilities),
    "over_pixels": ((5, 2, 2, 3), lambda z: SOFTMAX(z, axis=(1, 2)), of_probabilities),
    "sigmoid_steps": ((5, 3, 4), SIGMOID, of_probabilities),
    "layer": ((5, 3, 4), lambda z: keras.layers.Softmax(axis=1, dtype=z.dtype)(z), of_probabilities),
    "log_softmax": ((5, 4), keras.activations.log_softmax, of_logarithms),
    "log_softmax_steps": ((5, 3, 4), keras.activations.log_softmax, of_logarithms),
    "tensorflow": ((5, 4), tf.nn.softmax, of_probabilities),
    "then_reshape": ((5, 6), reshaped, of_probabilities),
    "values": ((5, 4), tf.identity, of_probabilities),
    "one_value": ((5, 1), tf.identity, of_probabilities),
    "tanh": ((5, 4), tf.identity, lambda y, p: tf.reduce_sum((tf.tanh(p) - y) ** 2, -1)),
}


@pytest.mark.daily("*-False", "two-True", "over_steps-True")
@pytest.mark.fault(43)
@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("name", HEADS)
def test_own_losses_have_the_numeric_gradient_of_their_logits(name, graph):
    shape, head, loss = HEADS[name]
    logits, y = RNG.normal(size=shape), RNG.uniform(size=shape)
    expected = numeric(loss, head, y, logits)
    score = lambda z: norm(y.astype("float32"), head(z), loss)  # noqa: E731
    score = tf.function(score) if graph else score
    np.testing.assert_allclose(score(tf.constant(logits, tf.float32)), expected, rtol=2e-3, atol=1e-6)


@pytest.mark.fault(43)
@pytest.mark.parametrize("graph", [False, True])
def test_a_row_where_both_heads_fit_goes_by_the_batch(graph):
    """The sigmoid and the softmax of two logits of 0 are both 1/2."""
    logits, y = RNG.normal(size=(5, 2)), RNG.uniform(size=(5, 2))
    logits[2:4] = 0
    for head in (SOFTMAX, SIGMOID):
        expected = numeric(of_probabilities, head, y, logits)
        score = lambda z, head=head: norm(y.astype("float32"), head(z), of_probabilities)  # noqa: E731
        score = tf.function(score) if graph else score
        np.testing.assert_allclose(score(tf.constant(logits, tf.float32)), expected, rtol=2e-3)


@pytest.mark.fault(43)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_in_half_precision(dtype):
    logits, y = RNG.normal(size=(5, 9, 40)).astype("float32"), RNG.uniform(size=(5, 9, 40)).astype("float32")
    logits = tf.cast(logits, dtype)
    for head in (SOFTMAX, lambda z: SOFTMAX(z, axis=1), SIGMOID):
        exact = tf.cast(logits, "float32")
        np.testing.assert_allclose(
            norm(y, head(logits), of_probabilities), norm(y, head(exact), of_probabilities), rtol=1e-3
        )


@pytest.mark.fault(43)
def test_two_heads_and_a_row_that_is_not_finite():
    shapes = (5, 3), (5, 3, 4)
    logits, y = [[RNG.normal(size=shape) for shape in shapes] for _ in range(2)]
    heads = SIGMOID, lambda z: SOFTMAX(z, axis=1)
    parts = [numeric(of_probabilities, *each) for each in zip(heads, y, logits)]
    logits[1][2] = np.nan
    y_pred = [head(tf.constant(z, tf.float32)) for head, z in zip(heads, logits)]
    found = norm([each.astype("float32") for each in y], y_pred, [of_probabilities] * 2).numpy()
    assert np.isnan(found[2])
    good = [0, 1, 3, 4]
    np.testing.assert_allclose(found[good], np.hypot(*parts)[good], rtol=2e-3)


@pytest.mark.fault(43)
def test_keras_focal_loss_over_another_axis_of_probabilities_without_logits():
    rng = np.random.default_rng(5)
    z = tf.constant(rng.normal(size=(6, 3, 4)), tf.float32)
    y = np.moveaxis(np.eye(3, dtype="float32")[rng.integers(0, 3, (6, 4))], -1, 1)
    loss = keras.losses.CategoricalFocalCrossentropy(axis=1)
    with tf.GradientTape() as tape:
        tape.watch(z)
        values = tf.reduce_mean(loss.call(tf.constant(y), tf.nn.softmax(z, axis=1)), axis=1)
    expected = tf.sqrt(tf.reduce_sum(tf.square(tape.gradient(values, z)), axis=(1, 2)))
    y_pred = tf.identity(tf.nn.softmax(z, axis=1))
    np.testing.assert_allclose(prl.scores.loss_layer_gradient_norm(y, y_pred, loss), expected, rtol=1e-4)
