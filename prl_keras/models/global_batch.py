"""One selection over the global batch, however many replicas `tf.distribute` runs."""

import typing
from collections.abc import Callable, Sequence

import tensorflow as tf

from prl_keras.inputs import class_labels, loss_kinds, nonfinite, outputs
from prl_keras.scores.loss import per_example_loss
from prl_keras.scores.names import resolve


class Examples(typing.NamedTuple):
    """What the rule and the exchange know about `n` examples.

    Attributes:
        scores: float32 `[n]` per network, higher = more suspect; an empty list for `score=None`.
        is_ranked: bool `[n]`, False for padding.
        is_bad: bool `[n]`, True for non-finite examples.
        labels: int32 `[n]`, the given classes; None without class labels.
        classes: The number of classes, or None.
        differs: bool `[n]`, whether the networks of a pair predict different classes; None if the exchange
            does not use it.
        losses: float32 `[n]` per network, which break ties between equal scores; an empty list if the
            gradient of the loss grows with the error.
    """

    scores: list[tf.Tensor]
    is_ranked: tf.Tensor
    is_bad: tf.Tensor
    labels: tf.Tensor | None
    classes: int | None
    differs: tf.Tensor | None
    losses: list[tf.Tensor]


class Weighed(typing.NamedTuple):
    """What one network trains on.

    Attributes:
        weights: float32 `[n]`.
        scores: The scores `[n]` that the weights were made from, or None.
        kept: The number of examples with a positive weight, float32 scalar; None before it is counted.
    """

    weights: tf.Tensor
    scores: tf.Tensor | None
    kept: tf.Tensor | None = None


class Counts(typing.NamedTuple):
    """The numbers of ranked, ranked finite, and finite examples in the global batch, float32 scalars."""

    ranked: tf.Tensor
    ranked_and_good: tf.Tensor
    good: tf.Tensor


class Selected(typing.NamedTuple):
    """The selection from the global batch.

    Attributes:
        weights: `[batch]` per network, the weights of this replica's examples, without gradient.
        factors: Factors on the weights, float32 `[outputs]` per network; None for a single replica, and for
            a network whose loss is not a mean.
        rows: The number of examples to average this replica's loss over: global batch / replicas.
        everyone: One `Weighed` of the global batch per network.
        counts: The `Counts` of the global batch.
        is_any_good: bool scalar, whether any ranked example is finite; True for a batch of finite padding.
        is_any_good_here: bool scalar, whether any example of this replica is finite.
        may_tie: Python bool, whether many examples may have the same score under this loss.
    """

    weights: list[tf.Tensor]
    factors: list[tf.Tensor | None]
    rows: tf.Tensor
    everyone: list[Weighed]
    counts: Counts
    is_any_good: tf.Tensor
    is_any_good_here: tf.Tensor
    may_tie: bool


def select(model: typing.Any, passes: Sequence[typing.Any], batch: typing.Any) -> Selected:
    """Applies the rule and the exchange of a model to the global batch.

    The paper's minibatch is the global batch: the top epsilon is taken over all the replicas. Keras
    divides the loss of a replica by its own number of values `d_r` and by the number of replicas `R`. For a
    mean over the global batch every weight is therefore multiplied by `d_r * R / d`, where `d` is the sum of
    all `d_r`, separately for each output. With one value per example, `d` is the batch size. The losses that
    layers add are means over the share, so they are multiplied by the share's size over the mean size.

    Args:
        model: A `WeightedModel`.
        passes: One pass per network, from `passes.forward_pass`; their `share` and `mean_kept` are set.
        batch: The `Batch` of this replica; its number of examples may differ between replicas and be 0.
    """
    examples, context = examples_of(model, batch, passes), tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        everyone, counts = weigh_good(model.weigh, examples)
        own = [each.weights for each in everyone]
        rows, factors = tf.cast(tf.size(examples.is_ranked), tf.float32), [None] * len(passes)
        return _selected(own, factors, rows, everyone, examples, counts, counts.good > 0)
    local = tf.size(examples.is_ranked)
    # 0 for a sum, because Keras does not divide it.
    divisors = [p.counted_losses(batch) if is_mean(p.loss) else tf.zeros([1]) for p in passes]
    of_replica = tf.concat([[tf.cast(local, tf.float32)], *divisors], axis=0)
    of_replicas = context.all_gather(of_replica[None], axis=0)
    sizes = tf.cast(of_replicas[:, 0], tf.int32)
    gathered = _gather(context, examples, local, sizes)
    everyone, counts = weigh_good(model.weigh, gathered)
    start = tf.reduce_sum(sizes[: tf.cast(context.replica_id_in_sync_group, tf.int32)])
    means = tf.reduce_mean(of_replicas[:, 1:], axis=0)
    means = tf.split(means, [divisor.shape[0] for divisor in divisors])
    factors = [
        tf.math.divide_no_nan(divisor, mean) if is_mean(p.loss) else None
        for divisor, mean, p in zip(divisors, means, passes)
    ]
    own = [each.weights[start : start + local] for each in everyone]
    is_any_good_here = nonfinite.count(~examples.is_bad) > 0
    rows = tf.size(gathered.is_ranked) / tf.size(sizes)
    for each, weighed in zip(passes, everyone):
        each.share = tf.cast(tf.math.divide_no_nan(tf.cast(local, rows.dtype), rows), tf.float32)
        each.mean_kept = tf.cast(
            tf.math.count_nonzero(weighed.weights) / tf.size(sizes, tf.int64), tf.float32
        )
    return _selected(own, factors, rows, everyone, gathered, counts, is_any_good_here)


