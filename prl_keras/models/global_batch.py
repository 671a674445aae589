"""One selection over the global batch, however many replicas `tf.distribute` runs."""

import typing

import tensorflow as tf

from prl_keras.inputs import class_labels, loss_kinds, nonfinite, outputs
from prl_keras.scores.loss import per_example_loss


class Examples(typing.NamedTuple):
    """What the rule and the exchange know of each of `n` examples.

    Attributes:
        scores: float32 `[n]` for each network, higher = more suspect; an empty list for `score=None`.
        is_ranked: bool `[n]`, False for padding.
        is_bad: bool `[n]`, whether an example is not finite.
        labels: int32 `[n]`, the given classes; None without class labels.
        classes: Their number, or None.
        differs: bool `[n]`, whether the networks of a pair predict different classes; None if nobody asks.
        losses: float32 `[n]` for each network, by which a rule tells equal scores apart; an empty list where
            the gradient of the loss grows with the error.
    """

    scores: list
    is_ranked: tf.Tensor
    is_bad: tf.Tensor
    labels: tf.Tensor | None
    classes: int | None
    differs: tf.Tensor | None
    losses: list


class Weighed(typing.NamedTuple):
    """What one network trains on.

    Attributes:
        weights: float32 `[n]`.
        scores: The scores `[n]` that are behind them, or None.
        kept: How many examples have a weight, float32 scalar; None before it is counted.
    """

    weights: tf.Tensor
    scores: tf.Tensor | None
    kept: tf.Tensor | None = None


class Counts(typing.NamedTuple):
    """How many examples of the global batch are ranked, ranked and finite, and finite: float32 scalars."""

    ranked: tf.Tensor
    ranked_and_good: tf.Tensor
    good: tf.Tensor


class Selected(typing.NamedTuple):
    """What was selected of the global batch.

    Attributes:
        weights: `[batch]` for each network: those of this replica's examples, no gradient.
        factors: On them, for each network float32 `[outputs]`; None where there is one replica.
        rows: How many examples the weighted losses of this replica are a mean over: the global batch, shared
            out evenly.
        everyone: A list of `Weighed`, those of the global batch.
        counts: `Counts`.
        is_any_good: bool scalar: False if no ranked example is finite, but not for finite padding alone.
        is_any_good_here: bool scalar: whether an example of this replica is finite.
        may_tie: Python bool: whether the loss is one under which many examples may have one score.
    """

    weights: list
    factors: list
    rows: tf.Tensor
    everyone: list
    counts: Counts
    is_any_good: tf.Tensor
    is_any_good_here: tf.Tensor
    may_tie: bool


def select(model, passes, batch):
    """What the rule and the exchange of a model make of the global batch.

    The paper's minibatch is the global batch: the top epsilon is taken over all the replicas. Keras
    divides the loss of a replica by its own number of values `d_r` and by the `R` replicas, so for a mean
    over the global batch every weight is multiplied by `d_r * R / d`, d the sum of all `d_r`, output by
    output. With one value for each example, d is the batch size.

    Args:
        model: A `WeightedModel`.
        passes: As of `passes.forward_pass`, one for each network.
        batch: The `Batch` of this replica; its number of examples may differ between replicas and be 0.

    Returns:
        `Selected`.
    """
    examples, context = examples_of(model, batch, passes), tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        everyone, counts = weigh_good(model.weigh, examples)
        own = [each.weights for each in everyone]
        rows, factors = tf.cast(tf.size(examples.is_ranked), tf.float32), [None] * len(passes)
        return _selected(own, factors, rows, everyone, examples, counts, counts.good > 0)
    local = tf.size(examples.is_ranked)
    # 0 for a sum, which Keras does not divide.
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
    return _selected(own, factors, rows, everyone, gathered, counts, is_any_good_here)


def examples_of(model, batch, passes):
    """The `Examples` of a batch.

    Args:
        model, batch, passes: As in `select`; of the passes `scores` and `y_pred` are read.
    """
    scores = [p.scores for p in passes if p.scores is not None]
    differs = model.where_networks_differ(batch, [p.y_pred for p in passes])
    losses = []
    if _may_tie(model, passes[0].y_pred):
        of = [outputs.loss_of(model, p.y_pred) for p in passes]
        losses = [
            per_example_loss(batch.y, p.y_pred, loss, batch.sample_weight) for p, loss in zip(passes, of)
        ]
        losses = [tf.stop_gradient(each) for each in losses]
    classes = None
    if batch.labels is not None:
        y_pred = passes[0].y_pred
        classes = class_labels.count_classes(tuple(y_pred.shape), outputs.loss_of(model, y_pred))
    return Examples(scores, batch.is_ranked, batch.is_bad, batch.labels, classes, differs, losses)


def weigh_good(weigh, examples):
    """Calls `weigh` with the largest score for the bad examples, then sets their weights to 0.

    The good examples are scaled up, so that the sum of the weights stays.

    Returns:
        `(a list of Weighed, Counts)`.
    """
    scores = [tf.where(examples.is_bad, tf.float32.max, column) for column in examples.scores]
    weighed = weigh(examples._replace(scores=scores))
    good, shares, counts = ~examples.is_bad, [], None
    columns = [examples.is_ranked, examples.is_ranked & good, good]
    for each in weighed:
        weights = tf.cast(each.weights, tf.float32)
        left = tf.where(examples.is_bad, 0.0, weights)
        columns += [weights, left, left > 0]
        # All the sums in one kernel, those of the flags with the first network's.
        *flags, had, has, kept = tf.unstack(tf.reduce_sum(tf.stack(_floats(columns)), axis=1))
        counts = counts or Counts(*flags)
        shares.append(each._replace(weights=left * had / tf.where(has > 0, has, 1.0), kept=kept))
        columns = []
    return shares, counts


def is_mean(loss):
    """Whether Keras takes a mean of the loss over a replica's share, divided by the number of replicas.

    Raises:
        ValueError: for a mean by the weights, with several replicas.
    """
    is_by_weights = getattr(loss, "reduction", None) == "mean_with_sample_weight"
    if is_by_weights and tf.distribute.get_strategy().num_replicas_in_sync > 1:
        raise ValueError(
            f"The loss {loss!r} has reduction='mean_with_sample_weight', a mean by the weights of each "
            "replica's own share. With several replicas write reduction='sum_over_batch_size'."
        )
    return loss_kinds.is_mean(loss)


def _may_tie(model, y_pred):
    """Whether many examples may have one score: that of a gradient, which may not grow with the error."""
    is_of_gradient = model.score in ("loss_layer_gradient", "gradient")
    if not is_of_gradient or not getattr(model.rule, "ranks", False):
        return False
    losses = outputs.losses_of(outputs.loss_of(model, y_pred), y_pred)
    return any(loss is not None and loss_kinds.may_be_flat(loss) for loss in losses)


def _floats(columns):
    return [tf.cast(column, tf.float32) for column in columns]


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
    """The examples of all the replicas, in their order.

    One float per example and fact travels; padded to one length, as not every collective takes uneven
    pieces.
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
