"""Schedules that leave their range are named before the epoch; losses in a list of one get an estimate."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

import prl_keras as prl
from prl_keras.rules.epsilon import is_in_range

X, Y = np.random.default_rng(0).normal(size=(16, 4)).astype("float32"), np.arange(16) % 3
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


class From(keras.optimizers.schedules.LearningRateSchedule):
    """`before` until `step`, then `after`."""

    def __init__(self, step, after, before=0.25):
        self.step, self.after, self.before = step, after, before

    def __call__(self, step):
        return tf.where(tf.cast(step, tf.int64) < self.step, self.before, self.after)


def network(structure=lambda t: t):
    inputs = keras.Input((4,))
    return keras.Model(inputs, structure(keras.layers.Dense(3, name="out")(inputs)))


def compiled(epsilon=0.25, rate=0.1, method="prl_l", eager=True):
    optimizer = keras.optimizers.SGD(rate)
    return prl.build(method, network, epsilon=epsilon, loss=LOSS, optimizer=optimizer, run_eagerly=eager)


def fit(model, epochs=2):
    model.fit(X, Y, batch_size=4, epochs=epochs, verbose=0)


@pytest.mark.daily("0-*", "3-*")
@pytest.mark.fault(48)
@pytest.mark.parametrize("eager", [True, False])
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["epsilon", "learning rate"])
@pytest.mark.parametrize("step", [0, 3, 4])
def test_one_that_is_not_finite_is_named_before_the_epoch(eager, value, name, step):
    model = compiled(**{"epsilon" if name == "epsilon" else "rate": From(step, value)}, eager=eager)
    before = model.network.get_weights()
    with pytest.raises(ValueError, match=rf"schedule of the {name}, From, gives {value} at step {step};"):
        fit(model)
    assert int(model.optimizer.iterations) == 4 * (step // 4)
    if step < 4:
        np.testing.assert_array_equal(model.network.get_weights()[0], before[0])
    assert all(np.isfinite(weight).all() for weight in model.network.get_weights())


@pytest.mark.fault(48)
def test_the_counter_of_a_strategy_is_read_too():
    with tf.distribute.MirroredStrategy(["CPU:0"]).scope():
        counter = keras.optimizers.SGD(0.1).iterations
    assert is_in_range("epsilon", From(3, 0.5), counter, 5) and not is_in_range(
        "epsilon", From(3, 1), counter, 5
    )


@pytest.mark.fault(48)
@pytest.mark.parametrize("value", [-0.1, 1.0, 1.5])
def test_an_epsilon_outside_of_the_range_is_warned_of_once(value):
    with pytest.warns(UserWarning, match=r"schedule of epsilon, From, leaves \[0, 1\)") as found:
        fit(compiled(epsilon=From(5, value)), epochs=3)
    assert sum("schedule of epsilon" in str(each.message) for each in found) == 1


@pytest.mark.parametrize("method", ["prl_l", "co_prl_l", "spl"])
def test_good_ones_get_no_word(method):
    ramp = prl.linear_ramp(0.4, 6)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*schedule")
        fit(compiled(ramp, keras.optimizers.schedules.CosineDecay(2.0, 8), method))


@pytest.mark.daily("tensor-name", "list-dict")
@pytest.mark.fault(48)
@pytest.mark.parametrize(
    "loss", [[LOSS], ["sparse_categorical_crossentropy"], {"out": LOSS}], ids=["list", "name", "dict"]
)
@pytest.mark.parametrize("structure", [lambda t: t, lambda t: [t]], ids=["tensor", "list"])
def test_auto_takes_a_loss_in_a_list_or_dict_of_one(loss, structure):
    def fitted(loss):
        keras.utils.set_random_seed(0)
        model = prl.build(
            "prl_l", lambda: network(structure), epsilon="auto", ramp_steps=2, loss=loss, optimizer="sgd",
            run_eagerly=True,
        )  # fmt: skip
        fit(model)
        return model.epsilon_estimate

    alone = keras.tree.flatten(loss)[0]
    assert fitted(loss) == fitted(alone) is not None


@pytest.mark.fault(48)
def test_auto_takes_a_regression_loss_in_a_list_of_one():
    def fitted(loss):
        keras.utils.set_random_seed(0)
        model = prl.build(
            "prl_l", network, epsilon="auto", ramp_steps=2, loss=loss, optimizer="sgd", run_eagerly=True
        )
        model.fit(X, X[:, :3], batch_size=4, verbose=0)
        return model.epsilon_estimate

    assert fitted(["mse"]) == fitted("mse") is not None
