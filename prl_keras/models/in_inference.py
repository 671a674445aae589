"""Scores and weights of a batch without training: no dropout, moving statistics in batch normalization."""

import functools

import tensorflow as tf

from prl_keras.keras_gaps.internals import compile_config
from prl_keras.keras_gaps.replicas import on_one_replica
from prl_keras.models import passes
from prl_keras.models.batch import batch_of
from prl_keras.models.global_batch import examples_of, weigh_good


def example_scores(model, x, y):
    """float32 `[batch]` for each network.

    Raises:
        ValueError: if the model was built with `score=None`.
    """
    if model.score is None:
        raise ValueError(
            "This model has score=None, so it ranks nothing. Build it with "
            "score='loss_layer_gradient', or score a plain compiled Keras model."
        )
    return [passes.InferencePass(model, network, x).score(y).scores for network in model.networks]


def example_weights(model, x, y, sample_weight):
    """What the rule makes of a batch now, float32 `[batch]` for each network."""
    batch = batch_of(x, y, sample_weight)._replace(x=x, y=y)
    started = [passes.InferencePass(model, network, x).score(y) for network in model.networks]
    batch = batch.with_bad_losses_replaced(model, [each.y_pred for each in started])
    weighed, _ = weigh_good(model.weigh, examples_of(model, batch, started))
    return [each.weights for each in weighed]


def graph_of_example_weights(model):
    """`example_weights` as a graph, traced once for all the fits between two calls of compile."""
    compiled, graph = model.__dict__.get("_weights_graph", (None, None))
    if graph is None or compiled is not compile_config(model):
        run = functools.partial(on_one_replica, model.distribute_strategy, model.example_weights)
        graph = tf.function(run, autograph=False, reduce_retracing=True)
        model.__dict__["_weights_graph"] = (compile_config(model), graph)
    return graph
