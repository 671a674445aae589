"""One training step equals the brute-force oracle, for every method."""

import functools

import keras
import numpy as np
import oracle
import pytest
import tensorflow as tf
from arrays import assert_all_close
from keras import losses

import prl_keras as prl
from prl_keras.methods import PAPER_METHODS

METHODS = [*PAPER_METHODS, "co_teaching_plus"]  # the others: tests/rules, tests/models/consistency_test.py
PAIRS = ("decouple", "co_teaching", "co_prl_l", "co_teaching_plus")
MAX_NORM = {"normclip": 0.4, "ignormclip": 1.5}

SPARSE_LOSS = losses.SparseCategoricalCrossentropy(from_logits=True)
# kind: (head activation, q, Keras loss, the oracle's loss)
KINDS = {
    "sparse": (None, 4, SPARSE_LOSS, "sparse_softmax_cross_entropy"),
    "one_hot": ("softmax", 4, losses.CategoricalCrossentropy(), "softmax_cross_entropy"),
    "binary": ("sigmoid", 1, losses.BinaryCrossentropy(), "sigmoid_cross_entropy"),
    "mse": (None, 3, losses.MeanSquaredError(), "mse"),
    "mae": (None, 3, losses.MeanAbsoluteError(), "mae"),
}
INPUTS = {"mlp": [5], "convolution": [6, 6, 2]}


def kinds(method):
    if method in ("bootstrap", "decouple", "co_teaching", "co_teaching_plus"):  # classification only
        return ("sparse", "one_hot", "binary")
    return ("mse",) if method == "huber" else tuple(KINDS)


def make_network(kind, body, head=True):
    """A fresh network; without its head it returns the logits and has the same weights."""
    activation, q, _, _ = KINDS[kind]
    layers = [keras.Input(INPUTS[body])]
    if body == "convolution":
        layers += [keras.layers.Conv2D(4, 3), keras.layers.GroupNormalization(2)]
        layers += [keras.layers.Activation("tanh"), keras.layers.GlobalAveragePooling2D()]
    else:
        layers += [keras.layers.Dense(8, activation="tanh")]
    layers += [keras.layers.Dense(q, activation=activation if head else None)]
    return keras.Sequential(layers)


def make_batch(kind, body, n, weights="none", seed=0):
    """x, y, sample_weight; weights: "none", "some" (zeros and fractions), "zero" (all padding)."""
    rng = np.random.default_rng([seed, n])
    q = KINDS[kind][1]
    x = rng.normal(size=[n, *INPUTS[body]]).astype("float32")
    y = rng.integers(max(q, 2), size=n)
    if kind == "one_hot":
        y = np.eye(q, dtype="float32")[y]
    elif kind == "binary":
        y = y[:, None].astype("float32")
    elif kind != "sparse":
        y = 2 * rng.normal(size=(n, q)).astype("float32")
    s = rng.uniform(0.2, 2.0, n).astype("float32")
    s[1::3] = 0.0
    return x, y, {"none": None, "some": s, "zero": 0 * s}[weights]


def make_models(method, kind, body, epsilon, optimizer, **compile_options):
    """The compiled model, its networks, and for each network a twin that returns logits."""
    options = {"loss": KINDS[kind][2], "optimizer": optimizer, "epsilon": epsilon, **compile_options}
    if method in MAX_NORM:
        options["max_norm"] = MAX_NORM[method]
    model = prl.build(method, lambda: make_network(kind, body), **options)
    networks = [getattr(model, "network", model)]
    if method in PAIRS:
        networks = [model.network_a, model.network_b]
    twins = [make_network(kind, body, head=False) for _ in networks]
    reset(networks, twins)
    return model, networks, twins


def reset(networks, twins, scale=0.7):
    """Fixed weights, the same in a network and its twin, different from network to network."""
    rng = np.random.default_rng(7)
    for network, twin in zip(networks, twins, strict=True):
        weights = [scale * rng.normal(size=w.shape) for w in twin.weights]
        network.set_weights(weights)
        twin.set_weights(weights)


@functools.cache
def sgd_models(method, kind, body, epsilon):
    """Without a graph, which would be traced for each size; the epoch and Adam below have one."""
    return make_models(method, kind, body, epsilon, keras.optimizers.SGD(0.1), run_eagerly=True)


def oracle_step(method, kind, epsilon, twins, x, y, s):
    options = {"loss": KINDS[kind][3], "epsilon": epsilon, "max_norm": MAX_NORM.get(method)}
    return oracle.step(method, twins, x, y, s, **options)


def assert_same_weights(networks, twins):
    for network, twin in zip(networks, twins, strict=True):
        assert_all_close(network.get_weights(), twin.get_weights(), atol=2e-6)


