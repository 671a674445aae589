"""PRL(G) with losses that look at the whole batch: the step is made of the loss that Keras computes."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import prl_keras as prl
from prl_keras.inputs import loss_kinds

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(24, 5, 2)).astype("float32"), RNG.choice(3, 24, p=[0.7, 0.2, 0.1])


def balanced(y_true, y_pred):
    """Every class has the same weight, as often as it occurs in the batch."""
    one_hot = tf.one_hot(tf.cast(tf.reshape(y_true, [-1]), tf.int32), 3)
    weight = tf.reduce_sum(one_hot / tf.maximum(tf.reduce_sum(one_hot, 0, keepdims=True), 1.0), -1)
    return weight * keras.losses.sparse_categorical_crossentropy(y_true, y_pred, from_logits=True)


class Centred(keras.losses.Loss):
    """Of the predictions' distances to their mean in the batch."""

    def call(self, y_true, y_pred):
        own = keras.losses.sparse_categorical_crossentropy(y_true, y_pred, from_logits=True)
        return own + tf.reduce_sum((y_pred - tf.reduce_mean(y_pred, 0)) ** 2, axis=-1)


def probable(y_true, y_pred):
    """Of probabilities, so that Keras's logits behind them count."""
    own = keras.losses.sparse_categorical_crossentropy(y_true, y_pred)
    return own / (1e-3 + tf.reduce_mean(own))


def network(kind, head=None):
    keras.utils.set_random_seed(0)
    middle = {
        "layerwise": layers.Dense(4, "tanh"),
        "map": layers.Lambda(tf.identity),
        "loop": layers.GRU(3, return_sequences=True),
    }[kind]
    return keras.Sequential(
        [keras.Input((5, 2)), layers.Dense(3), middle, layers.Flatten(), layers.Dense(3, head)]
    )


LOSSES = {"balanced": (balanced, None), "centred": (Centred(), None), "probable": (probable, "softmax")}


@pytest.mark.daily("centred-{'micro*")
@pytest.mark.fault(31)
@pytest.mark.parametrize("options", [{}, {"microbatch_size": 5}, {"recompute": True}], ids=str)
@pytest.mark.parametrize("loss", LOSSES)
def test_epsilon_0_is_plain_fit(loss, options):
    loss, head = LOSSES[loss]
    plain = network("layerwise", head)
    robust = prl.RobustModel(network("layerwise", head), "gradient", prl.Trim(0.0), **options)
    for model in (plain, robust):
        model.compile(keras.optimizers.SGD(0.5), loss)
        model.fit(X, Y, batch_size=12, epochs=2, shuffle=False, verbose=0)
    for a, b in zip(plain.get_weights(), robust.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.daily("*-layerwise")
@pytest.mark.fault(31)
@pytest.mark.filterwarnings("ignore:.* cannot be vectorized", "ignore:The per-example gradients")
@pytest.mark.parametrize("kind", ["layerwise", "map", "loop"])
@pytest.mark.parametrize("loss", LOSSES)
def test_the_gradients_of_the_examples_add_up_to_the_batchs(loss, kind):
    loss, head = LOSSES[loss]
    model = network(kind, head)
    x, y = X[:6], Y[:6]
    with tf.GradientTape(persistent=True) as tape:
        y_pred = model(x, training=True)
        outputs = getattr(y_pred, "_keras_logits", y_pred)  # the head may hide them
        losses = loss.call(y, y_pred) if isinstance(loss, Centred) else loss(y, y_pred)
        total = tf.reduce_sum(losses)
    weights = [w.value for w in model.trainable_weights]
    upstream = tape.gradient(total, outputs)
    jacobians = tape.jacobian(outputs, weights, experimental_use_pfor=False)
    parts = [tf.einsum("nc,nc...->n...", upstream, j).numpy() for j in jacobians]
    for part, whole in zip(parts, tape.gradient(total, weights)):
        np.testing.assert_allclose(part.sum(0), whole, rtol=1e-3, atol=1e-5)
    expected = np.sqrt(sum((part.reshape(6, -1) ** 2).sum(1) for part in parts))
    norms = prl.scores.gradient_norm(x, y, model, loss)
    np.testing.assert_allclose(norms, expected, rtol=1e-4)
    np.testing.assert_allclose(prl.scores.gradient_norm(x, y, model, loss, 4), expected, rtol=1e-4)


@pytest.mark.fault(31)
def test_a_step_is_of_keras_loss_with_the_rules_weights():
    model = prl.RobustModel(network("layerwise"), "gradient", prl.Trim(0.25))
    model.compile(keras.optimizers.SGD(1.0), balanced, run_eagerly=True)
    norms = prl.scores.gradient_norm(X[:8], Y[:8], model.network, balanced).numpy()
    weights = 8 / 6 * (np.argsort(np.argsort(norms)) < 6).astype("float32")
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(weights * balanced(Y[:8], model.network(X[:8])))
    gradients = tape.gradient(loss, model.network.trainable_weights)
    expected = [w - g.numpy() for w, g in zip(model.network.get_weights(), gradients)]
    model.train_on_batch(X[:8], Y[:8])
    for a, b in zip(expected, model.network.get_weights()):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.fault(31)
@pytest.mark.parametrize(
    ("loss", "is_known"),
    [
        ("mse", True),
        (keras.losses.Huber(), True),
        (prl.Bootstrap(), True),
        (["mse", None, keras.losses.mean_absolute_error], True),
        ("circle", False),
        (keras.losses.Circle(), False),
        (keras.losses.Dice(axis=(1, 2)), False),
        (balanced, False),
        (Centred(), False),
        ({"a": "mse", "b": balanced}, False),
        (lambda y_true, y_pred: y_pred, False),
    ],
)
def test_the_losses_that_are_known_to_be_by_example(loss, is_known):
    assert loss_kinds.is_by_example(loss) == is_known
