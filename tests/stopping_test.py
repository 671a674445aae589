"""LabelWave: the shares that it counts, where it stops, and that it finds the epoch before memorizing."""

import keras
import numpy as np
import pytest

import prl_keras as prl

X = np.zeros((10, 1), "float32")


class Scripted(keras.Model):
    """Predicts the classes of a script: after epoch e the first `script[e]` examples are of class 1."""

    def __init__(self, script):
        super().__init__()
        self.script, self.epoch = script, 0
        self.state = self.add_weight(shape=(), initializer="zeros")

    def call(self, x):
        return x

    def train_step(self, data):
        self.state.assign_add(1.0)
        return {"loss": 0.0}

    def predict(self, x, **_):
        classes = np.arange(len(x)) < self.script[int(self.state) - 1]
        return np.eye(2)[classes.astype(int)]


def fitted(script, **options):
    model = Scripted(script)
    model.compile(run_eagerly=True)
    wave = prl.LabelWave(X, **options)
    history = model.fit(X, X, batch_size=10, epochs=len(script), callbacks=[wave], verbose=0)
    return model, wave, history


def test_counts_the_predictions_that_changed():
    _, wave, history = fitted([0, 4, 6, 6, 5], window=1, patience=9)
    assert wave.changed == [0.4, 0.2, 0.0, 0.1]
    assert history.history["changed"] == wave.changed


# Changes: .5 .3 .1 .2 .3 .4 .0
SCRIPT = [0, 5, 8, 9, 7, 4, 8, 8]


@pytest.mark.parametrize(
    "window, patience, best, stopped",
    [
        (1, 1, 3, 4),  # .1 is the first minimum
        (1, 3, 3, 6),
        (1, 4, 7, None),  # the last, 0, is lower
        (2, 1, 4, 5),  # averages .5 .4 .2 .15 .25
    ],
)
def test_stops_at_the_first_minimum_and_restores_its_weights(window, patience, best, stopped):
    model, wave, _ = fitted(SCRIPT, window=window, patience=patience)
    averages = [np.mean(wave.changed[max(0, i - window + 1) : i + 1]) for i in range(len(wave.changed))]
    assert (wave.best_epoch, wave.stopped_epoch) == (best, stopped)
    assert wave.best_epoch == int(np.argmin(np.round(averages, 9))) + 1
    trained = best if stopped is not None else len(SCRIPT) - 1
    assert int(model.state) == trained + 1


def test_without_restoring_the_last_weights_stay():
    model, wave, _ = fitted(SCRIPT, window=1, patience=1, restore_best_weights=False)
    assert int(model.state) == wave.stopped_epoch + 1 == 5


def test_a_second_fit_begins_anew():
    model, wave, _ = fitted(SCRIPT, window=1, patience=1)
    model.state.assign(0)
    model.fit(X, X, batch_size=10, epochs=2, callbacks=[wave], verbose=0)
    assert wave.changed == [0.5] and wave.stopped_epoch is None


@pytest.mark.daily("prl_l")
@pytest.mark.parametrize("method", ["standard", "prl_l", "co_prl_l"])
def test_goes_with_every_kind_of_model(method):
    x, y = np.random.default_rng(0).normal(size=(40, 3)).astype("float32"), np.arange(40) % 3
    model = prl.build(
        method,
        lambda: keras.Sequential([keras.Input((3,)), keras.layers.Dense(3)]),
        epsilon=0.2,
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        optimizer="adam",
    )
    history = model.fit(x, y, epochs=2, callbacks=[prl.LabelWave(x)], verbose=0).history
    assert 0 <= history["changed"][0] <= 1


@pytest.mark.long
def test_stops_before_wrong_labels_are_memorized():
    """Where plain training ends far below its best, it stops near the best."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype("float32")
    noisy = prl.corrupt("symmetric", y[:1200], 0.4, 0).targets

    def accuracy(callbacks):
        keras.utils.set_random_seed(0)
        dense = keras.layers.Dense
        model = keras.Sequential([keras.Input((64,)), dense(256, "relu"), dense(256, "relu"), dense(10)])
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.Adam(0.002), loss, metrics=["accuracy"])
        model.fit(x[:1200], noisy, batch_size=64, epochs=40, callbacks=callbacks, verbose=0)
        return model.evaluate(x[1200:], y[1200:], verbose=0)[1]

    wave = prl.LabelWave(x[:1200])
    assert accuracy([wave]) > accuracy([]) + 0.1
    assert wave.stopped_epoch is not None and wave.stopped_epoch < 30


def test_a_flag_is_true_or_false():
    with pytest.raises(ValueError, match="restore_best_weights='no' must be True or False"):
        prl.LabelWave(X, restore_best_weights="no")


@pytest.mark.parametrize("options", [{"window": 0}, {"patience": 0}, {"batch_size": 1.5}])
def test_bad_numbers(options):
    (name,) = options
    with pytest.raises(ValueError, match=f"{name}=.* must be a whole number of at least 1"):
        prl.LabelWave(X, **options)


def test_a_regression_is_refused():
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match=r"the model predicts \(10, 1\): it needs one output"):
        model.fit(X, X, callbacks=[prl.LabelWave(X)], verbose=0)
