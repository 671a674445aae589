"""The share of wrong training labels that a network predicts."""

import keras
import numpy as np
import pytest

import prl_keras as prl
from prl_keras.experiments.data.load import load
from prl_keras.experiments.runs.config import RunConfig
from prl_keras.experiments.runs.predicted import MOST_MEMORIZED, Memorized
from prl_keras.experiments.runs.training import Training

X = np.eye(4, dtype="float32")[[0, 1, 2, 3, 0, 1]]
LABELS = np.array([1, 1, 3, 3, 0, 2])
IS_CORRUPTED = np.array([True, False, True, False, False, True])


def predicts(classes):
    """A network whose prediction for the k-th unit vector is `classes[k]`."""
    network = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4, use_bias=False)])
    network.layers[0].set_weights([np.eye(4)[list(classes)]])
    return network


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
    x = np.zeros((n, 4), "float32")
    assert len(Memorized(x, np.zeros(n, int), np.ones(n, bool)).x) == MOST_MEMORIZED


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
