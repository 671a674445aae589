"""Steps of methods that weigh examples by their losses or loss-layer gradients, against the oracle's loop."""

import functools

import keras
import numpy as np
import oracle
import tensorflow as tf

import prl_keras as prl

SPARSE = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
NAME = "sparse_softmax_cross_entropy"


def modes(*signature):
    """{name: how a function is run}; its arguments have this signature where the batch size is unknown."""
    return {
        "eager": lambda function: function,
        "unknown batch size": functools.partial(tf.function, input_signature=signature),
        "xla": functools.partial(tf.function, jit_compile=True),
    }


def gradients_by_hand(name, y, z):
    return np.array([oracle.loss_layer_gradient(name, row, target) for row, target in zip(z, y)])


def assert_step_is_that_of_a_loop(method, rule, y, x, weights, jit_compile):
    """Of a network whose logits are its inputs; `rule(run, counts)` are the weights of the method's rule."""
    n, classes = x.shape
    start = [np.eye(classes, dtype="float32"), np.zeros(classes, "float32")]

    def network():
        return keras.Sequential([keras.Input((classes,)), keras.layers.Dense(classes)])

    optimizer = keras.optimizers.SGD(0.1)
    model = prl.build(method, network, epsilon=0.3, loss=SPARSE, optimizer=optimizer, jit_compile=jit_compile)
    twin = network()
    for each in (model, twin):
        each.set_weights(start)
    run = oracle.run_examples(method, twin, x, y, NAME)
    given = rule(run, weights > 0) * weights
    model.train_on_batch(x, y, sample_weight=weights)
    for j, found in enumerate(model.get_weights()):
        mean = sum(w * g[j] for w, g in zip(given, run.gradients)) / n
        np.testing.assert_allclose(found, start[j] - 0.1 * mean, rtol=1e-4, atol=1e-6)
