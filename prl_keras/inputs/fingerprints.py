"""A number that identifies an example, however the data are shuffled and batched."""

import math
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

_A, _B = 0x2545F4914F6CDD1D, 0x369DEA0F31A53F85  # multipliers of xorshift64* and of l'Ecuyer's congruences


def fingerprints(x: Any, y: Any, strides: Sequence[int] = ()) -> tf.Tensor:
    """A hash of all the numbers of each example, inputs and targets.

        h = sum_j a_j * b_j  (mod 2**64),  b_j the j-th number: an integer, or the bits of a float32

    with fixed odd `a_j`. Integers have no rounding, so the hash is the same at any place of any batch, on any
    device. The `a_j` are pseudorandom, so two different examples share a hash with a probability below 2**-32
    (multilinear hashing, Dietzfelbinger 1996).

    A sparse tensor has the hash of the dense one, as 0 adds nothing. In a ragged tensor the lengths are
    hashed, too.

    Args:
        x, y: Structures of tensors `[batch, ...]` of any kind: numbers or strings.
        strides: From `strides_for`, to use only some of the numbers of `x`; all if it is empty.

    Returns:
        int64 `[batch]`.
    """
    total = tf.zeros([], tf.int64)
    inputs, targets = ([leaf for leaf in keras.tree.flatten(part) if leaf is not None] for part in (x, y))
    steps = [*strides, *[1] * (len(inputs) + len(targets) - len(strides))]
    for seed, (leaf, step) in enumerate(zip([*inputs, *targets], steps)):
        if isinstance(leaf, tf.SparseTensor):
            total += _of_sparse(leaf, step, seed)
        elif isinstance(leaf, tf.RaggedTensor):
            total += _of_ragged(leaf, seed)
        else:
            total += _of_dense(tf.convert_to_tensor(leaf), step, seed)
    return total


def strides_for(x: Any, positions: int) -> list[int]:
    """For each tensor of a batch `x`, the stride that uses about `positions` numbers of a row."""
    leaves = [leaf for leaf in keras.tree.flatten(x) if leaf is not None]
    return [max(1, math.prod(size or 1 for size in leaf.shape[1:]) // positions) for leaf in leaves]


def _of_dense(tensor, step, seed):
    values = tf.reshape(tensor, [tf.shape(tensor)[0], tf.reduce_prod(tf.shape(tensor)[1:])])
    values = _as_integers(values[:, ::step])
    return tf.reduce_sum(values * _odd_numbers(tf.range(tf.shape(values)[1]), seed), axis=1)


def _of_sparse(tensor, step, seed):
    sizes = tensor.dense_shape[1:]
    places = tf.reduce_sum(
        tensor.indices[:, 1:] * tf.math.cumprod(sizes, exclusive=True, reverse=True), axis=1
    )
    values = tf.where(places % step == 0, _as_integers(tensor.values), 0)
    products = values * _odd_numbers(places // step, seed)
    return tf.math.unsorted_segment_sum(products, tensor.indices[:, 0], tensor.dense_shape[0])


def _of_ragged(tensor, seed):
    """The hash of the numbers of each row, and of the lengths on each ragged axis."""
    total = tf.zeros([], tf.int64)
    parts = [tensor, *(tensor.row_lengths(axis=axis + 1) for axis in range(tensor.ragged_rank))]
    for i, part in enumerate(parts):
        if not isinstance(part, tf.RaggedTensor):  # the lengths on the first ragged axis
            part = tf.RaggedTensor.from_uniform_row_length(part, 1)
        rows = part if part.shape.rank == 2 else part.merge_dims(1, -1)
        places = tf.range(tf.size(rows.values)) - tf.gather(
            tf.cast(rows.row_starts(), tf.int32), rows.value_rowids()
        )
        products = _as_integers(rows.values) * _odd_numbers(places, (i << 16) + seed)
        total += tf.math.unsorted_segment_sum(products, rows.value_rowids(), rows.nrows())
    return total


def _as_integers(tensor):
    """The tensor as int64, in the same shape."""
    if tensor.dtype == tf.string:
        tensor = tf.strings.to_hash_bucket_fast(tensor, 2**62)
    elif tensor.dtype.is_floating:
        tensor = tf.bitcast(tf.cast(tensor, tf.float32), tf.int32)
    return tf.cast(tensor, tf.int64)


def _odd_numbers(places, seed):
    """int64 in the shape of `places`, fixed for each place and seed."""
    numbers = (tf.cast(places, tf.int64) + 1 + (seed << 32)) * _A
    for _ in range(2):
        numbers = tf.bitwise.bitwise_xor(numbers, tf.bitwise.right_shift(numbers, 29)) * _B
    return tf.bitwise.bitwise_or(numbers, 1)
