"""What a run logs of its predictions: those that changed, and wrong labels among them; averaged weights."""

import keras
import numpy as np
import pytest

import prl_keras as prl
from prl_keras.experiments.data.load import load
from prl_keras.experiments.runs import run as runs
from prl_keras.experiments.runs.config import RunConfig
from prl_keras.experiments.runs.predicted import MOST_CHANGED, MOST_MEMORIZED, Changed, Memorized
from prl_keras.experiments.runs.training import Training

CONFIG = {"dataset": "digits", "method": "standard", "epochs": 4, "batch_size": 64, "network": "mlp"}


def predicts(classes):
    """A network whose prediction for the k-th unit vector is `classes[k]`."""
    network = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4, use_bias=False)])
    network.layers[0].set_weights([np.eye(4)[list(classes)]])
    return network


@pytest.mark.parametrize("batch_size", [1, 3, 1000])
def test_compares_with_the_epoch_before(batch_size):
    model, callback, logs = predicts((0, 1, 2, 3)), Changed(np.eye(4, dtype="float32"), batch_size), {}
    callback.set_model(model)
    callback.on_train_begin()
    found = []
    for classes in ((1, 1, 2, 3), (1, 2, 3, 0), (1, 2, 3, 0)):
        model.set_weights(predicts(classes).get_weights())
        callback.on_epoch_end(0, logs)
        found.append(logs["changed"])
    assert found == [0.25, 0.75, 0.0]


def test_looks_at_the_first_examples_only():
    assert len(Changed(np.zeros((MOST_CHANGED + 50, 4))).x) == MOST_CHANGED


@pytest.mark.long
def test_says_where_label_wave_stops(tmp_path):
    training = Training(RunConfig(**CONFIG), load("digits"))
    wave = prl.LabelWave(training.dataset.train_x, patience=CONFIG["epochs"])
    history = training.fit(tmp_path, callbacks=[wave])
    assert history["changed"][0] > 0.5  # from the initial weights
    assert history["changed"].tolist()[1:] == wave.changed
    assert wave.best_epoch == 1 + prl.stopping.first_minimum(history["changed"][1:])[0]


@pytest.mark.daily("normclip")
@pytest.mark.parametrize("method", ["standard", "normclip", "co_prl_l"])
def test_a_run_tests_and_saves_the_averaged_weights(tmp_path, method):
    config = RunConfig(**{**CONFIG, "method": method, "ema": 0.9})
    training = Training(config, load("digits"))
    averages, network = [], (training.model if method != "co_prl_l" else training.model.network_a)

    class Average(keras.callbacks.Callback):
        """The average by hand; the first step starts it."""

        def on_train_batch_end(self, batch, logs=None):
            weights = network.get_weights()
            averages[:] = [0.9 * a + 0.1 * w for a, w in zip(averages, weights)] if averages else weights

    training.model.steps_per_execution = 1
    history = training.fit(tmp_path, callbacks=[Average()])
    for found, expected in zip(network.get_weights(), averages, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)
    data = training.dataset
    accuracy = np.mean(training.model.predict(data.test_x, verbose=0).argmax(axis=1) == data.test_y)
    if method != "co_prl_l":  # the metric of a pair sees both predictions
        assert history["test_accuracy"].iloc[-1] == pytest.approx(accuracy, abs=1e-6)


@pytest.mark.long
def test_an_averaged_run_resumes_exactly(tmp_path):
    class Killed(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 1:
                raise KeyboardInterrupt

    config, data = RunConfig(**{**CONFIG, "ema": 0.9}), load("digits")
    whole = runs.run(config, tmp_path / "whole", verbose=0, dataset=data)
    with pytest.raises(KeyboardInterrupt):
        runs.run(config, tmp_path / "killed", verbose=0, callbacks=[Killed()], dataset=data)
    resumed = runs.run(config, tmp_path / "killed", resume=True, verbose=0, dataset=data)
    assert {**resumed, "seconds_per_epoch": 0} == {**whole, "seconds_per_epoch": 0}


@pytest.mark.parametrize("ema", [-0.1, 1.0, "0.9", True])
def test_rejects_an_invalid_momentum(ema):
    with pytest.raises(ValueError, match=r"ema=.* must be a number in \[0, 1\)"):
        RunConfig(ema=ema)


X = np.eye(4, dtype="float32")[[0, 1, 2, 3, 0, 1]]
LABELS = np.array([1, 1, 3, 3, 0, 2])
IS_CORRUPTED = np.array([True, False, True, False, False, True])


def logged(model, *arguments, **options):
    callback = Memorized(*arguments, **options)
    callback.set_model(model)
    logs = {}
    callback.on_epoch_end(0, logs)
    return logs["memorized"]


@pytest.mark.parametrize("batch_size", [1, 2, 1000])
@pytest.mark.parametrize(
    "classes, share",
    [((1, 2, 3, 0), 1), ((0, 1, 2, 3), 0), ((1, 1, 3, 3), 2 / 3)],  # wrong: 0 -> 1, 2 -> 3, 1 -> 2
)
def test_counts_the_wrong_labels_that_are_predicted(classes, share, batch_size):
    model = predicts(classes)
    found = logged(model, X, LABELS, IS_CORRUPTED, batch_size=batch_size)
    assert found == pytest.approx(share)


def test_a_pair_predicts_by_the_mean_of_its_networks():
    pair = prl.CoTeachingModel(predicts((1, 1, 3, 3)), predicts((1, 1, 3, 3)))
    assert logged(pair, X, LABELS, IS_CORRUPTED) == pytest.approx(2 / 3)


def test_looks_at_the_first_wrong_labels_only():
    n = MOST_MEMORIZED + 50
    assert len(Memorized(np.zeros((n, 4), "float32"), np.zeros(n, int), np.ones(n, bool)).x) == MOST_MEMORIZED


@pytest.mark.daily("digits-symmetric*")
@pytest.mark.parametrize(
    "dataset, corruption, epsilon, expected",
    [("digits", "symmetric", 0.5, True), ("digits", "none", 0, False), ("teacher", "signflip", 0.3, False)],
)
def test_a_run_logs_it_where_labels_are_wrong(tmp_path, dataset, corruption, epsilon, expected):
    config = RunConfig(
        dataset, "standard", corruption, epsilon, epochs=1, batch_size=64, network="mlp", train_size=128
    )
    table = Training(config, load(dataset)).fit(tmp_path)
    assert ("memorized" in table) == expected
