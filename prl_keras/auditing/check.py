"""A pre-flight check of a user's model: what would go wrong in training, and how to fix it."""

import contextlib
import dataclasses
import itertools
import typing

import keras
import numpy as np
import tensorflow as tf

from prl_keras.auditing.score_examples import count_different
from prl_keras.epsilon.estimated import estimated_of
from prl_keras.inputs import loss_kinds, outputs
from prl_keras.inputs.arrays import check_batched, check_data, check_targets_given, check_weights
from prl_keras.inputs.shapes import check_weight_shape
from prl_keras.inputs.tensors import as_tensor, check_rows
from prl_keras.inputs.valid_labels import labels_of
from prl_keras.keras_gaps.internals import hidden_logits
from prl_keras.models.configuration import check_compiled, check_scope
from prl_keras.models.in_inference import mean_scores
from prl_keras.models.robust_model import RobustModel
from prl_keras.models.weighted_model import WeightedModel
from prl_keras.rules.trim import kept_count
from prl_keras.scores.batch_mixing import check_no_batch_mixing
from prl_keras.scores.layerwise.graph import obstacle
from prl_keras.scores.loss import per_example_loss
from prl_keras.scores.names import resolve

_MUCH_MEMORY = 2**30  # bytes of per-example gradients
_RARE = 0.25  # of the mean size of a class


class Line(typing.NamedTuple):
    """One line of the report: its `topic`, whether it `is_ok`, and the finding or the fix in `text`."""

    topic: str
    is_ok: bool
    text: str


@dataclasses.dataclass(frozen=True)
class Report:
    """The findings of `check`; `str(report)` is its text.

    Attributes:
        lines: One `Line` per topic, in the order of the text.
    """

    lines: tuple[Line, ...]

    @property
    def is_ok(self) -> bool:
        """Whether every line is ok."""
        return all(line.is_ok for line in self.lines)

    def __str__(self) -> str:
        width = max(len(line.topic) for line in self.lines)
        return "\n".join(
            f"{'ok ' if line.is_ok else '-> '} {line.topic:<{width}}  {line.text}" for line in self.lines
        )


def check(model: keras.Model, batch: typing.Any) -> Report:
    """Checks a compiled model and a batch of its data before training. It trains nothing.

    Args:
        model: A compiled `RobustModel` or `CoTeachingModel`, or any compiled Keras model, which is checked
            as `RobustModel(model)`.
        batch: `(x, y)` or `(x, y, sample_weight)`, arrays or tensors, or a `tf.data.Dataset` of batches,
            whose first batch is used.

    Returns:
        A `Report` on the topics loss, targets, head, batch normalization, classes, kept, ties, memory,
        precision and strategy. An error in the loss or the targets ends the report.

    Raises:
        ValueError: for an invalid batch.

    Example:

        print(prl_keras.check(model, (x[:128], y[:128])))
    """
    batch = list(_first(batch))
    lines = []
    for topic, look in _TOPICS.items():
        try:
            if topic == "loss":
                check_compiled(model)
                model = _weighted(model)
                batch[1:] = outputs.without_lists(model.networks[0], model.loss, *batch[1:])
            lines.append(Line(topic, *look(model, *batch)))
        except (ValueError, TypeError, tf.errors.OpError) as error:
            text = getattr(error, "message", None) or str(error)  # TensorFlow's, without the operation
            lines.append(Line(topic, False, " ".join(text.split())))
            if topic in ("loss", "targets"):
                break
    return Report(tuple(lines))


def _first(batch):
    if isinstance(batch, tf.data.Dataset):
        batch = next(iter(batch), None)
    if not isinstance(batch, (tuple, list)) or len(batch) not in (2, 3):
        raise ValueError(
            "batch must be (x, y) or (x, y, sample_weight), arrays or tensors, or a tf.data.Dataset of such "
            f"batches with at least one; it is {'empty' if batch is None else type(batch).__name__}."
        )
    return keras.tree.map_structure(as_tensor, (*batch, None)[:3])


def _weighted(model):
    if isinstance(model, WeightedModel):
        return model
    robust = RobustModel(model)
    robust.compile(model.optimizer, model.loss, loss_weights=outputs.loss_weights_of(model))
    return robust


def _outputs(model, x, y):
    """The outputs that have a loss, of all the networks."""
    predictions = [network(x, training=False) for network in model.networks]
    parts = [outputs.split(outputs.loss_of(model, y_pred), y, y_pred) for y_pred in predictions]
    return list(itertools.chain(*parts))


