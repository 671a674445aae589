"""What each pass of `recompute=True` sees and leaves behind, and in which order TensorFlow runs the two."""

import collections

import keras
import numpy as np
import pytest
import tensorflow as tf
from arrays import assert_all_close
from dial import Dial
from keras import layers, losses
from tensorflow.python.eager import context

import prl_keras as prl
from tests.models.recompute_test import (
    CROSS_ENTROPY,
    EAGER,
    FIT,
    TARGETS,
    N,
    X,
    Y,
    make_network,
    robust,
)


class Watch(layers.Layer):
    """Keeps what it is called with."""

    def call(self, x):
        self.seen = [*getattr(self, "seen", []), x.numpy()] if tf.executing_eagerly() else []
        return x


def by_target(y_true, y_pred):
    """A score that the test chooses: the first target."""
    del y_pred
    return y_true[:, 0]


def test_the_backward_pass_is_of_the_kept_alone():
    model = robust(make_network(Watch), by_target, loss="mse", recompute=True, **EAGER)
    model.train_on_batch(X, TARGETS)
    whole, kept = model.network.layers[1].seen
    np.testing.assert_array_equal(kept, whole[np.sort(np.argsort(TARGETS[:, 0])[: int(0.6 * N)])])


@pytest.mark.parametrize("recompute", [False, True])
def test_batch_norm(recompute):
    """Both score with the statistics of the whole batch; recomputed, only the kept move the averages."""
    normalization = layers.BatchNormalization(momentum=0.9, epsilon=0)
    network = keras.Sequential([keras.Input([4]), normalization, layers.Dense(3)])
    kernel = network.get_weights()[4].astype("float64")
    model = robust(network, by_target, loss="mse", recompute=recompute, **EAGER)
    logs = model.train_on_batch(X, TARGETS, return_dict=True)

    kept = np.argsort(TARGETS[:, 0])[: int(0.6 * N)]
    seen = X[kept] if recompute else X
    np.testing.assert_allclose(normalization.moving_mean, 0.1 * seen.mean(0), rtol=1e-5)
    np.testing.assert_allclose(normalization.moving_variance, 0.9 + 0.1 * seen.var(0), rtol=1e-5)
    outputs = (X - X.mean(0)) / X.std(0) @ kernel
    errors = ((outputs - TARGETS) ** 2).mean(1)
    np.testing.assert_allclose(logs["loss_all"], errors.mean(), rtol=1e-4)
    outputs = (X[kept] - seen.mean(0)) / seen.std(0) @ kernel
    np.testing.assert_allclose(logs["loss"], ((outputs - TARGETS[kept]) ** 2).mean(), rtol=1e-4)


def test_a_batch_of_padding_alone_leaves_finite_weights():
    model = robust(make_network(layers.BatchNormalization), recompute=True)
    before = [w.numpy() for w in model.trainable_weights]
    model.fit(X, Y, sample_weight=np.zeros(N), **FIT)
    assert all(np.isfinite(w).all() for w in model.get_weights())
    assert_all_close(model.trainable_weights, before, atol=0)


@pytest.mark.parametrize("reduction", ["sum_over_batch_size", None])
def test_an_empty_batch_and_a_single_example(reduction):
    loss = losses.SparseCategoricalCrossentropy(from_logits=True, reduction=reduction)
    models = [robust(make_network(), loss=loss, recompute=r, **EAGER) for r in (False, True)]
    for model in models:
        before = model.get_weights()
        model.train_on_batch(X[:0], Y[:0])
        assert_all_close(model.get_weights(), before, atol=0)
        model.train_on_batch(X[:1], Y[:1])
    assert_all_close(models[1].get_weights(), models[0].get_weights())


def test_where_the_two_networks_agree_nothing_moves():
    networks = [make_network(seed=seed) for seed in (0, 1)]
    model = robust(networks, None, exchange="disagreement", recompute=True, **EAGER)
    networks[1].set_weights(networks[0].get_weights())
    before = model.get_weights()
    logs = model.train_on_batch(X, Y, return_dict=True)
    assert logs["kept_fraction"] == 0 and logs["loss"] == 0
    assert_all_close(model.get_weights(), before, atol=0)


