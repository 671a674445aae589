"""Scores and weights of a batch in inference mode: no dropout, moving statistics in batch normalization."""

import functools
import typing
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from prl_keras.inputs import nonfinite, outputs
from prl_keras.inputs.tensors import number_of_examples
from prl_keras.keras_gaps.internals import compile_config
from prl_keras.keras_gaps.replicas import on_one_replica
from prl_keras.models import passes
from prl_keras.models.batch import batch_of, check_inputs, may_skip_targets, ranked_batch
from prl_keras.models.consistency import compare
from prl_keras.models.elements import label_shape
from prl_keras.models.global_batch import examples_of, weigh_good


def example_scores(
    model: keras.Model, x: typing.Any, y: typing.Any, sample_weight: typing.Any
) -> list[tf.Tensor]:
    """Scores, float32 `[batch]` per network; `[batch, ...]` for elements. `score=None` is a ValueError."""
    _check_ranks(model)
    batch, started = _scored(model, x, y, sample_weight)
    return [_in_shape(each.scores, model, batch, started) for each in started]


def example_weights(
    model: keras.Model, x: typing.Any, y: typing.Any, sample_weight: typing.Any
) -> list[tf.Tensor]:
    """The weights that the rule gives now, float32 `[batch]` per network; `[batch, ...]` for elements."""
    batch, started = _scored(model, x, y, sample_weight)
    weighed, _ = weigh_good(model.weigh, examples_of(model, batch, started))
    return [_in_shape(each.weights, model, batch, started) for each in weighed]


def mean_scores(
    model: keras.Model, x: typing.Any, y: typing.Any, sample_weight: typing.Any, by_example: bool
) -> tf.Tensor:
    """The mean score over the networks, float32 `[batch]`; infinity if non-finite, NaN for padding.

    Args:
        by_example: Whether to average the scores of elements over each example; else `[batch, ...]`.
    """
    _check_ranks(model)
    step_weights = keras.tree.map_structure(
        lambda t: None if t is None or len(t.shape) < 2 else t, sample_weight
    )
    batch, started = _scored(model, x, y, step_weights)
    scores = tf.add_n([each.scores for each in started]) / len(started)
    is_decided = model.unit == "element" or may_skip_targets(model)
    is_bad = batch.is_bad if is_decided else nonfinite.find((x, y), x, number_of_examples(y))
    if by_example and model.unit == "element":
        scores, batch = batch.by_example(scores), batch.of_examples
        is_bad = batch.is_bad
    scores = tf.where(is_bad, np.inf, scores)
    scores = tf.where(batch.is_ranked, scores, np.nan)
    return scores if by_example else _in_shape(scores, model, batch, started)


def predictions_spec(network: keras.Model, x: typing.Any) -> typing.Any:
    """The structure of a network's predictions on a batch, with their shapes; a subclass is traced for it."""
    declared = outputs.symbolic_outputs(network)
    if declared is not None:
        return declared
    traced = tf.function(lambda x: network(x, training=False), autograph=False)
    return traced.get_concrete_function(x).structured_outputs


def _check_ranks(model):
    if model.score is None:
        raise ValueError(
            "This model has score=None, so it ranks nothing. Build it with "
            "score='loss_layer_gradient', or score a plain compiled Keras model."
        )


def _scored(model, x, y, sample_weight):
    """-> (the `Batch` that is ranked, passes with scores); scores of non-finite examples stay non-finite."""
    y, sample_weight = outputs.without_lists(model.networks[0], model.loss, y, sample_weight)
    check_inputs(model, x, y)
    batch = batch_of(model, x, y, sample_weight)._replace(x=x, y=y)
    started = [passes.InferencePass(model, network, batch) for network in model.networks]
    ranked = ranked_batch(model, batch, started)
    if model.score == "loss":
        compare(model, ranked, started)
    as_given = ranked._replace(y=tf.reshape(y, tf.shape(ranked.y)) if ranked.examples else y)
    for each in started:
        each.score(as_given)
    return ranked, started


def _in_shape(values, model, batch, started):
    """Values `[n]` of elements in the shape of the labels; values of examples unchanged."""
    if batch.examples is None:
        return values
    y_pred = started[0].predictions
    return tf.reshape(values, label_shape(batch.examples.y, y_pred, outputs.loss_of(model, y_pred)))


def graph_of_example_weights(model: keras.Model) -> Callable[..., list[tf.Tensor]]:
    """`example_weights` as a `tf.function`, retraced only after a new call of `compile`."""
    compiled, graph = model.__dict__.get("_weights_graph", (None, None))
    if graph is None or compiled is not compile_config(model):
        run = functools.partial(on_one_replica, model.distribute_strategy, model.example_weights)
        graph = tf.function(run, autograph=False, reduce_retracing=True)
        model.__dict__["_weights_graph"] = (compile_config(model), graph)
    return graph