def _look_at_loss(model, x, y, sample_weight):
    check_targets_given(y)
    check_batched(y)
    check_rows(x, y, None)
    # Labels are checked later; here class 0 is always valid.
    y = keras.tree.map_structure(
        lambda t: t if t is None or t.dtype.is_floating else tf.zeros(t.shape, tf.int64), y
    )
    parts = _outputs(model, x, y)
    for part in parts:
        per_example_loss(*part[:3])
    names = ", ".join(dict.fromkeys(loss_kinds.name_of(part.loss) for part in parts))
    return True, f"{names}: one value per example"


def _look_at_targets(model, x, y, sample_weight):
    labels, weights = keras.tree.map_structure(
        lambda t: None if t is None else np.asarray(t), (y, sample_weight)
    )
    check_data(model, x, labels)
    check_weights(weights)
    check_rows(x, y, sample_weight)
    for given in labels_of(model, labels, model.networks[0](x, training=False)):
        given.check()
    parts = _outputs(model, x, y)
    if isinstance(weights, np.ndarray) and len(parts) == len(model.networks):
        shape = tuple(parts[0].y_pred.shape)
        check_weight_shape(weights.shape, shape[: max(1, len(shape) - 1)])
    values = np.concatenate([np.ravel(per_example_loss(*part[:3])) for part in parts])
    bad = int(np.sum(~np.isfinite(values)))
    if bad:
        return False, f"{bad} losses are not finite; such examples get weight 0 (metric nonfinite)."
    shapes = ", ".join(str(tuple(t.shape)) for t in keras.tree.flatten(y))
    return True, f"{shapes}, losses from {values.min():.4g} to {values.max():.4g}"


def _look_at_head(model, x, y, sample_weight):
    found = []
    for part in _outputs(model, x, y):
        values = np.asarray(tf.cast(part.y_pred, tf.float32))
        values = values[np.isfinite(values)]
        if not values.size:
            return False, "No output is a finite number; look at the inputs and the weights."
        is_share = values.min() >= 0 and values.max() <= 1
        hidden = hidden_logits(part.y_pred) is not None
        from_logits = getattr(part.loss, "from_logits", None)
        wants_probabilities = loss_kinds.expects_probabilities(part.loss)
        if wants_probabilities and not (hidden or is_share):
            return False, (
                f"{loss_kinds.name_of(part.loss)} takes probabilities, and the outputs reach from "
                f"{values.min():.3g} to {values.max():.3g}. Write from_logits=True in the loss, or end the "
                "network in a softmax or sigmoid."
            )
        if from_logits and hidden:
            return False, (
                f"{loss_kinds.name_of(part.loss)} takes logits (from_logits=True), and the network ends in a "
                "softmax or sigmoid. Take one of them away."
            )
        if hidden:
            found.append("probabilities, ranked by the logits behind the softmax or sigmoid")
        elif wants_probabilities:
            found.append("probabilities, ranked by the logits that they have")
        else:
            found.append("logits" if from_logits else "values as they are")
    return True, "; ".join(dict.fromkeys(found))


def _look_at_batch_norm(model, x, y, sample_weight):
    if model.score == "gradient":
        for network in model.networks:
            check_no_batch_mixing(network, x)
        return True, "none that mixes examples, as PRL(G) needs it"
    return True, f"allowed with score={model.score!r}"


def _look_at_classes(model, x, y, sample_weight):
    described = []
    for labels in labels_of(model, y):
        if labels.is_shares:
            continue
        given = np.ravel(labels.y).astype(int)
        counts = np.bincount(given[given != labels.ignored], minlength=labels.classes or 0)
        if not counts.any():
            return False, "Every label of the batch is one that the loss ignores."
        present = np.flatnonzero(counts)
        rarest = present[np.argmin(counts[present])]
        count = counts[rarest]
        described.append(f"{len(present)} of {len(counts)} in the batch, the rarest ({rarest}) {count} times")
        may_go_whole = getattr(model.rule, "min_keep_per_class", None) == 0
        if may_go_whole and count < _RARE * counts[present].mean():
            return False, (
                f"{described[-1]}: what is rare is hard to learn and looks wrong. Look at "
                "kept_fraction_min_class, or write Trim(epsilon, min_keep_per_class=1)."
            )
    return True, "; ".join(described) or "no class labels as integers"


