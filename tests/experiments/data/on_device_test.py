"""Examples on the device: exactly those of the host, in the same order, if they fit."""

import gc

import keras
import numpy as np
import pytest
import tensorflow as tf

from prl_keras.experiments.data import on_device
from prl_keras.experiments.data.batches import batches, shuffled_batches
from prl_keras.experiments.data.on_device import (
    OnDevice,
    as_bytes,
    gather_in_steps,
    place,
    rows,
    shuffled_rows,
)

N = 23
BYTES = np.random.default_rng(0).permutation(np.arange(N * 48) % 256).astype("uint8").reshape(N, 4, 4, 3)
IMAGES = np.divide(BYTES, np.float32(255), dtype="float32")  # as data.cifar divides
VECTORS = np.random.default_rng(1).normal(size=(N, 6)).astype("float32")
Y = np.arange(N, dtype="int64") * 10


class TestBytes:
    def test_images_of_bytes_are_told_exactly(self):
        found = as_bytes(IMAGES)
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, BYTES)

    @pytest.mark.parametrize(
        "wrong", [-1 / 255, 256 / 255, 0.5, np.nan, np.inf, np.nextafter(np.float32(1), 0)]
    )
    def test_one_other_value_is_enough_to_keep_floats(self, wrong):
        images = np.tile(IMAGES, (200, 1, 1, 1))  # more than one piece
        assert as_bytes(images) is not None
        images[-1, 0, 0, 0] = wrong
        assert as_bytes(images) is None

    @pytest.mark.parametrize("dtype", ["float64", "uint8", "int64"])
    def test_other_dtypes_stay(self, dtype):
        assert as_bytes(np.ones((3, 2), dtype)) is None


@pytest.mark.parametrize("x", [IMAGES, VECTORS, BYTES, Y], ids=["images", "vectors", "bytes", "numbers"])
@pytest.mark.parametrize("jit_compile", [False, True])
def test_gathered_rows_are_the_rows(x, jit_compile):
    placed = OnDevice(x, "CPU:0")
    numbers = np.random.default_rng(2).integers(0, N, 40).astype("int32")
    found = tf.function(placed.gather, jit_compile=jit_compile)(tf.constant(numbers))
    assert found.dtype == x.dtype and len(placed) == N
    np.testing.assert_array_equal(found, x[numbers])


def test_images_take_a_byte_for_each_value():
    assert OnDevice(IMAGES, "CPU:0").nbytes == IMAGES.size
    assert OnDevice(VECTORS, "CPU:0").nbytes == 4 * VECTORS.size


class Recorder(keras.Model):
    """Writes down the batches of its steps."""

    def __init__(self):
        super().__init__()
        self.seen = {"train": [], "test": []}
        self.compile(run_eagerly=True)

    def train_step(self, data):
        self.seen["train"].append([part.numpy() for part in data])
        return {"loss": 0.0}

    def test_step(self, data):
        self.seen["test"].append([part.numpy() for part in data])
        return {"loss": 0.0}


def test_fit_sees_the_batches_of_the_host_in_the_same_order():
    seen = []
    for is_on_device in (False, True):
        model = Recorder()
        if is_on_device:
            gather_in_steps(model, *place([IMAGES, IMAGES[::-1]], "CPU:0"))
            (train, steps), test = shuffled_rows(Y, 5, 7, 2), rows(Y, 4)
        else:
            (train, steps), test = shuffled_batches(IMAGES, Y, 5, 7, 2), batches(IMAGES[::-1], Y, 4)
        model.fit(train, steps_per_epoch=steps, epochs=2, validation_data=test, shuffle=False, verbose=0)
        model.evaluate(IMAGES[:3], Y[:3], verbose=0)  # examples themselves are taken as before
        seen.append(model.seen)
    assert len(seen[0]["train"]) == 10 and len(seen[0]["test"]) == 13
    np.testing.assert_equal(*seen)


def test_equal_arrays_share_their_memory_while_it_is_used():
    one, other = place([IMAGES, VECTORS], "CPU:0")
    assert place([IMAGES.copy()], "CPU:0")[0] is one and place([IMAGES[:-1]], "CPU:0")[0] is not one
    before = len(on_device._copies)
    del one, other
    gc.collect()
    assert len(on_device._copies) < before


def test_a_step_traced_for_the_same_examples_is_kept():
    model = Recorder()
    for examples in (IMAGES, IMAGES.copy(), VECTORS):
        placed = place([examples, examples], "CPU:0")
        gather_in_steps(model, *placed)
        traced = model.train_step
        gather_in_steps(model, *place([examples.copy(), examples], "CPU:0"))
        assert model.train_step is traced and traced.source is placed[0]


@pytest.mark.long  # TensorFlow waits ten seconds for memory
def test_what_leaves_too_little_memory_stays_on_the_host(monkeypatch):
    assert place([IMAGES], "CPU:0") is not None
    monkeypatch.setattr(on_device, "_HEADROOM", 2**40)
    assert place([IMAGES], "CPU:0") is None
