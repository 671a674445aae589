"""One selection over the global batch, however many replicas `tf.distribute` runs."""

import tensorflow as tf


def weigh_global_batch(weigh, scores, is_ranked):
    """Calls `weigh` on the global batch and gives each replica the weights of its own examples.

    The paper's minibatch is the global batch: the top epsilon is taken over all the replicas. Keras
    divides the loss of a replica by its own `n_r` examples and by the `R` replicas, so for a mean over
    the `n` examples of the global batch every weight is multiplied by `n_r * R / n`.

    Args:
        weigh: Function of (a list of scores `[n]`, bool `[n]`) that gives a list of weights `[n]`.
        scores: One tensor `[n_r]` for each network; its length may differ between replicas and be 0.
        is_ranked: bool `[n_r]`.

    Returns:
        `(weights, global_weights, global_scores, global_is_ranked)`; the first is the list for this
        replica, the others are those of the whole batch, for the metrics.
    """
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        weights = weigh(scores, is_ranked)
        return weights, weights, scores, is_ranked
    local = tf.size(is_ranked)
    sizes = context.all_gather(local[None], axis=0)
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
    factor = tf.cast(local * tf.size(sizes), tf.float32) / tf.cast(
        tf.maximum(tf.reduce_sum(sizes), 1), tf.float32
    )
    weights = [factor * w[start : start + local] for w in global_weights]
    return weights, global_weights, global_scores, global_is_ranked
