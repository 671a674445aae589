"""An estimate of epsilon after each epoch of `fit`, from what the training step already computes."""

import warnings
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from prl_keras.epsilon import intervals
from prl_keras.epsilon.estimated import SUREST, check_estimated, estimated_of
from prl_keras.inputs import class_labels, loss_kinds
from prl_keras.keras_gaps.replicas import counter
from prl_keras.rules.epsilon import is_in_range
from prl_keras.scores.loss import per_example_loss, unreduced_loss

_CONFIDENCE = 0.9
_MARGIN = 0.02  # no warning for an epsilon that is too small by less
_WASTE = 0.15  # no warning for an epsilon that is too large by less: too much is cheap
_PATIENCE = 3  # epochs in a row that must contradict epsilon
_FACTOR = 4.0  # during training: networks that still learn admit fewer of their errors
_BINS, _WIDTH = 256, 0.25  # histogram of the logarithms of losses, around 0
_MANY, _ROUNDING = 0.5, 1e-4  # share of examples with one score; relative difference of equal scores
_MOST_TO_COMPARE = 64  # classes up to which comparing a label with all is faster than a gather
_END = 10**9  # a step after every ramp
_CLASS_COUNTS = 5  # bad examples, and the four of `_class_columns`
_DOUBTS = np.linspace(0.01, 1.0, 100, dtype="float32")  # of which the examples below are counted


