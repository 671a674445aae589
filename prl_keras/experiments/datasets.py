"""Data sets small enough for every machine, and batches whose order can be repeated."""

import dataclasses
import numbers
import types

import keras
import numpy as np
import tensorflow as tf


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Train and test arrays with clean targets.

    Attributes:
        name: the key of `DATASETS`.
        task: "classification" or "regression".
        train_x, test_x: float32 `[n, ...]`.
        train_y, test_y: int64 labels `[n]`, or float32 targets `[n, q]`.
        num_outputs: number of classes, or q.
    """

    name: str
    task: str
    train_x: np.ndarray
    train_y: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray
    num_outputs: int


def load(name, seed=0):
    """The `Dataset` of that name; `seed` (int >= 0) matters only where data are made up.

    Raises:
        ValueError: an unknown name, or a seed that is not an integer >= 0.
    """
    if name not in DATASETS:
        raise ValueError(f"name={name!r} is unknown; use one of {tuple(DATASETS)}.")
    return DATASETS[name](_check_integer("seed", seed, 0))


def digits(seed=0):
    """8x8 handwritten digits of scikit-learn: x in [0, 1] `[n, 8, 8, 1]`, 10 classes.

    1,437 train and 360 test images, stratified by class; the split is fixed, whatever the seed.
    """
    del seed  # nothing here is drawn
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise ImportError("digits come with scikit-learn: install it, or use 'teacher'.") from error
    images, labels = load_digits(return_X_y=True)
    images = (images.reshape(-1, 8, 8, 1) / 16).astype(np.float32)  # pixels are 0, ..., 16
    labels = labels.astype(np.int64)
    split = {"test_size": 360, "stratify": labels, "random_state": 0}
    train_x, test_x, train_y, test_y = train_test_split(images, labels, **split)
    return Dataset("digits", "classification", train_x, train_y, test_x, test_y, 10)


def teacher(seed=0):
    """Regression on a random network, 2,000 train and 500 test examples, p = 20, q = 4.

        x ~ N(0, I_p),  y = tanh(x A / sqrt(p)) B / sqrt(h) + 0.05 N(0, I_q),  h = 32,

    A `[p, h]` and B `[h, q]` standard normal. Then each coordinate of y is shifted and scaled so
    that its train part has mean 0 and standard deviation 1. All is drawn from `seed`.
    """
    rng = np.random.default_rng(seed)
    p, h, q, train, n = 20, 32, 4, 2000, 2500
    first, second = rng.standard_normal((p, h)), rng.standard_normal((h, q))
    x = rng.standard_normal((n, p))
    y = np.tanh(x @ first / np.sqrt(p)) @ second / np.sqrt(h)
    y += 0.05 * rng.standard_normal((n, q))
    y = (y - y[:train].mean(axis=0)) / y[:train].std(axis=0)
    x, y = x.astype(np.float32), y.astype(np.float32)
    return Dataset("teacher", "regression", x[:train], y[:train], x[train:], y[train:], q)


#: name -> loader `(seed=0) -> Dataset`. `load` is the way in that checks its arguments.
DATASETS = types.MappingProxyType({"digits": digits, "teacher": teacher})


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
    seed = _check_integer("seed", seed, 0)
    n, steps = len(x), -(-len(x) // batch_size)
    with tf.device("CPU"):  # where tf.data runs; it cannot read a variable of an accelerator
        x, y = tf.constant(x), tf.constant(y)
        epoch = tf.Variable(0, dtype=tf.int64, trainable=False)

    def one_epoch(_):
        # Run anew by each iterator, hence with the epoch of that moment.
        order = tf.random.experimental.stateless_shuffle(tf.range(n), seed=[seed, epoch])
        return tf.data.Dataset.from_tensor_slices(order).batch(batch_size)

    batches = tf.data.Dataset.range(1).flat_map(one_epoch)
    batches = batches.map(lambda rows: (tf.gather(x, rows), tf.gather(y, rows)))
    batches = batches.apply(tf.data.experimental.assert_cardinality(steps))
    return batches.prefetch(tf.data.AUTOTUNE), _SetEpoch(epoch, steps)


def batches(x, y, batch_size):
    """Batches in the order of the arrays, for `evaluate` and `predict`; arguments as above."""
    x, y, batch_size = _check_examples(x, y, batch_size)
    with tf.device("CPU"):
        return tf.data.Dataset.from_tensor_slices((x, y)).batch(batch_size).prefetch(1)


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
    return np.asarray(x), np.asarray(y), _check_integer("batch_size", batch_size, 1)


def _check_integer(name, value, smallest):
    is_integer = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not is_integer or value < smallest:
        raise ValueError(f"{name}={value!r} must be an integer >= {smallest}.")
    return int(value)
