"""One selection over the global batch, however many replicas `tf.distribute` runs."""

import tensorflow as tf

_MEANS = ("sum_over_batch_size", "mean", "mean_with_sample_weight")


def weigh_global_batch(weigh, scores, is_ranked, divisors):
    """Calls `weigh` on the global batch and gives each replica the weights of its own examples.

    The paper's minibatch is the global batch: the top epsilon is taken over all the replicas. Keras
    divides the loss of a replica by its own number of values `d_r` and by the `R` replicas, so for a mean
    over the global batch every weight is multiplied by `d_r * R / d`, d the sum of all `d_r`. With one
    value for each example, d is the batch size.

    Args:
        weigh: Function of (a list of scores `[n]`, bool `[n]`) that gives a list of weights `[n]`.
        scores: One tensor `[n_r]` for each network; its length may differ between replicas and be 0.
        is_ranked: bool `[n_r]`.
        divisors: Function without arguments that gives `d_r` for each list of weights, a float32 scalar, or
            None for a sum, which Keras does not divide.

    Returns:
        `(weights, global_weights, global_scores, global_is_ranked)`; the first is the list for this
        replica, the others are those of the whole batch, for the metrics.
    """
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        weights = weigh(scores, is_ranked)
        return weights, weights, scores, is_ranked
    local, divisors = tf.size(is_ranked), divisors()
    own = [tf.ones(()) if divisor is None else divisor for divisor in divisors]
    everyones = context.all_gather(tf.stack([tf.cast(local, tf.float32), *own])[None], axis=0)
    sizes = tf.cast(everyones[:, 0], tf.int32)
    # One float per example and network travels; padded to one length, as not every collective
    # takes uneven pieces.
    longest = tf.reduce_max(sizes)
    columns = tf.stack([tf.cast(is_ranked, tf.float32), *scores], axis=1)
    padded = tf.pad(columns, [[0, longest - local], [0, 0]])
    present = tf.reshape(tf.range(longest)[None] < sizes[:, None], [-1])
    everything = tf.boolean_mask(context.all_gather(padded, axis=0), present)

    global_is_ranked = everything[:, 0] > 0
    global_scores = tf.unstack(everything[:, 1:], num=len(scores), axis=1)
    global_weights = weigh(global_scores, global_is_ranked)
    rank = tf.cast(context.replica_id_in_sync_group, tf.int32)
    start = tf.reduce_sum(sizes[:rank])
    replica_count = tf.cast(tf.size(sizes), tf.float32)
    factors = [
        1.0
        if divisor is None
        else tf.math.divide_no_nan(divisor * replica_count, tf.reduce_sum(everyones[:, i]))
        for i, divisor in enumerate(divisors, start=1)
    ]
    weights = [factor * w[start : start + local] for factor, w in zip(factors, global_weights)]
    return weights, global_weights, global_scores, global_is_ranked


def is_mean(loss):
    """Whether Keras takes a mean of the loss over a replica's share, divided by the number of replicas.

    Raises:
        ValueError: for a mean by the weights, with several replicas.
    """
    reduction = getattr(loss, "reduction", _MEANS[0])
    if reduction == "mean_with_sample_weight" and tf.distribute.get_strategy().num_replicas_in_sync > 1:
        raise ValueError(
            f"The loss {loss!r} has reduction='mean_with_sample_weight', a mean by the weights of each "
            "replica's own share. With several replicas write reduction='sum_over_batch_size'."
        )
    return reduction in _MEANS


def everywhere(flag):
    """Whether it holds on all the replicas; bool scalar."""
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return flag
    return context.all_reduce(tf.distribute.ReduceOp.SUM, 1.0 - tf.cast(flag, tf.float32)) == 0
