"""Keras's `set_floatx("float64")` with every score, and losses that layers add in their own precision."""

import keras
import numpy as np
import pytest
from keras import layers

import prl_keras as prl

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(16, 6)), RNG.integers(0, 3, 16)
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


@pytest.fixture
def float64():
    policy = keras.config.dtype_policy()
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    yield
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy(policy)


def network(kind):
    keras.utils.set_random_seed(0)
    middle = {
        "regularizer": [layers.Dense(4, "tanh", kernel_regularizer="l2")],
        "activity": [layers.Dense(4, "tanh", activity_regularizer="l2")],
        "map": [layers.Dense(4, "tanh", kernel_regularizer="l2"), layers.Lambda(lambda t: t + 0.0)],
        "normalization": [layers.Dense(4), layers.LayerNormalization(), layers.Dropout(0.0)],
    }[kind]
    return keras.Sequential([keras.Input((6,)), *middle, layers.Dense(3)])


def fit(model, **data):
    model.compile(keras.optimizers.SGD(0.5), LOSS, run_eagerly=True)
    model.fit(X, Y, batch_size=8, shuffle=False, verbose=0, **data)
    return model.get_weights()


@pytest.mark.daily(
    "{'score': 'loss', *-regularizer",
    "{'score': 'gradient', 'rule': Trim(epsilon=0.0, min_keep_per_class=0)}-regularizer",
    "{'score': None}-map",
    "{'score': 'loss_layer*-normalization",
)
@pytest.mark.fault(42)
@pytest.mark.filterwarnings("ignore:The per-example gradients")
@pytest.mark.parametrize("kind", ["regularizer", "activity", "map", "normalization"])
@pytest.mark.parametrize(
    "options",
    [
        {"score": "loss", "rule": prl.Trim(0.0)},
        {"score": "loss_layer_gradient", "rule": prl.Trim(0.0), "recompute": True},
        {"score": "gradient", "rule": prl.Trim(0.0)},
        {"score": "gradient", "rule": prl.ClipNorm(np.inf)},
        {"score": "gradient", "rule": prl.Trim(0.0), "microbatch_size": 5},
        {"score": None},
    ],
    ids=str,
)
def test_dropping_nothing_is_plain_fit(float64, kind, options):
    model = prl.RobustModel(network(kind), **options)
    for a, b in zip(fit(network(kind)), fit(model), strict=True):
        assert a.dtype == b.dtype == np.float64
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.fault(42)
@pytest.mark.parametrize("score", ["loss", "loss_layer_gradient", "gradient"])
def test_the_examples_of_float32_are_dropped(float64, score):
    weights, start = [], network("regularizer").get_weights()
    for dtype in ("float64", "float32"):
        keras.config.set_floatx(dtype)
        keras.config.set_dtype_policy(dtype)
        model = prl.RobustModel(network("regularizer"), score, prl.Trim(0.3))
        model.network.set_weights(start)
        model.compile("sgd", LOSS)
        weights.append(model.example_weights(X.astype(dtype), Y, np.ones((16, 1), dtype))[0])
    np.testing.assert_allclose(*weights)


@pytest.mark.fault(42)
def test_the_score_functions(float64):
    y_pred = RNG.normal(size=(16, 3))
    for score in (prl.scores.per_example_loss, prl.scores.loss_layer_gradient_norm):
        ours = score(Y, keras.ops.convert_to_tensor(y_pred), LOSS)
        assert ours.dtype == "float32"
