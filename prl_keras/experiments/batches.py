"""Batches of arrays, in an order that can be repeated."""

import numbers

import keras
import numpy as np
import tensorflow as tf


def shuffled_batches(x, y, batch_size, seed):
    """Batches for `fit`, in an order that is a pure function of (seed, epoch).

        batches, set_epoch = shuffled_batches(x, y, 128, seed=0)
        model.fit(batches, epochs=50, initial_epoch=20, callbacks=[set_epoch], shuffle=False)

    Guarantees:
        * Every example once per epoch; the last batch holds the n mod batch_size left over.
        * A run resumed at epoch e sees the batches of an uninterrupted run: nothing but the
          epoch, which the callback sets in `on_epoch_begin`, decides the order.
        * x and y lie in host memory once, whatever the number of epochs.

    Without the callback every epoch has the order of epoch 0. Keras makes a new iterator for each
    epoch, after `on_epoch_begin`, only where it counts the steps itself: `fit` with a
    `steps_per_epoch` other than the number of batches is refused by the callback.

    Args:
        x: array `[n, ...]`, n >= 1.
        y: array `[n, ...]` of the same length.
        batch_size: integer >= 1.
        seed: integer >= 0.

    Returns:
        `(tf.data.Dataset of (x, y), keras.callbacks.Callback)`.

    Raises:
        ValueError: arrays missing, empty or of different lengths; batch_size or seed not as above.
    """
    x, y, batch_size = _check_examples(x, y, batch_size)
    seed = check_integer("seed", seed, 0)
    n, steps = len(x), -(-len(x) // batch_size)
    with tf.device("CPU"):  # where tf.data runs; it cannot read a variable of an accelerator
        x, y = tf.constant(x), tf.constant(y)
        epoch = tf.Variable(0, dtype=tf.int64, trainable=False)

    def one_epoch(_):  # run anew by each iterator, hence with the epoch of that moment
        return _order(n, batch_size, seed, epoch)

    batches = tf.data.Dataset.range(1).flat_map(one_epoch)
    batches = batches.map(lambda rows: (tf.gather(x, rows), tf.gather(y, rows)))
    batches = batches.apply(tf.data.experimental.assert_cardinality(steps))
    return batches.prefetch(tf.data.AUTOTUNE), _SetEpoch(epoch, steps)


def shuffled_stream(x, y, batch_size, seed, first_epoch=0):
    """The batches of `shuffled_batches`, epoch after epoch without end, for `fit` with `steps_per_epoch`.

        stream, steps = shuffled_stream(x, y, 128, seed=0, first_epoch=20)
        model.fit(stream, epochs=50, initial_epoch=20, steps_per_epoch=steps, shuffle=False)

    Keras keeps one iterator for all the epochs then. Making one takes tens of milliseconds, as long as
    several steps of a small network.

    Args:
        x, y, batch_size, seed: As for `shuffled_batches`.
        first_epoch: integer >= 0, the epoch with which the stream begins.

    Returns:
        `(tf.data.Dataset of (x, y), the number of batches of an epoch)`.
    """
    x, y, batch_size = _check_examples(x, y, batch_size)
    seed, first_epoch = check_integer("seed", seed, 0), check_integer("first_epoch", first_epoch, 0)
    n = len(x)
    with tf.device("CPU"):
        x, y = tf.constant(x), tf.constant(y)
    epochs = tf.data.Dataset.range(first_epoch, np.iinfo(np.int64).max)
    stream = epochs.flat_map(lambda epoch: _order(n, batch_size, seed, epoch))
    stream = stream.map(lambda rows: (tf.gather(x, rows), tf.gather(y, rows)))
    return stream.prefetch(tf.data.AUTOTUNE), -(-n // batch_size)


def batches(x, y, batch_size):
    """Batches in the order of the arrays, for `evaluate` and `predict`; arguments as above."""
    x, y, batch_size = _check_examples(x, y, batch_size)
    with tf.device("CPU"):
        return tf.data.Dataset.from_tensor_slices((x, y)).batch(batch_size).prefetch(1)


def check_integer(name, value, smallest):
    """`value` as an int, or a ValueError if it is not an integer >= `smallest`."""
    is_integer = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not is_integer or value < smallest:
        raise ValueError(f"{name}={value!r} must be an integer >= {smallest}.")
    return int(value)


def _order(n, batch_size, seed, epoch):
    """The rows of each batch of an epoch, a `tf.data.Dataset`: a function of its arguments alone."""
    order = tf.random.experimental.stateless_shuffle(tf.range(n), seed=[seed, epoch])
    return tf.data.Dataset.from_tensor_slices(order).batch(batch_size)


class _SetEpoch(keras.callbacks.Callback):
    """Tells the data of `shuffled_batches` which epoch it is."""

    def __init__(self, epoch, steps):
        super().__init__()
        self._epoch = epoch
        self._steps = steps

    def on_train_begin(self, logs=None):
        steps = (self.params or {}).get("steps", self._steps)
        if steps != self._steps:
            raise ValueError(
                f"fit runs {steps} steps per epoch, but the data have {self._steps} batches: "
                "leave out steps_per_epoch, or the epochs would not be passes over the data."
            )

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch.assign(epoch)


def _check_examples(x, y, batch_size):
    for name, array in (("x", x), ("y", y)):
        if array is None or np.ndim(array) == 0 or len(array) == 0:
            shape = "None" if array is None else f"an array of shape {np.shape(array)}"
            raise ValueError(f"{name} is {shape}; at least one example [n, ...] is needed.")
    if len(x) != len(y):
        raise ValueError(f"x has {len(x)} examples but y has {len(y)}: give one y for each x.")
    return np.asarray(x), np.asarray(y), check_integer("batch_size", batch_size, 1)
