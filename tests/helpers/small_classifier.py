"""A network of one layer and 12 examples of 3 classes, as arrays and as every other kind of data."""

import contextlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from arrays import assert_all_equal
from keras import layers

import prl_keras as prl

X, Y = np.random.default_rng(0).normal(size=(12, 4)).astype("float32"), np.arange(12) % 3
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
DATA = tf.data.Dataset.from_tensor_slices
BAD = np.where(np.arange(12) == 5, 7, Y)  # in the second batch of four


def network(*more, inputs=None, outputs=3, seed=0):
    keras.utils.set_random_seed(seed)
    return keras.Sequential([keras.Input((4,)) if inputs is None else inputs, *more, layers.Dense(outputs)])


def compiled(net=None, loss=LOSS, jit_compile="auto", **options):
    model = prl.RobustModel(net or network(), **options)
    model.compile(keras.optimizers.SGD(0.1), loss, jit_compile=jit_compile)
    return model


@contextlib.contextmanager
def refused(model, message):
    """A ValueError, after which the weights are as before."""
    before = model.get_weights()
    with pytest.raises(ValueError, match=message):
        yield
    assert_all_equal(model.get_weights(), before)


class Batches(keras.utils.PyDataset):
    def __init__(self, *parts, **kwargs):
        super().__init__(**kwargs)
        self.parts = parts

    def __len__(self):
        return -(-len(self.parts[0]) // 4)

    def __getitem__(self, i):
        return tuple(part[4 * i : 4 * i + 4] for part in self.parts)


def generator(*parts):
    return (batch for batch in [Batches(*parts)[i] for i in range(3)])


SOURCES = {
    "dataset": lambda *parts: DATA(parts).batch(4),
    "py_dataset": Batches,
    "generator": generator,
}