def sgd_update(twins, gradients, velocity):
    """w <- w + v with v <- 0.9 v - 0.1 g; from an empty velocity plain SGD."""
    variables = [w for twin in twins for w in twin.trainable_weights]
    for w, g in zip(variables, [g for gs in gradients for g in gs], strict=True):
        velocity[id(w)] = 0.9 * velocity.get(id(w), 0) - 0.1 * g
        w.assign(w.numpy() + velocity[id(w)])


def assert_one_step(method, kind, body, epsilon, batch, scale=0.7):
    model, networks, twins = sgd_models(method, kind, body, epsilon)
    reset(networks, twins, scale)
    step = oracle_step(method, kind, epsilon, twins, *batch)
    model.train_on_batch(batch[0], batch[1], sample_weight=batch[2])
    sgd_update(twins, step.gradients, {})
    assert_same_weights(networks, twins)


# The library against the oracle.


BATCHES = [(1, "some"), (2, "some"), (7, "none"), (17, "some")]
BATCHES += [(1, "none"), (2, "none"), (7, "some"), (33, "none")]


@pytest.mark.daily("*-1-some", "*-2-some", "*-7-none", "*-17-some")
@pytest.mark.parametrize("n, weights", BATCHES)
@pytest.mark.parametrize("method", METHODS)
def test_one_step_equals_the_brute_force_oracle(method, n, weights):
    kind = kinds(method)[0]
    assert_one_step(method, kind, "mlp", 0.3, make_batch(kind, "mlp", n, weights))


@pytest.mark.parametrize("method", METHODS)
def test_a_batch_of_padding_moves_nothing(method):
    kind = kinds(method)[0]
    assert_one_step(method, kind, "mlp", 0.3, make_batch(kind, "mlp", 7, "zero"))


@pytest.mark.daily("spl-*", "prl_g-0.45-30", "co_prl_l-0.45-30")
# m = 20 of 30 count: (1 - 0.45) * 20 and (1 - 0.9) * 20 are whole on paper, not in floating point.
@pytest.mark.parametrize("epsilon, n", [(0.0, 7), (0.45, 30), (0.9, 30)])
@pytest.mark.parametrize("method", ["spl", "prl_l", "prl_g", "co_teaching", "co_prl_l"])
def test_every_epsilon(method, epsilon, n):
    assert_one_step(method, "sparse", "mlp", epsilon, make_batch("sparse", "mlp", n, "some"))


@pytest.mark.daily(
    "standard-*", "bootstrap-one_hot", "spl-mse", "prl_l-*", "prl_g-*", "co_prl_l-one_hot", "decouple-binary"
)
@pytest.mark.parametrize("method, kind", [(m, k) for m in METHODS for k in kinds(m)[1:] or ["mse"]])
def test_every_loss(method, kind):
    body = "convolution" if kind == "one_hot" or method == "huber" else "mlp"
    assert_one_step(method, kind, body, 0.3, make_batch(kind, body, 13, "some"))


@pytest.mark.fault(14)
@pytest.mark.parametrize("method", ["min_sgd", "spl", "prl_l", "prl_g"])
def test_ties_keep_the_earlier_example(method):
    # A network of zeros scores the targets 1 and -1 alike, and their gradients are opposite.
    x, y, s = make_batch("mse", "mlp", 7, "some")
    assert_one_step(method, "mse", "mlp", 0.3, (x, np.sign(y), s), scale=0.0)


@pytest.mark.daily("standard", "bootstrap", "prl_g", "co_prl_l")
@pytest.mark.parametrize("method", METHODS)
def test_an_epoch_with_momentum_and_a_ragged_last_batch(method):
    kind, optimizer = kinds(method)[0], keras.optimizers.SGD(0.1, momentum=0.9)
    model, networks, twins = make_models(method, kind, "mlp", 0.3, optimizer)
    x, y, s = make_batch(kind, "mlp", 16, "some")
    model.fit(x, y, sample_weight=s, batch_size=6, shuffle=False, verbose=0)
    velocity = {}
    for i in range(0, 16, 6):
        batch = x[i : i + 6], y[i : i + 6], s[i : i + 6]
        step = oracle_step(method, kind, 0.3, twins, *batch)
        sgd_update(twins, step.gradients, velocity)
    assert_same_weights(networks, twins)


@pytest.mark.daily("prl_l")
@pytest.mark.parametrize("method", ["spl", "prl_l", "prl_g"])
def test_adam(method):
    model, networks, twins = make_models(method, "sparse", "mlp", 0.3, keras.optimizers.Adam(0.01))
    first, second = {}, {}
    for t in (1, 2):
        x, y, s = make_batch("sparse", "mlp", 13, "some", seed=t)
        step = oracle_step(method, "sparse", 0.3, twins, x, y, s)
        model.train_on_batch(x, y, sample_weight=s)
        for j, g in enumerate(step.gradients[0]):
            # Kingma & Ba (2015), the reordering at the end of their Section 2.
            first[j] = 0.9 * first.get(j, 0) + 0.1 * g
            second[j] = 0.999 * second.get(j, 0) + 0.001 * g**2
            rate = 0.01 * np.sqrt(1 - 0.999**t) / (1 - 0.9**t)
            twins[0].trainable_weights[j].assign_sub(rate * first[j] / (second[j] ** 0.5 + 1e-7))
    assert_same_weights(networks, twins)