def _look_at_kept(model, x, y, sample_weight):
    with _one_gradient_at_a_time(model, x, y):
        weights = [np.asarray(each) for each in model.example_weights(x, y, sample_weight)]
    kept = [int(np.sum(each > 0)) for each in weights]
    rows = weights[0].size
    if model.unit == "element" and model.score is not None:  # those that count
        rows = int(np.sum(~np.isnan(mean_scores(model, x, y, sample_weight, by_example=False))))
    text = f"{' and '.join(map(str, kept))} of {rows} now (step {int(model.optimizer.iterations)})"
    given = [weights for weights in keras.tree.flatten(sample_weight) if weights is not None]
    if given and not any(np.any(weights) for weights in given):
        return False, f"{text}: every sample_weight is 0."
    if model.score is None or not hasattr(model.rule, "epsilon"):
        return True, text
    epsilon = model.rule.epsilon
    if estimated_of(model.rule) is not None:
        text += f"; training decides how many later, at least {int(kept_count(rows, epsilon.most))}"
        return True, text
    if isinstance(epsilon, keras.optimizers.schedules.LearningRateSchedule):
        epsilon = float(epsilon(10**9))
        text += f"; {int(kept_count(rows, epsilon))} at the schedule's end, epsilon {epsilon:.4g}"
    if epsilon > 0 and int(kept_count(rows, epsilon)) == rows:
        return False, f"{text}: of {rows} examples epsilon {epsilon:.4g} drops none. Take larger batches."
    return True, text


def _look_at_ties(model, x, y, sample_weight):
    if model.score is None:
        return True, "nothing is ranked"
    if not hasattr(model.rule, "ranks") or not resolve(model.score).is_of_gradient:
        return True, "the score is compared as it is"
    parts = _outputs(model, x, y)
    way = "Write score='loss', or a loss whose gradient grows with the error."
    if all(loss_kinds.is_flat(part.loss) for part in parts):
        names = ", ".join(dict.fromkeys(loss_kinds.name_of(part.loss) for part in parts))
        return False, f"The gradient of {names} is the same for every error: it tells no example apart. {way}"
    with _one_gradient_at_a_time(model, x, y):
        scores = np.ravel(mean_scores(model, x, y, sample_weight, by_example=model.unit == "example"))
    scores = scores[np.isfinite(scores)]
    different = count_different(scores)
    if any(loss_kinds.may_be_flat(part.loss) for part in parts) and 2 * different < len(scores):
        return False, f"{len(scores)} scores have {different} values; ties are broken by the loss. {way}"
    return True, f"{len(scores)} scores have {different} values"


def _look_at_memory(model, x, y, sample_weight):
    if model.score != "gradient":
        return True, "nothing is held for each example but its score"
    reasons = [obstacle(network) for network in model.networks]
    if not any(reasons):
        return True, "the norms are taken layer by layer: no gradient of an example is held"
    rows = int(tf.shape(keras.tree.flatten(y)[0])[0])
    held = min(rows, model.microbatch_size or rows)
    weights = model.networks[int(reasons[0] is None)].trainable_weights
    each = sum(int(np.prod(weight.shape)) * tf.as_dtype(weight.dtype).size for weight in weights)
    why = next(filter(None, reasons))
    text = f"{held} gradients of {each / 2**20:.3g} MiB, {held * each / 2**30:.3g} GiB ({why})"
    if held * each <= _MUCH_MEMORY:
        return True, text
    fits = max(1, _MUCH_MEMORY // each)
    return False, f"{text}. Write microbatch_size={fits} for {fits * each / 2**30:.2g} GiB, same result."


@contextlib.contextmanager
def _one_gradient_at_a_time(model, x, y):
    """Saves `check` itself from the memory that it warns of; the scores are the same."""
    given = model.microbatch_size
    if not _look_at_memory(model, x, y, None)[0]:
        model.microbatch_size = 1
    try:
        yield
    finally:
        model.microbatch_size = given


def _look_at_precision(model, x, y, sample_weight):
    policies = {network.dtype_policy.name for network in model.networks}
    is_scaled = isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    if "mixed_float16" in policies and not is_scaled:
        return False, (
            "the network computes in float16, and the loss is not scaled: small gradients become 0. Wrap the "
            "optimizer in keras.optimizers.LossScaleOptimizer."
        )
    return True, f"{', '.join(sorted(policies))}; scores in float32" + (", loss scaled" if is_scaled else "")


def _look_at_strategy(model, x, y, sample_weight):
    check_scope(model)
    replicas = model.distribute_strategy.num_replicas_in_sync
    whole = f"the examples of all {replicas} replicas are ranked together" if replicas > 1 else "one replica"
    compiled = "XLA" if model.jit_compile is True else "graph" if not model.run_eagerly else "eager"
    return True, f"{type(model.distribute_strategy).__name__}, {whole}; {compiled}"


_TOPICS = {
    "loss": _look_at_loss,
    "targets": _look_at_targets,
    "head": _look_at_head,
    "batch normalization": _look_at_batch_norm,
    "classes": _look_at_classes,
    "kept": _look_at_kept,
    "ties": _look_at_ties,
    "memory": _look_at_memory,
    "precision": _look_at_precision,
    "strategy": _look_at_strategy,
}
