"""Batches of arrays, in a repeatable order."""

import numpy as np
import tensorflow as tf

from prl_keras.validate import check_integer


def shuffled_batches(
    x: np.ndarray, y: np.ndarray, batch_size: int, seed: int, first_epoch: int = 0
) -> tuple[tf.data.Dataset, int]:
    """Endless batches for `fit`; the order of an epoch is a pure function of (seed, epoch).

        data, steps = shuffled_batches(x, y, 128, seed=0, first_epoch=20)
        model.fit(data, epochs=50, initial_epoch=20, steps_per_epoch=steps, shuffle=False)

    Guarantees:
        * Every example comes once per epoch; the last batch of an epoch holds the n mod batch_size left over.
        * A run resumed at epoch e, with `first_epoch=e`, sees the batches of an uninterrupted run.
        * Host memory holds x and y once, for any number of epochs.

    The batches are endless and `fit` counts the steps, so that Keras keeps one iterator for all epochs. A new
    iterator takes tens of milliseconds, as long as several steps of a small network.

    Args:
        x: array `[n, ...]`, n >= 1.
        y: array `[n, ...]` of the same length.
        batch_size: integer >= 1.
        seed: integer >= 0.
        first_epoch: integer >= 0, the epoch of the first batch.

    Returns:
        `(tf.data.Dataset of (x, y), the number of batches in an epoch)`.

    Raises:
        ValueError: for arrays that are missing, empty or of different lengths, or an invalid integer.
    """
    x, y, batch_size = _check_examples(x, y, batch_size)
    seed, first_epoch = check_integer("seed", seed, 0), check_integer("first_epoch", first_epoch, 0)
    n = len(x)
    with tf.device("CPU"):  # where tf.data runs
        x, y = tf.constant(x), tf.constant(y)

    def rows_of_batches(epoch):
        order = tf.random.experimental.stateless_shuffle(tf.range(n), seed=[seed, epoch])
        return tf.data.Dataset.from_tensor_slices(order).batch(batch_size)

    epochs = tf.data.Dataset.range(first_epoch, np.iinfo(np.int64).max)
    data = epochs.flat_map(rows_of_batches).map(lambda rows: (tf.gather(x, rows), tf.gather(y, rows)))
    return data.prefetch(tf.data.AUTOTUNE), -(-n // batch_size)


def batches(x: np.ndarray, y: np.ndarray, batch_size: int) -> tf.data.Dataset:
    """Batches in the order of the arrays, for `evaluate` and `predict`; arguments as above."""
    x, y, batch_size = _check_examples(x, y, batch_size)
    with tf.device("CPU"):
        return tf.data.Dataset.from_tensor_slices((x, y)).batch(batch_size).prefetch(1)


def _check_examples(x, y, batch_size):
    for name, array in (("x", x), ("y", y)):
        if array is None or np.ndim(array) == 0 or len(array) == 0:
            shape = "None" if array is None else f"an array of shape {np.shape(array)}"
            raise ValueError(f"{name} is {shape}; at least one example [n, ...] is needed.")
    if len(x) != len(y):
        raise ValueError(f"x has {len(x)} examples but y has {len(y)}: give one y for each x.")
    return np.asarray(x), np.asarray(y), check_integer("batch_size", batch_size, 1)
