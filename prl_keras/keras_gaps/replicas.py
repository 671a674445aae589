"""What Keras's `fit` lacks if a `tf.distribute` strategy has several replicas (keras#20585).

Keras 3.15 fails, or is wrong, in five places:

1. Before the first step it builds the model from a batch, and takes the mean of that batch over the
   replicas: their shares must have one size, and on several machines it fails even then.
2. On several machines it takes the mean of the logs over the replicas along axis 0; they are scalars.
3. If the logs of a step lack one of the model's metrics (in `evaluate`, those of training), it shows the
   mean of the replicas' own logs, which may cover different numbers of examples, not the metrics' results.
4. Optimizers clip the gradient of each replica, and check it for infinities, before they add them up.
5. Each replica keeps moving statistics of its own share and evaluates with them; Keras saves only those of
   the first.

A test in `tests/faults/multi_worker_test.py` fails once a plain `keras.Model` no longer fails at 1 and 2:
then those workarounds can go.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf


def first_share(strategy: tf.distribute.Strategy, iterator: Any) -> Any:
    """A batch to build the model from: the first replica's share of what `fit` iterates over."""
    batches = next(iter(iterator))[2]
    return keras.tree.map_structure(lambda t: strategy.experimental_local_results(t)[0], next(batches))


def results_or_logs(model: keras.Model, logs: Mapping[str, Any]) -> Mapping[str, Any]:
    """The metrics' results for the names in a step's logs, if all are metrics; else the logs."""
    results = model.get_metrics_result()
    return {name: results[name] for name in logs} if set(logs) <= set(results) else logs


def everywhere(flag: Any) -> Any:
    """Whether a bool scalar is true on all replicas."""
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return flag
    return context.all_reduce(tf.distribute.ReduceOp.SUM, 1.0 - tf.cast(flag, tf.float32)) == 0


def counter(strategy: tf.distribute.Strategy, shape: Sequence[int]) -> tf.Variable:
    """A variable of zeros into which each replica counts by itself; its value is the sum over them."""
    with strategy.scope():
        return tf.Variable(
            tf.zeros(shape),
            trainable=False,
            synchronization=tf.VariableSynchronization.ON_READ,
            aggregation=tf.VariableAggregation.SUM,
        )


def share_statistics(strategy: tf.distribute.Strategy, variables: Iterable[Any]) -> None:
    """Sets each Keras variable that is floating-point to its mean over all replicas."""
    variables = [variable for variable in variables if variable.dtype.startswith(("float", "bfloat"))]
    if strategy.num_replicas_in_sync == 1 or not variables:
        return

    def share():
        values = [tf.identity(variable.value) for variable in variables]
        means = tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.MEAN, values)
        for variable, mean in zip(variables, means):
            variable.assign(mean)

    tf.function(lambda: strategy.run(share), autograph=False)()


def logs_for_fit(logs: dict[str, Any]) -> dict[str, Any]:
    """The logs of a step `{name: scalar}` in a form whose mean over the replicas Keras's `fit` can take."""
    strategy = tf.distribute.get_strategy()
    is_multi_worker = isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
    if not (is_multi_worker and strategy.extended._in_multi_worker_mode()):  # the condition that Keras checks
        return logs
    return {name: tf.expand_dims(value, 0) for name, value in logs.items()}


def gradients_for_optimizer(gradients: Sequence[Any], optimizer: keras.optimizers.Optimizer) -> Sequence[Any]:
    """The gradients to pass to the optimizer; if it clips or checks them, those of the global batch.

    The first replica gets the sum over the replicas, the others zeros (or NaN if the sum is non-finite). The
    optimizer checks them first and then adds them up to the same sum.
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


def on_one_replica(strategy: tf.distribute.Strategy, function: Callable[..., Any], *args: Any) -> Any:
    """The result of `function(*args)` in a replica; in a cross-replica context a tape sees no weights.

    All replicas compute it, because TensorFlow cannot run one alone.
    """
    results = strategy.run(function, args)
    return keras.tree.map_structure(lambda t: strategy.experimental_local_results(t)[0], results)
