"""Batches: every example once an epoch, in an order that can be repeated."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from prl_keras.experiments.data.batches import batches, shuffled_batches
from prl_keras.experiments.runs.networks import make_network

N = 23  # batches of 5: 5 5 5 5 3
X = np.arange(N, dtype="float32")[:, None]
Y = np.arange(N, dtype="int64") * 10


class Recorder(keras.Model):
    """Writes down the batches that `fit` hands to a train step, in order."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def train_step(self, data):
        self.seen.append(data[0][:, 0].numpy().astype(int).tolist())
        return {"loss": 0.0}


def batches_seen_by_fit(epochs, initial_epoch=0, seed=7):
    data, steps = shuffled_batches(X, Y, 5, seed, initial_epoch)
    recorder = Recorder()
    recorder.compile(run_eagerly=True)
    fit = {"initial_epoch": initial_epoch, "steps_per_epoch": steps, "shuffle": False, "verbose": 0}
    recorder.fit(data, epochs=epochs, **fit)
    return recorder.seen


def one_epoch(*arguments):
    data, steps = shuffled_batches(*arguments)
    return list(data.take(steps).as_numpy_iterator())


def order_of(epoch, seed=7):
    return [x[:, 0].astype(int).tolist() for x, _ in one_epoch(X, Y, 5, seed, epoch)]


def test_a_resumed_fit_sees_the_batches_of_an_uninterrupted_one():
    straight = batches_seen_by_fit(epochs=3)
    assert len(straight) == 15
    assert batches_seen_by_fit(epochs=3, initial_epoch=2) == straight[10:]
    assert straight == [batch for epoch in range(3) for batch in order_of(epoch)]


def test_trained_weights_after_resuming_equal_those_of_one_run():
    def train(*spans):
        network = make_network("mlp", (1,), 1)
        network.compile(keras.optimizers.SGD(1e-3), "mse")
        for first, last in spans:
            data, steps = shuffled_batches(X / N, X / N, 5, seed=7, first_epoch=first)
            fit = {"epochs": last, "initial_epoch": first, "verbose": 0, "shuffle": False}
            network.fit(data, steps_per_epoch=steps, **fit)
        return network.get_weights()

    np.testing.assert_equal(train((0, 2), (2, 3)), train((0, 3)))


@pytest.mark.parametrize("first_epoch", [0, 2])
def test_epochs_follow_one_another(first_epoch):
    data, steps = shuffled_batches(X, Y, 5, 7, first_epoch)
    seen = [x[:, 0].astype(int).tolist() for x, _ in data.take(2 * steps).as_numpy_iterator()]
    assert steps == 5
    assert seen == order_of(first_epoch) + order_of(first_epoch + 1)


def test_every_example_once_per_epoch_and_a_ragged_last_batch():
    for epoch in range(4):
        seen = order_of(epoch)
        assert [len(batch) for batch in seen] == [5, 5, 5, 5, 3]
        assert sorted(np.concatenate(seen)) == list(range(N))


def test_order_differs_from_epoch_to_epoch_and_from_seed_to_seed():
    orders = [np.concatenate(order_of(epoch, seed)) for epoch in range(4) for seed in range(3)]
    orders.append(np.arange(N))
    assert len({tuple(order) for order in orders}) == len(orders)
    # (seed, epoch) is not merged into one number such as seed + epoch.
    assert order_of(epoch=1, seed=2) != order_of(epoch=2, seed=1)


def test_same_order_however_often_the_data_are_read():
    data, steps = shuffled_batches(X, Y, 5, 7)
    orders = [[y.tolist() for _, y in data.take(3 * steps).as_numpy_iterator()] for _ in range(2)]
    assert orders[0] == orders[1]
    assert orders[0][:steps] != orders[0][2 * steps :]


def test_x_and_y_stay_together_and_keep_dtype():
    for x, y in one_epoch(X, Y, 5, 0):
        np.testing.assert_array_equal(x[:, 0] * 10, y)
        assert (x.dtype, y.dtype) == ("float32", "int64")


@pytest.mark.parametrize(("n", "batch_size", "steps"), [(23, 5, 5), (20, 5, 4), (3, 5, 1), (1, 1, 1)])
def test_number_of_batches(n, batch_size, steps):
    arguments = X[:n], Y[:n], batch_size
    assert shuffled_batches(*arguments, 0)[1] == steps
    assert sum(len(y) for _, y in one_epoch(*arguments, 0)) == n
    data = batches(*arguments)
    assert data.cardinality().numpy() == len(list(data)) == steps


def test_order_does_not_depend_on_the_global_seed():
    tf.random.set_seed(1)
    one = order_of(1)
    tf.random.set_seed(2)
    assert order_of(1) == one


def test_batches_are_in_order():
    seen = list(batches(X, Y, 5).as_numpy_iterator())
    np.testing.assert_array_equal(np.concatenate([x for x, _ in seen]), X)
    np.testing.assert_array_equal(np.concatenate([y for _, y in seen]), Y)
    assert len(seen[-1][0]) == 3


@pytest.mark.parametrize(
    ("x", "y", "batch_size", "message"),
    [
        (None, Y, 5, r"x is None; at least one example \[n, ...\] is needed"),
        (X, None, 5, "y is None"),
        (X[:0], Y[:0], 5, r"x is an array of shape \(0, 1\); at least one example"),
        (X, np.float32(3), 5, r"y is an array of shape \(\)"),
        (X, Y[:-1], 5, "x has 23 examples but y has 22"),
        (X, Y, 0, "batch_size=0 must be a whole number of at least 1"),
        (X, Y, 2.5, "batch_size=2.5 must be"),
        (X, Y, True, "batch_size=True must be"),
    ],
)
def test_errors_of_batches(x, y, batch_size, message):
    with pytest.raises(ValueError, match=message):
        shuffled_batches(x, y, batch_size, seed=0)
    with pytest.raises(ValueError, match=message):
        batches(x, y, batch_size)


@pytest.mark.parametrize("seed", [None, -1, 1.0, "0"])
def test_errors_of_seeds(seed):
    with pytest.raises(ValueError, match=f"seed={seed!r} must be a whole number of at least 0"):
        shuffled_batches(X, Y, 5, seed)
    with pytest.raises(ValueError, match=f"first_epoch={seed!r} must be a whole number of at least 0"):
        shuffled_batches(X, Y, 5, 0, seed)