def examples_of(model: typing.Any, batch: typing.Any, passes: Sequence[typing.Any]) -> Examples:
    """The `Examples` of a batch; the `scores` and `y_pred` of the passes are read."""
    scores = [p.scores for p in passes if p.scores is not None]
    differs = model.where_networks_differ(batch, [p.y_pred for p in passes])
    losses = []
    if _may_tie(model, passes[0]):
        losses = [per_example_loss(batch.y, p.y_pred, p.loss, batch.sample_weight) for p in passes]
        losses = [tf.stop_gradient(each) for each in losses]
    classes = None
    if batch.labels is not None:
        classes = class_labels.count_classes(tuple(passes[0].y_pred.shape), passes[0].loss)
    return Examples(scores, batch.is_ranked, batch.is_bad, batch.labels, classes, differs, losses)


def weigh_good(
    weigh: Callable[[Examples], list[Weighed]], examples: Examples
) -> tuple[list[Weighed], Counts]:
    """Calls `weigh` with the largest score for the bad examples, then sets their weights to 0.

    The weights of the good examples are scaled up, so that the sum stays the same.
    """
    scores = [tf.where(examples.is_bad, tf.float32.max, column) for column in examples.scores]
    weighed = weigh(examples._replace(scores=scores))
    counts: typing.Any
    good, shares, counts = ~examples.is_bad, [], None
    columns = [examples.is_ranked, examples.is_ranked & good, good]
    for each in weighed:
        weights = tf.cast(each.weights, tf.float32)
        left = tf.where(examples.is_bad, 0.0, weights)
        columns += [weights, left, left > 0]
        # One kernel computes all the sums; those of the flags come with the first network's.
        rows = tf.stack([tf.cast(column, tf.float32) for column in columns])
        *flags, had, has, kept = tf.unstack(tf.reduce_sum(rows, axis=1))
        counts = counts or Counts(*flags)
        shares.append(each._replace(weights=left * had / tf.where(has > 0, has, 1.0), kept=kept))
        columns = []
    return shares, counts


def is_mean(loss: typing.Any) -> bool:
    """Whether Keras takes the mean of the loss over a replica's share, divided by the number of replicas.

    Raises:
        ValueError: for `reduction="mean_with_sample_weight"` with several replicas.
    """
    is_by_weights = loss_kinds.reduction_of(loss) == "mean_with_sample_weight"
    if is_by_weights and tf.distribute.get_strategy().num_replicas_in_sync > 1:
        raise ValueError(
            f"The loss {loss!r} has reduction='mean_with_sample_weight', a mean by the weights of each "
            "replica's own share. With several replicas write reduction='sum_over_batch_size'."
        )
    return loss_kinds.is_mean(loss)


def _may_tie(model, network_pass):
    """Whether many examples may have the same score: one of a gradient that need not grow with the error."""
    if not resolve(model.score).is_of_gradient or not getattr(model.rule, "ranks", False):
        return False
    losses = outputs.losses_of(network_pass.loss, network_pass.y_pred)
    return any(loss is not None and loss_kinds.may_be_flat(loss) for loss in losses)


def _selected(own, factors, rows, everyone, examples, counts, is_any_good_here):
    size = tf.cast(tf.size(examples.is_bad), tf.float32)
    return Selected(
        weights=[tf.stop_gradient(weights) for weights in own],
        factors=factors,
        rows=rows,
        everyone=everyone,
        counts=counts,
        is_any_good=tf.logical_or(counts.ranked_and_good > 0, tf.equal(counts.good, size)),
        is_any_good_here=is_any_good_here,
        may_tie=bool(examples.losses),
    )


def _gather(context, examples, local, sizes):
    """The examples of all the replicas, in the order of the replicas.

    Each replica sends one float per example and field, padded to the longest share, because some collectives
    reject uneven pieces.
    """
    flags = [examples.is_ranked, examples.is_bad]
    others = [t for t in (examples.labels, examples.differs) if t is not None]
    columns = tf.stack(
        [*examples.scores, *examples.losses, *(tf.cast(t, tf.float32) for t in (*flags, *others))], axis=1
    )
    longest = tf.reduce_max(sizes)
    padded = tf.pad(columns, [[0, longest - local], [0, 0]])
    present = tf.reshape(tf.range(longest)[None] < sizes[:, None], [-1])
    everything = tf.boolean_mask(context.all_gather(padded, axis=0), present)
    columns = iter(tf.unstack(everything, num=columns.shape[1], axis=1))
    return Examples(
        scores=[next(columns) for _ in examples.scores],
        losses=[next(columns) for _ in examples.losses],
        is_ranked=next(columns) > 0,
        is_bad=next(columns) > 0,
        labels=None if examples.labels is None else tf.cast(next(columns), tf.int32),
        classes=examples.classes,
        differs=None if examples.differs is None else next(columns) > 0,
    )
