"""Examples in a device's memory: batches are row numbers, and the steps of a model gather the rows there."""

import functools
import hashlib
import weakref
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from prl_keras.experiments.data.batches import batches, shuffled_batches

_ROWS = "rows_on_device"  # the key of the row numbers, which tells such a batch from others
_HEADROOM = 4  # the training must find so many times the memory of the examples
_BYTES = np.arange(256, dtype=np.float32) / np.float32(255)
_copies: weakref.WeakValueDictionary[Any, "OnDevice"] = weakref.WeakValueDictionary()


class OnDevice:
    """Examples in the memory of one device.

    Float32 images whose values are all k / 255 take a byte each, as in the files of CIFAR. Other arrays are
    kept as they are. A device is such as "GPU:0".
    """

    def __init__(self, x: np.ndarray, device: str) -> None:
        stored = as_bytes(x)
        self.is_bytes = stored is not None
        with tf.device(device):
            # A variable: on a GPU TensorFlow gathers bytes from variables, and from tensors only under XLA.
            self._values = tf.Variable(x if stored is None else stored, trainable=False)

    def __len__(self) -> int:
        return int(self._values.shape[0])

    @property
    def nbytes(self) -> int:
        """The memory that it takes."""
        return int(np.prod(self._values.shape)) * self._values.dtype.size

    def gather(self, rows: tf.Tensor) -> tf.Tensor:
        """The rows of x, exactly: bytes are looked up, since compilers round a division by 255 otherwise."""
        values = tf.gather(self._values, rows)
        return tf.gather(_BYTES, tf.cast(values, tf.int32)) if self.is_bytes else values


def as_bytes(x: np.ndarray) -> np.ndarray | None:
    """`x` as uint8 k if every value is float32 k / 255, else None."""
    if x.dtype != np.float32:
        return None
    found = np.empty(x.shape, np.uint8)
    for start in range(0, len(x), 4096):  # no further copy of a large x
        part = x[start : start + 4096]
        if not (np.min(part, initial=0) >= 0 and np.max(part, initial=0) <= 1):  # false for NaN
            return None
        codes = np.rint(part * np.float32(255)).astype(np.uint8)
        if not np.array_equal(_BYTES[codes], part):
            return None
        found[start : start + 4096] = codes
    return found


def place(arrays: Sequence[np.ndarray], device: str) -> list[OnDevice] | None:
    """Each array in the device's memory, or None if they leave too little of it for the training.

    Equal arrays share one copy for as long as it is used.
    """
    placed = []
    try:
        for x in arrays:
            key = (device, x.shape, x.dtype.str, hashlib.sha1(np.ascontiguousarray(x).data).digest())
            copy = _copies.get(key)
            if copy is None:
                copy = _copies[key] = OnDevice(x, device)
            placed.append(copy)
        with tf.device(device):
            _allocate(_HEADROOM * sum(copy.nbytes for copy in placed))
    except tf.errors.ResourceExhaustedError:
        return None
    return placed


def shuffled_rows(
    y: np.ndarray, batch_size: int, seed: int, first_epoch: int = 0
) -> tuple[tf.data.Dataset, int]:
    """The batches of `shuffled_batches`, with row numbers in place of x. The arguments are the same."""
    data, steps = shuffled_batches(_numbers(y), y, batch_size, seed, first_epoch)
    return data.map(_named), steps


def rows(y: np.ndarray, batch_size: int) -> tf.data.Dataset:
    """The batches of `batches`, with row numbers in place of x."""
    return batches(_numbers(y), y, batch_size).map(_named)


def gather_in_steps(model: keras.Model, train: OnDevice, test: OnDevice) -> None:
    """From now on `fit` and `evaluate` of a model take batches of row numbers too.

    The rows are those of `train` where `fit` trains, by `shuffled_rows`, and of `test` elsewhere, by `rows`.
    The model is on one device. A step that is traced already is kept if it gathers from the same examples.
    """
    for name, traced, source in (
        ("train_step", "train_function", train),
        ("test_step", "test_function", test),
    ):
        if getattr(getattr(model, name), "source", None) is not source:
            step = getattr(type(model), name).__get__(model)
            setattr(model, name, _gathering(step, source))
            setattr(model, traced, None)


def _gathering(step, source):
    @functools.wraps(step)
    def gathering(data):
        if isinstance(data[0], dict) and _ROWS in data[0]:
            data = (source.gather(data[0][_ROWS]), *data[1:])
        return step(data)

    gathering.source = source
    return gathering


def _numbers(y):
    return np.arange(len(y), dtype=np.int32)


def _named(numbers, y):
    return {_ROWS: numbers}, y


def _allocate(size):
    """Takes that many bytes of the current device's memory, and gives them back.

    Raises:
        tf.errors.ResourceExhaustedError: if they are not free.
    """
    tf.zeros([size], tf.uint8)
