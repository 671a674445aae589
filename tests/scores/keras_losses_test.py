"""All the losses of Keras: trained as in Keras, and ranked by their own values."""

import inspect

import keras
import numpy as np
import pytest

import prl_keras as prl

RNG = np.random.default_rng(0)
N = 8
X = RNG.normal(size=(N, 4)).astype("float32")
STEPS = RNG.normal(size=(N, 6, 3)).astype("float32")
VALUES = RNG.normal(size=(N, 3)).astype("float32")
SHARES = RNG.dirichlet(np.ones(3), N).astype("float32")
CLASSES = RNG.integers(0, 3, N)
SIGNS = np.sign(VALUES)
L = keras.losses
# Loss -> (the network's last activation, targets)
LOSSES = {
    L.MeanSquaredError(): (None, VALUES),
    L.MeanAbsoluteError(): (None, VALUES),
    L.MeanAbsolutePercentageError(): (None, VALUES),
    L.MeanSquaredLogarithmicError(): ("exponential", np.abs(VALUES)),
    L.CosineSimilarity(): (None, VALUES),
    L.Huber(): (None, VALUES),
    L.LogCosh(): (None, VALUES),
    L.Hinge(): (None, SIGNS),
    L.SquaredHinge(): (None, SIGNS),
    L.CategoricalHinge(): (None, np.eye(3, dtype="float32")[CLASSES]),
    L.KLDivergence(): ("softmax", SHARES),
    L.Poisson(): ("exponential", np.abs(VALUES)),
    L.BinaryCrossentropy(): ("sigmoid", (VALUES > 0).astype("float32")),
    L.BinaryFocalCrossentropy(): ("sigmoid", (VALUES > 0).astype("float32")),
    L.CategoricalCrossentropy(): ("softmax", SHARES),
    L.CategoricalFocalCrossentropy(): ("softmax", SHARES),
    L.SparseCategoricalCrossentropy(): ("softmax", CLASSES),
    L.CategoricalGeneralizedCrossEntropy(): ("softmax", CLASSES),
    L.Dice(axis=(1,)): ("sigmoid", (VALUES > 0).astype("float32")),
    L.Tversky(axis=(1,)): ("sigmoid", (VALUES > 0).astype("float32")),
    L.CTC(): ("steps", RNG.integers(0, 5, (N, 3))),
    L.Circle(): ("unit", CLASSES),
}
BY_NAME = {loss.name: loss for loss in LOSSES}


def network(activation):
    keras.utils.set_random_seed(1)
    if activation == "steps":
        return keras.Sequential([keras.Input((6, 3)), keras.layers.Dense(5)])
    if activation == "unit":
        return keras.Sequential([keras.Input((4,)), keras.layers.Dense(5), keras.layers.UnitNormalization()])
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, activation)])


def case(name, **options):
    """A plain network or `RobustModel`, compiled; inputs and targets."""
    loss = BY_NAME[name]
    activation, y = LOSSES[loss]
    model = network(activation)
    if options:
        model = prl.RobustModel(model, **options)
    model.compile(keras.optimizers.SGD(0.1), loss, run_eagerly=True)
    return model, STEPS if activation == "steps" else X, y


def fitted(model, x, y):
    logs = model.fit(x, y, batch_size=N, shuffle=False, verbose=0).history
    return model.get_weights(), logs["loss"][0]


def test_no_loss_of_keras_is_missing():
    classes = {value for value in vars(keras.losses).values() if inspect.isclass(value)} - {L.Loss}
    assert classes == {type(loss) for loss in LOSSES}


@pytest.mark.daily("mean_squared_error", "hinge", "binary_crossentropy", "kl_divergence")
@pytest.mark.fault(32)
@pytest.mark.parametrize("name", BY_NAME)
def test_dropping_nothing_is_plain_fit(name):
    weights, loss = fitted(*case(name))
    ours, our_loss = fitted(*case(name, score="loss", rule=prl.Trim(0.0)))
    np.testing.assert_allclose(our_loss, loss, rtol=1e-5)
    for a, b in zip(ours, weights, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.fault(32)
@pytest.mark.parametrize("name", BY_NAME)
def test_examples_are_ranked_by_the_values_of_the_loss(name):
    model, x, y = case(name, score="loss")
    expected = BY_NAME[name].call(keras.ops.convert_to_tensor(y, "float32"), model.network(x))
    np.testing.assert_allclose(model.example_scores(x, y)[0], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.daily(
    "mean_squared_error-*",
    "mean_absolute_error-*",
    "huber_loss-*",
    "hinge-*",
    "kl_divergence-*",
    "binary_crossentropy-*",
    "sparse_categorical_crossentropy-*",
    "ctc-*",
    "circle-*",
)
@pytest.mark.fault(32)
@pytest.mark.parametrize(
    ("name", "score"),
    [
        *[(name, "loss_layer_gradient") for name in BY_NAME],
        *[(name, "gradient") for name in ("ctc", "circle", "kl_divergence", "categorical_hinge")],
    ],
)
def test_gradients_are_those_of_one_example(name, score):
    model, x, y = case(name, score=score, rule=prl.Trim(0.25))
    refused = {"circle": "compares the examples of a batch.*Write score='loss'"}
    refused |= {"ctc": "TensorFlow cannot vectorize"} if score == "gradient" else {}
    if name in refused:
        with pytest.raises(ValueError, match=refused[name]):
            model.fit(x, y, verbose=0)
        return
    scores = model.example_scores(x, y)[0]
    alone = [model.example_scores(x[i : i + 1], y[i : i + 1])[0][0] for i in range(N)]
    np.testing.assert_allclose(scores, alone, rtol=1e-3, atol=1e-5)


@pytest.mark.fault(32)
@pytest.mark.parametrize(
    ("name", "loss", "message"),
    [
        ("dice", L.Dice(), r"must give one value per example.*Write axis=\(1,\) in the loss"),
        ("tversky", L.Tversky(), r"Write axis=\(1,\) in the loss"),
        ("circle", L.Circle(), "recompute=True trains on the kept ones alone"),
    ],
)
def test_what_has_no_value_for_an_example_is_refused(name, loss, message):
    model, x, y = case(name, score="loss", recompute=name == "circle")
    model.compile("sgd", loss, run_eagerly=True)
    with pytest.raises(ValueError, match=message):
        model.fit(x, y, verbose=0)
