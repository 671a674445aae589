"""Examples that are not finite: weight 0 does not save a step from them, since 0 * NaN is NaN going back.

So they are taken out before the forward pass: a good example of the batch stands in their place, weight 0.
(A zero would move the statistics of batch normalization, and need not be a valid target.)
"""

import keras
import numpy as np
import tensorflow as tf


def find(data):
    """Which examples hold NaN or infinity.

    Args:
        data: Tensors `[batch, ...]`, in any structure; None and what is not dense is passed over.

    Returns:
        bool `[batch]`.
    """
    tensors = [tensor for tensor in keras.tree.flatten(data) if tensor is not None]
    is_bad = tf.zeros([_rows(tensors[0])], tf.bool)
    for tensor in filter(_is_checked, tensors):
        axes = range(1, len(tensor.shape))
        is_bad = tf.logical_or(is_bad, ~tf.reduce_all(tf.math.is_finite(tensor), axis=axes))
    return is_bad


def replace(data, is_bad):
    """The data with good examples, one after the other, in the place of bad ones; zeros if there is none.

    Args:
        data: As in `find`.
        is_bad: bool `[batch]`.
    """
    tensors = keras.tree.flatten(data)
    changed = [i for i, tensor in enumerate(tensors) if _is_dense(tensor)]
    dense = [tf.convert_to_tensor(tensors[i]) for i in changed]
    # Where all are good, as nearly always, the batch is not even copied.
    dense = tf.cond(tf.reduce_any(is_bad), lambda: _replaced(dense, is_bad), lambda: dense)
    for i, tensor in zip(changed, dense):
        tensors[i] = tensor
    return keras.tree.pack_sequence_as(data, tensors)


def without(weights, is_bad):
    """Weights `[batch]` of which the bad examples have 0 and the others share what those had."""
    left = tf.where(is_bad, 0.0, weights)
    factor = tf.math.divide_no_nan(tf.reduce_sum(weights), tf.reduce_sum(left))
    return tf.where(tf.reduce_any(is_bad), factor * left, weights)


def are_finite(gradients):
    """Whether all of a list of gradients are, Nones passed over; bool scalar."""
    values = [g.values if isinstance(g, tf.IndexedSlices) else g for g in gradients if g is not None]
    return tf.reduce_all([tf.reduce_all(tf.math.is_finite(value)) for value in values])


def apply_if(is_usable, optimizer, gradients, weights):
    """`optimizer.apply_gradients`, or nothing: no weight, no moment and no count of the optimizer moves.

    Args:
        is_usable: bool scalar, the same on all the replicas.
        optimizer: A Keras optimizer.
        gradients, weights: Lists of the same length.
    """
    if not optimizer.built:
        optimizer.build(weights)  # which may not happen in a condition

    def apply(*gradients):
        optimizer.apply_gradients(zip(gradients, weights))

    context = tf.distribute.get_replica_context()
    if context is None or tf.__internal__.distribute.strategy_supports_no_merge_call():
        tf.cond(is_usable, lambda: apply(*gradients), lambda: None)
        return

    def apply_on_all(strategy, is_usable, *gradients):
        # Optimizers merge the replicas' gradients, which TensorFlow does not allow within a condition.
        tf.cond(
            strategy.experimental_local_results(is_usable)[0],
            lambda: strategy.extended.call_for_each_replica(apply, args=gradients),
            lambda: None,
        )

    context.merge_call(apply_on_all, args=(is_usable, *gradients))


def _replaced(tensors, is_bad):
    order = tf.argsort(tf.cast(is_bad, tf.int32), stable=True)  # the good ones first
    good = tf.reduce_sum(tf.cast(~is_bad, tf.int32))
    turn = tf.math.cumsum(tf.cast(is_bad, tf.int32), exclusive=True) % tf.maximum(good, 1)
    rows = tf.where(is_bad, tf.gather(order, turn), tf.range(tf.size(is_bad)))
    replaced = []
    for tensor in tensors:
        rest = tf.gather(tensor, rows)
        rest = tf.where(good > 0, rest, tf.zeros_like(rest)) if _is_checked(tensor) else rest
        replaced.append(tf.ensure_shape(rest, tensor.shape))
    return replaced


def _rows(tensor):
    return tensor.shape[0] if isinstance(tensor, np.ndarray) else tf.shape(tensor)[0]


def _is_dense(tensor):
    is_tensor = isinstance(tensor, (tf.Tensor, np.ndarray))  # arrays, where Keras runs eagerly
    return is_tensor and len(tensor.shape) > 0  # else it is no batch, and the network says so


def _is_checked(tensor):
    return _is_dense(tensor) and tf.as_dtype(tensor.dtype).is_floating