class Compiled(layers.Layer):
    """Dropout and batch normalization in a `tf.function` of their own, traced once for both passes."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dropout, self.normalization = layers.Dropout(0.5), layers.BatchNormalization()

    def build(self, input_shape):
        self.normalization.build(input_shape)

    @tf.function
    def call(self, x, training=None):
        return self.normalization(self.dropout(x, training=training), training=training)


STATEFUL = {
    "plain": (lambda: [layers.Dropout(0.5), layers.BatchNormalization()], {}),
    "compiled": (lambda: [Compiled()], {}),
    "prl_g": (lambda: [layers.Dropout(0.5)], {"score": "gradient"}),
    "microbatches": (lambda: [layers.Dropout(0.5)], {"score": "gradient", "microbatch_size": 3}),
}


@pytest.mark.daily("plain")
@pytest.mark.parametrize("name", STATEFUL)
def test_seeds_and_statistics_move_once_a_step(name):
    """With nothing dropped it is plain `fit`, masks and statistics included, in every number."""
    middle, options = STATEFUL[name]

    def network():
        keras.utils.set_random_seed(5)
        return keras.Sequential([keras.Input([4]), layers.Dense(6), *middle(), layers.Dense(3)])

    data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(8)
    plain = network()
    plain.compile(keras.optimizers.SGD(0.3), CROSS_ENTROPY, **EAGER)
    logged = plain.fit(data, epochs=2, verbose=0).history["loss"]
    dial = Dial()
    model = robust(network(), rule=prl.Trim(dial), recompute=True, **options)
    start = [v.numpy() for v in model.network.variables]
    for epsilon in (0.0, 0.4):
        dial.epsilon.assign(epsilon)
        for variable, value in zip(model.network.variables, start, strict=True):
            variable.assign(value)
        history = model.fit(data, epochs=2, verbose=0).history
        seeds = [[v.numpy() for v in m.variables if "seed" in v.name] for m in (plain, model.network)]
        assert seeds[0] and np.array_equal(*seeds)
        if epsilon == 0:
            assert_all_close(model.network.get_weights(), plain.get_weights())
            np.testing.assert_allclose(history["loss"], logged, rtol=1e-5)
            np.testing.assert_allclose(history["loss_all"], logged, rtol=1e-5)


class MeanSquare(layers.Layer):
    def call(self, x):
        self.add_loss(0.1 * keras.ops.mean(keras.ops.square(x)))
        return x


@pytest.mark.daily("1")
@pytest.mark.parametrize("count", [1, 2])
def test_losses_that_layers_add(count):
    """In `loss_all` over the whole batch, in the step over the kept; of two networks each its own."""
    runs = []
    for recompute in (False, True):
        networks = [make_network(MeanSquare, seed=seed) for seed in range(count)]
        options = {} if recompute else EAGER
        model = robust(networks if count == 2 else networks[0], recompute=recompute, **options)
        weights = model.example_weights(X[:8], Y[:8])
        parts = [n.layers[0](X[:8]).numpy() for n in networks]
        extra = [0.1 * np.mean(h[w.numpy() > 0] ** 2) for h, w in zip(parts, weights)]
        all_extra = [0.1 * np.mean(h**2) for h in parts]
        logs = model.train_on_batch(X[:8], Y[:8], return_dict=True)
        runs.append((logs, np.mean(extra), np.mean(all_extra)))
        model.reset_metrics()
        model.fit(X, Y, **FIT)  # another trace
    (masked, _, _), (recomputed, extra, all_extra) = runs
    assert recomputed["loss_all"] == pytest.approx(masked["loss_all"], rel=1e-5)
    assert recomputed["loss"] - extra == pytest.approx(masked["loss"] - all_extra, rel=1e-5)


def test_a_dropped_example_that_is_not_a_number_leaves_no_trace():
    y = TARGETS.copy()
    y[[3, 7]] = 99
    ill = X.copy()
    ill[3], ill[7, 0] = np.nan, np.inf
    models = [robust(make_network(), by_target, loss="mse", recompute=True, **EAGER) for _ in range(2)]
    for model, x in zip(models, (X, ill)):
        model.train_on_batch(x, y)
    assert_all_close(models[1].get_weights(), models[0].get_weights(), atol=0)


def ancestors(nodes, name):
    """Names of the nodes of a GraphDef that must have run before `name` does."""
    found, waiting = set(), [name]
    while waiting:
        before = {node_of(i) for i in nodes[waiting.pop()].input} - found
        found |= before
        waiting.extend(before)
    return found


def node_of(edge):
    return edge.lstrip("^").split(":")[0]


@pytest.mark.daily("gradient-False")
@pytest.mark.parametrize("score, recompute", [("loss", True), ("gradient", True), ("gradient", False)])
def test_a_network_is_scored_before_it_is_updated(score, recompute):
    """In the graph as it runs: TensorFlow's optimizer loses control edges here, see `passes._once_known`.

    Without that, some steps in a hundred on a busy machine score with half-updated weights.
    """
    loss = losses.SparseCategoricalCrossentropy(from_logits=True, reduction="sum")  # norms: a pass apart
    networks = [make_network(seed=seed) for seed in (0, 1)]
    model = robust(networks, score, loss=loss, optimizer=keras.optimizers.SGD(0.01), recompute=recompute)
    context.context().enable_graph_collection()
    model.train_on_batch(X, Y)
    graphs = context.context().export_run_metadata().function_graphs
    context.context().disable_graph_collection()

    nodes = max((graph.post_optimization_graph.node for graph in graphs), key=len)
    nodes, reads = {node.name: node for node in nodes}, collections.defaultdict(set)

    def source(node, place):
        return nodes[node_of(node.input[place])]

    def variable_of(node):  # behind the switch of a condition
        before = source(node, 0)
        return variable_of(before) if before.op in ("Switch", "Identity") else before.name

    for node in nodes.values():
        if node.op == "ReadVariableOp":
            reads[variable_of(node)].add(node.name)
    assigned = [node for node in nodes.values() if node.op == "AssignVariableOp"]
    guarded = [node for node in assigned if source(node, 1).op == "Select"]
    updates = [node for node in guarded if source(source(node, 1), 1).op == "Sub"]  # of the weights
    assert len(updates) == 8 and all(len(reads[variable_of(update)]) > 1 for update in updates)
    for update in updates:
        assert reads[variable_of(update)] <= ancestors(nodes, update.name)
