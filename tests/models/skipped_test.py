"""Targets that a loss skips, and a training of which every step is skipped."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from arrays import assert_all_close

import prl_keras as prl

RNG = np.random.default_rng(0)
N = 12
X = RNG.normal(size=(N, 5)).astype("float32")
Y = RNG.normal(size=(N, 4)).astype("float32")
Y[np.arange(N), RNG.integers(0, 4, N)] = np.nan  # one of four coordinates is missing
OPTIONS = [{}, {"recompute": True}, {"score": "loss"}, {"score": None}, {"score": "gradient"}]


def skips(y_true, y_pred):
    is_known = tf.math.is_finite(y_true)
    return tf.reduce_sum(tf.where(is_known, tf.square(tf.where(is_known, y_true, 0.0) - y_pred), 0.0), -1) / 3


class Skips(keras.losses.Loss):
    def call(self, y_true, y_pred):
        return skips(y_true, y_pred)


def has_no_gradient(y_true, y_pred):
    squares = tf.square(y_true - y_pred)
    return tf.reduce_sum(tf.where(tf.math.is_nan(squares), 0.0, squares), axis=-1)


def skips_all_but_the_first(y_true, y_pred):
    return tf.where(tf.math.is_nan(y_true[:, 0]), np.nan, skips(y_true, y_pred))


def network(several=False):
    keras.utils.set_random_seed(1)
    inputs = keras.Input((5,))
    dense = keras.layers.Dense(4)(inputs)
    return keras.Model(inputs, [dense, keras.layers.Dense(1)(inputs)] if several else dense)


def trained(model, loss, y=Y, x=X, batch_size=6, **options):
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), loss, run_eagerly=True)
    logs = model.fit(x, y, shuffle=False, batch_size=batch_size, epochs=2, verbose=0, **options).history
    return model.get_weights(), logs


@pytest.mark.daily("options0-skips", "options3-loss1")
@pytest.mark.fault(37)
@pytest.mark.parametrize("loss", [skips, Skips(), [skips, "mse"]])
@pytest.mark.parametrize("options", OPTIONS)
def test_a_loss_that_skips_missing_targets_trains_as_in_keras(loss, options):
    several = isinstance(loss, list)
    y = [Y, X[:, :1]] if several else Y
    plain, plain_logs = trained(network(several), loss, y)
    ours, logs = trained(prl.RobustModel(network(several), rule=prl.Trim(0.0), **options), loss, y)
    assert_all_close(ours, plain)
    np.testing.assert_allclose(logs["loss"], plain_logs["loss"], rtol=1e-5)
    assert logs["nonfinite"] == [0, 0]


@pytest.mark.fault(37)
@pytest.mark.parametrize("score", ["loss", "loss_layer_gradient", "gradient"])
def test_they_are_ranked_by_what_is_not_missing(score):
    model = prl.RobustModel(network(), score, prl.Trim(0.5))
    model.compile("sgd", skips, run_eagerly=True)
    known = np.isfinite(Y)
    error = np.where(known, np.where(known, Y, 0) - network()(X), 0)
    expected = {
        "loss": np.sum(error**2, axis=1) / 3,
        "loss_layer_gradient": 2 * np.linalg.norm(error, axis=1) / 3,
        "gradient": 2 * np.linalg.norm(error, axis=1) / 3 * np.sqrt(1 + np.sum(X**2, axis=1)),
    }[score]
    np.testing.assert_allclose(model.example_scores(X, Y)[0], expected, rtol=1e-4)
    np.testing.assert_allclose(prl.score_examples(model, (X, Y)), expected, rtol=1e-4)


@pytest.mark.daily("options0", "options2")
@pytest.mark.fault(37)
@pytest.mark.parametrize("options", [{}, {"recompute": True}, {"score": None}, {"score": "gradient"}])
def test_a_target_whose_loss_is_not_finite_is_bad_alone(options):
    y = np.where(np.isnan(Y), 0, Y)
    y[[2, 7], 0] = np.nan
    y[[3, 9], 1] = np.nan
    loss, good = skips_all_but_the_first, np.delete(np.arange(N), [2, 7])
    ours, logs = trained(prl.RobustModel(network(), rule=prl.Trim(0.0), **options), loss, y)
    plain, _ = trained(network(), loss, y[good], X[good], batch_size=5)
    assert_all_close(ours, plain)
    assert logs["nonfinite"] == [2, 2] and np.isfinite(logs["loss"]).all()


class Ended(keras.callbacks.Callback):
    epochs = 0

    def on_epoch_end(self, epoch, logs=None):
        self.epochs += 1


@pytest.mark.daily("*-False")
@pytest.mark.fault(37)
@pytest.mark.parametrize("pair", [False, True])
@pytest.mark.parametrize(
    ("x", "y", "loss"),
    [
        (np.full_like(X, np.nan), X[:, :4], "mse"),
        (X, np.full((N, 4), np.nan), "mse"),
        (X, Y, has_no_gradient),
    ],
)
def test_a_training_of_skipped_steps_alone_is_said_and_ends(x, y, loss, pair):
    def model():
        networks = [network() for _ in range(2)]
        networks[1].set_weights([w + 0.1 for w in networks[1].get_weights()])
        rule = prl.Trim(0.25)
        return prl.CoTeachingModel(*networks, rule=rule) if pair else prl.RobustModel(networks[0], rule=rule)

    ended = Ended()
    with pytest.warns(UserWarning, match="Nothing was trained in a whole epoch"):
        _, logs = trained(model(), loss, y, x, callbacks=[keras.callbacks.TerminateOnNaN(), ended])
    assert np.isnan(logs["loss"]).all() and ended.epochs == 1
    with pytest.raises(RuntimeError, match="NaN or Inf loss"), pytest.warns(UserWarning):
        trained(model(), loss, y, x, callbacks=[keras.callbacks.TerminateOnNaN(raise_error=True)])


@pytest.mark.fault(37)
def test_one_finite_batch_is_enough_to_go_on(recwarn):
    x = X.copy()
    x[:6] = np.nan
    ended = Ended()
    callbacks = [keras.callbacks.TerminateOnNaN(), ended]
    _, logs = trained(prl.RobustModel(network()), "mse", X[:, :4], x, callbacks=callbacks)
    assert ended.epochs == 2 and np.isfinite(logs["loss"]).all()
    assert not [warning for warning in recwarn if "Nothing was trained" in str(warning.message)]
