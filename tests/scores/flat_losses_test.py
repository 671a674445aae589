"""Losses whose gradient does not grow with the error: equal scores go by the loss, and are warned of."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

import prl_keras as prl

N, EPSILON = 256, 0.3
SAYS_SO = "does not grow with the error"


def quantile(y_true, y_pred):
    """The pinball loss of the 70% quantile."""
    error = y_true - y_pred
    return keras.ops.mean(keras.ops.maximum(0.7 * error, -0.3 * error), axis=-1)


def data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(N, 6)).astype("float32")
    y = (100 * x @ rng.normal(size=(6, 1)) + 500).astype("float32")
    wrong = rng.random(N) < EPSILON
    y[wrong] += 2000
    return x, y, wrong


def trained(loss, pair=False, epochs=8, callbacks=(), **kwargs):
    x, y, _ = data()
    networks = []
    for seed in (0, 1):
        keras.utils.set_random_seed(seed)
        parts = [
            keras.layers.Dense(32, "relu"),
            keras.layers.Dense(1, bias_initializer=keras.initializers.Constant(500)),
        ]
        networks.append(keras.Sequential([keras.Input((6,)), *parts]))
    rule = prl.Trim(EPSILON)
    model = prl.CoTeachingModel(*networks, rule=rule) if pair else prl.RobustModel(networks[0], rule=rule)
    model.compile(keras.optimizers.Adam(0.05), loss, **kwargs)
    model.fit(x, y, batch_size=64, epochs=epochs, verbose=0, callbacks=list(callbacks))
    return model


@pytest.mark.daily("quantile-False")
@pytest.mark.fault(27)
@pytest.mark.parametrize("pair", [False, True])
@pytest.mark.parametrize("loss", ["mae", keras.losses.Huber(1.0), quantile])
def test_the_largest_losses_are_dropped(loss, pair):
    x, y, wrong = data()
    with pytest.warns(UserWarning, match=SAYS_SO):
        model = trained(loss, pair)
    for network, weights in zip(model.networks[:: -1 if pair else 1], model.example_weights(x, y)):
        dropped = weights.numpy() == 0
        assert np.mean(wrong[dropped]) > 0.9
        losses = prl.scores.per_example_loss(y, network(x), loss).numpy()
        if loss == "mae":  # every score is the same
            np.testing.assert_array_equal(dropped, losses >= np.sort(losses)[-dropped.sum()])


@pytest.mark.long
def test_under_xla_and_with_more_examples_than_are_compared_in_pairs():
    x, y, wrong = data()
    with pytest.warns(UserWarning, match=SAYS_SO):
        model = trained("mae", jit_compile=True)
    select = tf.function(model.example_weights, jit_compile=True)
    dropped = select(tf.constant(x), tf.constant(y))[0].numpy() == 0
    assert dropped.sum() == N - int((1 - EPSILON) * N + 1e-6)
    assert np.mean(wrong[dropped]) > 0.9


def test_losses_that_grow_are_compared_by_the_score_alone():
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=f".*{SAYS_SO}")
        trained("mse", epochs=2)
        trained(keras.losses.Huber(1e6), epochs=2)


@pytest.mark.fault(27)
def test_check_has_a_line():
    x, y, _ = data()
    lines = {}
    for loss in ("mse", "mae", keras.losses.Huber(1.0)):
        model = prl.RobustModel(keras.Sequential([keras.Input((6,)), keras.layers.Dense(1)]))
        model.compile("sgd", loss)
        line = next(line for line in prl.check(model, (x[:64], y[:64])).lines if line.topic == "ties")
        lines[str(loss)] = line.is_ok
        assert line.is_ok or "score='loss'" in line.text
    assert list(lines.values()) == [True, False, False]


@pytest.mark.fault(27)
def test_audit_falls_back_to_the_losses():
    x, y, wrong = data()
    record = prl.SelectionRecord((x, y))
    with pytest.warns(UserWarning, match=SAYS_SO):
        model = trained("mae", callbacks=[record])
    with_record, without = prl.audit(model, (x, y), record), prl.audit(model, (x, y))
    np.testing.assert_array_equal(with_record["rank"], without["rank"])
    assert wrong[with_record["rank"] <= wrong.sum()].mean() > 0.9