# The oracle against Keras's losses, the tape, and sums worked by hand.


@pytest.mark.parametrize("kind", [*KINDS, "huber"])
def test_oracle_losses_and_their_closed_forms(kind):
    _, _, loss, name = KINDS.get(kind, (None, 3, losses.Huber(), "huber"))
    kind = "mse" if kind == "huber" else kind
    network, twin = make_network(kind, "mlp"), make_network(kind, "mlp", head=False)
    reset([network], [twin])
    x, y, _ = make_batch(kind, "mlp", 9)
    for i in range(9):
        z = tf.constant(twin(x[i : i + 1])[0])
        with tf.GradientTape() as tape:
            tape.watch(z)
            value = oracle.example_loss(name, z, y[i])
        closed = oracle.loss_layer_gradient(name, z, y[i])
        np.testing.assert_allclose(tape.gradient(value, z), closed, rtol=2e-5, atol=1e-6)
        np.testing.assert_allclose(value, loss(y[i : i + 1], network(x[i : i + 1])), rtol=1e-5)


def linear(kernel):
    network = keras.Sequential([keras.Input([1]), keras.layers.Dense(len(kernel), use_bias=False)])
    network.set_weights([np.array([kernel])])
    return network


# Predictions 0 at x = 1: squared losses 1, 4, 9, 100, gradients -2, -4, -6, -20; Huber's are all
# clip(0 - t, -1, 1) = -1; clipped to 5 one by one they are -2, -4, -5, -5.
ONES, TARGETS = np.ones([4, 1]), np.array([[1.0], [2], [3], [10]])
BY_HAND = {"standard": -8, "huber": -1, "normclip": -5, "min_sgd": -2}
BY_HAND |= {"spl": -4, "prl_l": -4, "prl_g": -4, "ignormclip": -4}


@pytest.mark.parametrize("method, expected", BY_HAND.items())
def test_oracle_regression_by_hand(method, expected):
    step = oracle.step(method, [linear([0.0])], ONES, TARGETS, loss="mse", epsilon=0.25, max_norm=5)
    np.testing.assert_allclose(step.gradients[0][0], [[expected]], rtol=1e-6)


def test_oracle_pair_by_hand():
    # The second network predicts 10: losses 81, 64, 49, 0: it keeps the last three for the first.
    pair = [linear([0.0]), linear([10.0])]
    step = oracle.step("co_teaching", pair, ONES, TARGETS, loss="mse", epsilon=0.25)
    np.testing.assert_allclose(step.gradients[0][0], [[-(4 + 6 + 20) / 3]], rtol=1e-6)
    np.testing.assert_allclose(step.gradients[1][0], [[(18 + 16 + 14) / 3]], rtol=1e-6)


def test_oracle_of_differing_predictions_by_hand():
    # Logits [log 3, 0] and [-1, 0] at x = 1: both predict class 0 at x = 0, and differ at x = 1 and x = -1.
    pair = [linear([np.log(3), 0.0]), linear([-1.0, 0.0])]
    x, y = np.array([[1.0], [0], [-1], [1]]), np.array([0, 0, 0, 1])
    # p of the label: 3/4, 1/2, 1/4, 1/4 and sigmoid(-1), 1/2, sigmoid(1), sigmoid(1); 2 of the 3 are kept.
    step = oracle.step("co_teaching_plus", pair, x, y, loss="sparse_softmax_cross_entropy", epsilon=0.3)
    np.testing.assert_allclose(step.weights, [[0, 0, 2, 2], [2, 0, 2, 0]])


def test_oracle_labels_by_hand():
    # Logits [log 3, 0] at x = 1: probabilities 3/4, 1/4; the opposite network prefers class 1.
    a, b = linear([np.log(3), 0.0]), linear([-np.log(3), 0.0])
    loss = "sparse_softmax_cross_entropy"
    x, y = np.ones([1, 1]), np.array([1])
    step = oracle.step("bootstrap", [a], x, y, loss=loss)  # target 0.8 [0, 1] + 0.2 [1, 0]
    np.testing.assert_allclose(step.gradients[0][0], [[0.55, -0.55]], rtol=1e-6)
    x, y = np.array([[1.0], [0], [1], [1]]), np.array([1, 1, 0, 1])  # at x = 0 both predict class 0
    step = oracle.step("decouple", [a, b], x, y, [1, 1, 2, 0], loss=loss)
    np.testing.assert_allclose(step.weights[0], [1.5, 0, 1.5, 0])
    expected = (1.5 * 0.75 + 1.5 * 2 * -0.25) / 4
    np.testing.assert_allclose(step.gradients[0][0], [[expected, -expected]], rtol=1e-6)