class NoiseWatch(keras.callbacks.Callback):
    """Estimates epsilon after each epoch from the predictions of the training steps.

    It works as `prl_keras.estimate_epsilon`, but in training mode while the networks change, so the interval
    is wider: the error rate may be four times, or a fourth of, what the networks admit. It warns once per
    model if `Trim` has an epsilon that the interval contradicts for three epochs. It sets the value of an
    `EstimatedEpsilon`, and warns if that ends at its limit. It estimates for one class label per example and
    for regression; other kinds of targets get no estimate. For a pair only disagreement counts; low
    confidence may come from wrong labels being memorised. So networks that make the same errors also cause a
    warning.

    Args:
        model: The `WeightedModel` to watch. The counts are created in the scope of its strategy.

    Attributes:
        estimate: The `EpsilonEstimate` of the last epoch (90% interval), or None.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.set_model(model)
        self.estimate: intervals.EpsilonEstimate | None = None
        self._contradictions, self._told = 0, None
        self._has_warned = False
        self._is_of_classes = None
        self._first_step = 0
        self._has_warned_of_ties = self._has_warned_of_range = False
        self._counts = counter(model.distribute_strategy, [1 + _BINS + 2])

    def update(self, batch: Any, passes: Any, selected: Any) -> None:
        """Counts a batch, as part of the training step. Non-finite examples count as wrong.

        Raises:
            ValueError: if `Trim` uses an `EstimatedEpsilon` and targets of this kind get no estimate.
        """
        counts = self._counted(batch, passes)
        check_estimated(self.model.rule, is_estimated=counts is not None)
        if counts is None and not selected.may_tie:
            return
        counts = tf.zeros([1 + _BINS]) if counts is None else counts
        ties = _ties(batch, passes[0].scores, selected.everyone[0]) if selected.may_tie else tf.zeros([2])
        self._counts.assign_add(tf.concat([counts, ties], axis=0))

    def _counted(self, batch, passes):
        """float32 `[1 + _BINS]`, or None if these targets get no estimate."""
        loss, outputs = passes[0].loss, [p.y_pred for p in passes]
        ranked = tf.cast(batch.is_ranked, tf.float32)
        is_one_output = not keras.tree.is_nested(outputs[0])
        classes = class_labels.count_classes(outputs[0].shape, loss) if is_one_output else None
        if classes is not None:
            self._is_of_classes = True
            is_counted = ~batch.is_bad & class_labels.is_class(batch.labels, classes)
            columns = tf.where(is_counted, tf.stack(_class_columns(batch, passes)), 0.0)
            columns = tf.concat([[tf.cast(batch.is_bad, tf.float32)], columns], axis=0)
            counts = tf.reduce_sum(columns * ranked, axis=1)  # float32: exact to 16 million examples
            if estimated_of(self.model.rule) is not None:
                is_below = tf.cast(columns[3] <= _DOUBTS[:, None], tf.float32)
                below = tf.reduce_sum(is_below * columns[1] * ranked, axis=1)
                counts = tf.concat([counts, below], axis=0)
            return tf.pad(counts, [[0, 1 + _BINS - counts.shape[0]]])
        if is_one_output and loss_kinds.is_regression(loss):
            self._is_of_classes = False
            losses = [per_example_loss(batch.y, y_pred, loss, batch.sample_weight) for y_pred in outputs]
            losses = tf.cast(tf.add_n(losses) / len(losses), tf.float32)
            bins = tf.math.log(tf.maximum(losses, np.finfo(np.float32).tiny)) / _WIDTH + _BINS / 2
            bins = tf.cast(tf.clip_by_value(bins, 0.0, _BINS - 1.0), tf.int32)
            places = tf.where(batch.is_bad, 0, 1 + bins)
            return tf.math.unsorted_segment_sum(ranked, places, 1 + _BINS)
        return None

    def on_train_begin(self, logs: Any = None) -> None:
        self._start_warmup(self._params("steps"), _number(self.model.optimizer.iterations))

    def _start_warmup(self, epoch_steps, step):
        """Tells an `EstimatedEpsilon` how long the training is."""
        epsilon, epochs = estimated_of(self.model.rule), self._params("epochs")
        if epsilon is not None and epoch_steps and epochs:
            epsilon.start(epochs, epoch_steps, step)

    def _params(self, name):
        return (self.params or {}).get(name)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._check_schedules()
        self._first_step = _number(self.model.optimizer.iterations)
        self._counts.assign(tf.zeros_like(self._counts))

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        counts = tf.convert_to_tensor(self._counts).numpy()
        self._warn_of_ties(counts)
        self.estimate = self._estimate(counts)
        if self.estimate is None or not hasattr(self.model.rule, "epsilon"):
            return
        step, estimated = _number(self.model.optimizer.iterations), estimated_of(self.model.rule)
        if estimated is not None:
            epoch_steps = step - self._first_step
            self._start_warmup(epoch_steps, step)  # if the data had no known length before
            estimated.update(self.estimate.high, self._doubt(counts), step, epoch_steps)
        elif not self._has_warned:
            epsilon = self.model.rule.epsilon
            self._compare(_value(epsilon, step), is_settled=_value(epsilon, step) == _value(epsilon, _END))

    def on_train_end(self, logs: Any = None) -> None:
        estimated, step = estimated_of(self.model.rule), _number(self.model.optimizer.iterations)
        if self._has_warned or estimated is None or self.estimate is None:
            return
        if _value(estimated, step) >= np.float32(estimated.most):
            self._has_warned = True
            _, low, high = self.estimate
            what = "labels" if self._is_of_classes else "targets"
            other = " or with two networks, prl_keras.build('co_prl_l', ..., epsilon='auto')"
            warnings.warn(
                f"epsilon='auto' ended at its limit, {estimated.most:g}: by what training predicted in the "
                f"last epoch, {low:.0%} to {high:.0%} of the {what} are "
                "wrong. Data that the network learns badly look so, too. Compare with an epsilon that you "
                f"believe{other * (len(self.model.networks) == 1)}.",
                stacklevel=2,
            )

    def _check_schedules(self):
        """Before the steps of an epoch, on the host: the compiled step has no kernel for it."""
        optimizer, steps = self.model.optimizer, self._params("steps")
        optimizer = getattr(optimizer, "inner_optimizer", optimizer)
        is_in_range("learning rate", getattr(optimizer, "_learning_rate", None), optimizer.iterations, steps)
        epsilon = getattr(self.model.rule, "epsilon", None)
        is_good = estimated_of(self.model.rule) is not None or is_in_range(
            "epsilon", epsilon, optimizer.iterations, steps
        )
        if not is_good and not self._has_warned_of_range:
            self._has_warned_of_range = True
            warnings.warn(
                f"The schedule of epsilon, {type(epsilon).__name__}, leaves [0, 1) in this epoch: a "
                "value below 0 drops nothing, and one of 1 or more keeps a single example of each batch.",
                stacklevel=2,
            )

    def _compare(self, told, is_settled):
        if told != self._told:  # a callback may have set another rule
            self._contradictions, self._told = 0, told
        is_less, is_more = told < self.estimate.low - _MARGIN, told > self.estimate.high + _WASTE
        self._contradictions = self._contradictions + 1 if is_settled and (is_less or is_more) else 0
        if self._contradictions == _PATIENCE:
            self._has_warned = True
            _, low, high = self.estimate
            better = min(np.ceil(20 * high) / 20, 0.5)
            warnings.warn(
                f"epsilon={told:.4g} drops {'less' if is_less else 'more'} than seems to be wrong, for "
                f"{_PATIENCE} epochs: by what training predicted in the last, {low:.0%} to {high:.0%} of the "
                f"{'labels' if self._is_of_classes else 'targets'}"
                f"{' (unless the networks themselves err so often)' if is_less else ''}. Too much is "
                f"cheap, too little is not: try epsilon={better:.2g}, or epsilon='auto' of prl_keras.build; "
                "prl_keras.audit shows which.",
                stacklevel=2,
            )

    def _warn_of_ties(self, counts):
        """Warns once per model if the score distinguishes too few examples."""
        tied, ranked = counts[-2:]
        if self._has_warned_of_ties or tied <= _MANY * ranked:
            return
        self._has_warned_of_ties = True
        warnings.warn(
            f"{tied / ranked:.0%} of the examples had the score at which the rule cuts: the gradient of "
            f"{self.model.loss!r} does not grow with the error. They were told apart by their losses. Write "
            "score='loss', or a loss whose gradient grows, such as the mean squared error of scaled targets.",
            stacklevel=2,
        )

    def _doubt(self, counts):
        """The doubt that the surest examples of the epoch stay below; None without classes."""
        if not self._is_of_classes:
            return None
        number, below = counts[1], counts[_CLASS_COUNTS : _CLASS_COUNTS + len(_DOUBTS)]
        return float(np.interp(SUREST * number, [0.0, *below], [0.0, *_DOUBTS]))

    def _estimate(self, counts):
        """`EpsilonEstimate` of the epoch so far, or None if nothing was counted."""
        bad, *counts = counts[:-2].astype(float)
        n = counts[0] if self._is_of_classes else sum(counts)
        if self._is_of_classes is None or not n:
            return None
        if self._is_of_classes:
            _, differ, unsure, disagree = np.array(counts[:4]) / n
            is_pair = len(self.model.networks) == 2
            errors = intervals.admitted_errors(
                unsure, disagree if is_pair else None, _FACTOR, overconfidence=0.0
            )
            if not is_pair:
                errors = errors._replace(few=0.0)  # a learning network is underconfident
            of_good = intervals.of_classes(differ, errors, n, _CONFIDENCE)
        else:
            middles, counts = (np.arange(_BINS) + 0.5 - _BINS / 2) * _WIDTH, np.array(counts)
            found = counts > 0
            of_good = intervals.of_targets(np.exp(middles[found]), counts[found], _CONFIDENCE)
        return intervals.with_bad(of_good, bad / (bad + n))


def _ties(batch, scores, weighed):
    """float32 `[2]`: the number of ranked examples at about the highest kept score, and of all ranked."""
    highest = tf.reduce_max(tf.where(weighed.weights > 0, weighed.scores, 0.0))
    is_tied = tf.abs(scores - highest) <= _ROUNDING * highest
    ranked = tf.cast(batch.is_ranked, tf.float32)
    return tf.stack([tf.reduce_sum(ranked * tf.cast(is_tied, tf.float32)), tf.reduce_sum(ranked)])


def _class_columns(batch, passes):
    """float32 `[batch]` each: 1, whether predicted != given, 1 - confidence, whether two networks differ."""
    labels, loss, y_pred = batch.labels, passes[0].loss, tf.cast(passes[0].y_pred, tf.float32)
    surest = None
    if len(passes) == 1 and y_pred.shape[1] > 1 and not loss_kinds.expects_probabilities(loss):
        votes, highest = y_pred, tf.reduce_max(y_pred, axis=1)
    else:
        votes = tf.add_n([each.probabilities for each in passes]) / len(passes)
        highest = surest = tf.reduce_max(votes, axis=1)
    if votes.shape[1] > _MOST_TO_COMPARE:
        of_given = tf.gather(votes, tf.clip_by_value(labels, 0, votes.shape[1] - 1), batch_dims=1)
    else:
        is_given = tf.range(votes.shape[1]) == labels[:, None]
        of_given = tf.reduce_sum(tf.where(is_given, votes, 0.0), axis=1)
    may_take_loss = loss_kinds.is_softmax_cross_entropy(loss, y_pred_has_logits=False)
    if surest is None and votes.shape[1] > _MOST_TO_COMPARE and may_take_loss:
        # exp(max z - log sum_c exp(z_c)); the loss is that logarithm minus the given z.
        surest = tf.exp(highest - of_given - unreduced_loss(batch.y, passes[0].y_pred, loss))
    elif surest is None:
        # The largest softmax is 1 / sum_c exp(z_c - max z); the loss already computes the sums.
        surest = 1 / tf.reduce_sum(tf.exp(votes - highest[:, None]), axis=1)
    differ = of_given < highest
    disagree = tf.zeros_like(differ)
    if len(passes) == 2:
        disagree = tf.not_equal(*(tf.argmax(each.probabilities, axis=1) for each in passes))
    return [tf.cast(column, tf.float32) for column in (tf.ones_like(surest), differ, 1 - surest, disagree)]


def _value(epsilon, step):
    """The fraction at a step as a float, from a number or a schedule."""
    return epsilon if isinstance(epsilon, float) else _number(epsilon(step))


def _number(value):
    return keras.ops.convert_to_numpy(value).item()
