"""A search that takes seconds: a network, a space and 60 examples, for the tests of tuning."""

import keras
import numpy as np

from prl_keras.tuning.hypermodel import RobustHyperModel
from prl_keras.tuning.tuner import make_tuner

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def make_network():
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])


def hypermodel(**space):
    return RobustHyperModel(make_network, loss=LOSS, metrics=["accuracy"], **space)


def examples():
    """`(x, y)` of three classes, all labels right."""
    x = np.random.default_rng(0).normal(size=(60, 4)).astype("float32")
    return x, np.argmax(x[:, :3], axis=1)


def search(
    directory, data, space=None, kind="random", objective="val_trimmed_loss", test_data=None, **options
):
    """A `RobustTuner` that has searched in directory/search."""
    options = {"epochs": 2, "max_trials": 3, **options}
    tuner = make_tuner(kind, hypermodel(**(space or {})), objective, directory / "search", **options)
    tuner.search(*data, verbose=0, test_data=test_data)
    return tuner
