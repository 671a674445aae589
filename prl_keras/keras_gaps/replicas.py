"""What Keras's `fit` lacks where a strategy of `tf.distribute` has several replicas (keras#20585).

Keras 3.15 stops, or is wrong, in five places:

1. Before the first step it builds the model from a batch, and takes the mean of that batch over the
   replicas: their shares must be of one size, and on several machines it fails even so.
2. On several machines it takes the mean of the logs over the replicas along their axis 0; they are scalars.
3. Where the logs of a step lack one of the model's metrics (in `evaluate`, those of training) it shows the
   mean of the replicas' own logs, which may be of different numbers of examples, not the metrics' results.
4. Optimizers clip the gradient of each replica, and look for infinities in it, before they add them up.
5. Each replica keeps moving statistics of its own share, evaluates with them, and saves those of the first.

`tests/multi_worker_test.py` has a test that fails as soon as a plain `keras.Model` no longer stops at 1 and
2: then those can go.
"""

import keras
import tensorflow as tf


def first_share(strategy, iterator):
    """A batch to build the model from: of several replicas the first one's share, for its sizes and types.

    Args:
        strategy: That of `compile`.
        iterator: Keras's iterator over the epochs of `fit`.
    """
    batches = next(iter(iterator))[2]
    return keras.tree.map_structure(lambda t: strategy.experimental_local_results(t)[0], next(batches))


def results_or_logs(model, logs):
    """The metrics' results for the names in the logs of a step, if all of them are metrics; else the logs."""
    results = model.get_metrics_result()
    return {name: results[name] for name in logs} if set(logs) <= set(results) else logs


def everywhere(flag):
    """Whether a bool scalar holds on all the replicas."""
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return flag
    return context.all_reduce(tf.distribute.ReduceOp.SUM, 1.0 - tf.cast(flag, tf.float32)) == 0


def share_statistics(strategy, variables):
    """Gives all the replicas the mean of each variable over them.

    Args:
        strategy: Whose replicas; nothing is done for a single one.
        variables: Keras variables, such as the moving statistics of batch normalization; those that are not
            floats stay.
    """
    variables = [variable for variable in variables if variable.dtype.startswith(("float", "bfloat"))]
    if strategy.num_replicas_in_sync == 1 or not variables:
        return

    def share():
        values = [tf.identity(variable.value) for variable in variables]
        means = tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.MEAN, values)
        for variable, mean in zip(variables, means):
            variable.assign(mean)

    tf.function(lambda: strategy.run(share), autograph=False)()


def logs_for_fit(logs):
    """The logs of a step `{name: scalar}` as Keras's `fit` can take their mean over the replicas."""
    strategy = tf.distribute.get_strategy()
    is_multi_worker = isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
    if not (is_multi_worker and strategy.extended._in_multi_worker_mode()):  # what Keras asks, too
        return logs
    return {name: tf.expand_dims(value, 0) for name, value in logs.items()}


def gradients_for_optimizer(gradients, optimizer):
    """The gradients to pass to the optimizer; if it clips or checks them, those of the global batch.

    The first replica gets the sum over the replicas, the others zeros (or NaN, if it is not finite), which
    the optimizer adds up to the same sum after it has looked at them.
    """
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1 or not _looks_at_size(optimizer):
        return gradients
    given = [i for i, gradient in enumerate(gradients) if gradient is not None]
    sums = context.all_reduce(tf.distribute.ReduceOp.SUM, [gradients[i] for i in given])
    is_first = tf.equal(context.replica_id_in_sync_group, 0)
    result = list(gradients)
    for i, total in zip(given, sums):
        result[i] = tf.math.scalar_mul(tf.cast(is_first, total.dtype), total)
    return result


def _looks_at_size(optimizer):
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        return True
    parts = [optimizer, *getattr(optimizer, "optimizers", ())]  # of a MultiOptimizer
    return any(part.clipnorm or part.global_clipnorm or part.clipvalue for part in parts)


def on_one_replica(strategy, function, *args):
    """What `function(*args)` gives on a replica: in between, a tape does not see the weights.

    All replicas compute it, as TensorFlow runs none alone.
    """
    results = strategy.run(function, args)
    return keras.tree.map_structure(lambda t: strategy.experimental_local_results(t)[0], results)
