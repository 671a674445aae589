"""A number that identifies an example, however the data are shuffled and batched."""

from typing import Any

import keras
import tensorflow as tf

_A, _B = 0x2545F4914F6CDD1D, 0x369DEA0F31A53F85  # multipliers of xorshift64* and of l'Ecuyer's congruences


def fingerprints(x: Any, y: Any, positions: int | None = None) -> tf.Tensor:
    """A hash of all the numbers of each example, inputs and targets.

        h = sum_j a_j * b_j  (mod 2**64),  b_j the j-th number: an integer, or the bits of a float32

    with fixed odd `a_j`. Integers have no rounding, so the hash is the same at any place of any batch, on any
    device. The `a_j` are pseudorandom, so two different examples share a hash with a probability below 2**-32
    (multilinear hashing, Dietzfelbinger 1996).

    Args:
        x, y: Structures of dense tensors `[batch, ...]`: numbers or strings.
        positions: About the number of entries of each tensor of `x` to use, evenly spaced; None for all.

    Returns:
        int64 `[batch]`.

    Raises:
        ValueError: for sparse or ragged tensors.
    """
    total = tf.zeros([], tf.int64)
    inputs, targets = ([leaf for leaf in keras.tree.flatten(part) if leaf is not None] for part in (x, y))
    for i, leaf in enumerate([*inputs, *targets]):
        if isinstance(leaf, (tf.SparseTensor, tf.RaggedTensor)):
            raise ValueError("A sparse or ragged tensor has no fingerprint; give a dense one.")
        values = tf.convert_to_tensor(leaf)
        values = tf.reshape(values, [tf.shape(values)[0], tf.reduce_prod(tf.shape(values)[1:])])
        if positions is not None and i < len(inputs):
            values = values[:, :: tf.maximum(1, tf.shape(values)[1] // positions)]
        values = _as_integers(values)
        factors = _odd_numbers(tf.shape(values)[1], seed=i)
        total += tf.reduce_sum(values * factors, axis=1)
    return total


def _as_integers(tensor):
    """The tensor as int64, in the same shape."""
    if tensor.dtype == tf.string:
        tensor = tf.strings.to_hash_bucket_fast(tensor, 2**62)
    elif tensor.dtype.is_floating:
        tensor = tf.bitcast(tf.cast(tensor, tf.float32), tf.int32)
    return tf.cast(tensor, tf.int64)


def _odd_numbers(count, seed):
    """int64 `[count]`, fixed for each seed."""
    numbers = (tf.range(1, tf.cast(count, tf.int64) + 1) + (seed << 32)) * _A
    for _ in range(2):
        numbers = tf.bitwise.bitwise_xor(numbers, tf.bitwise.right_shift(numbers, 29)) * _B
    return tf.bitwise.bitwise_or(numbers, 1)
