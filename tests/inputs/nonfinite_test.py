"""Examples that are not finite: ranked worst, counted, and without a trace in what is learnt."""

import keras
import numpy as np
import pytest
from arrays import assert_all_close, assert_all_equal

import prl_keras as prl

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=[12, 5]).astype("float32"), RNG.normal(size=[12, 2]).astype("float32")
LABELS = RNG.integers(3, size=12)
BAD = [np.nan, np.inf, -np.inf]
GRAPH = {"jit_compile": "auto"}
SCORES = ["loss", "loss_layer_gradient", "gradient", None]


def network(outputs=2, batch_norm=False, activation="tanh"):
    keras.utils.set_random_seed(1)
    layers = [keras.layers.Dense(7, activation), keras.layers.Dense(outputs)]
    if batch_norm:
        layers.insert(1, keras.layers.BatchNormalization())
    return keras.Sequential([keras.Input([5]), *layers])


def robust(outputs=2, score="loss_layer_gradient", epsilon=0.25, batch_norm=False, loss="mse", **options):
    """Without a graph unless the options have one."""
    optimizer = keras.optimizers.SGD(0.1, momentum=0.9)
    build = {name: options.pop(name) for name in ("recompute", "rule") if name in options}
    model = prl.RobustModel(network(outputs, batch_norm), score=score, **{"rule": prl.Trim(epsilon), **build})
    model.compile(optimizer, loss, **(options or {"run_eagerly": True}))
    return model


def step(model, x, y, **options):
    return model.train_on_batch(x, y, return_dict=True, **options)


def all_state(model):
    return [np.array(v) for v in [*model.weights, *model.optimizer.variables]]


def spoilt(array, rows, value):
    array = array.copy()
    array[rows, 0] = value
    return array


@pytest.mark.daily("y-*", "x-loss_layer_gradient")
@pytest.mark.fault(6, 7)
@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("where", ["x", "y"])
def test_a_step_is_that_of_the_finite_examples(score, where):
    rows = [1, 7, 8]
    x, y = (spoilt(X, rows, BAD), Y) if where == "x" else (X, spoilt(Y, rows, BAD))
    model = robust(score=score, epsilon=0.25, **(GRAPH if where == "x" else {}))
    logs = step(model, x, y)
    assert logs["nonfinite"] == 3 and np.isfinite(list(logs.values())).all()

    good = np.setdiff1d(np.arange(12), rows)
    alone = robust(score=score, epsilon=0.0)  # the three of the quarter are these
    step(alone, X[good], Y[good])
    assert_all_close(all_state(model), all_state(alone))


@pytest.mark.daily("False")
@pytest.mark.fault(6)
@pytest.mark.parametrize("recompute", [False, True])
def test_more_of_them_than_epsilon_do_not_count_either(recompute):
    rows = np.arange(2, 9)
    model = robust(epsilon=0.25, recompute=recompute, **GRAPH)
    step(model, spoilt(X, rows, np.nan), Y)
    good = np.setdiff1d(np.arange(12), rows)
    alone = robust(epsilon=0.0)
    step(alone, X[good], Y[good])
    assert_all_close(all_state(model), all_state(alone))


@pytest.mark.daily("loss--3e+38", "loss_layer_gradient--3e+38", "gradient--3e+38")
@pytest.mark.fault(7)
@pytest.mark.parametrize("value", [1e30, -3e38])
@pytest.mark.parametrize("score", SCORES)
def test_targets_whose_loss_overflows(value, score):
    model = robust(score=score)
    logs = step(model, X, spoilt(Y, [4], value))
    assert logs["nonfinite"] == 1 and np.isfinite(list(logs.values())).all()
    good = np.setdiff1d(np.arange(12), [4])
    alone = robust(score=score, rule=lambda scores, is_ranked, step: prl.KeepLowest(9)(scores, is_ranked))
    step(alone, X[good], Y[good])
    assert_all_close(all_state(model), all_state(alone))


@pytest.mark.daily("Identity-{'jit_compile': 'auto'}", "UnitNormalization-{'run_eagerly': True}")
@pytest.mark.fault(7)
@pytest.mark.parametrize("options", [{"run_eagerly": True}, GRAPH], ids=str)
@pytest.mark.parametrize(
    "layer", [keras.layers.Identity, keras.layers.UnitNormalization], ids=lambda t: t.__name__
)
def test_a_gradient_that_overflows_with_the_loss(layer, options):
    """PRL(G), with norms layer by layer and by the vectorized map."""
    models = []
    for rows in (np.arange(12), np.setdiff1d(np.arange(12), [4])):
        keras.utils.set_random_seed(1)
        net = keras.Sequential([keras.Input([5]), keras.layers.Dense(7), layer(), keras.layers.Dense(2)])
        rule = lambda scores, is_ranked, step: prl.KeepLowest(9)(scores, is_ranked)  # noqa: E731
        models.append(prl.RobustModel(net, "gradient", rule))
        models[-1].compile(keras.optimizers.SGD(0.1), "mse", **options)
        x = np.where(np.arange(12)[:, None] == 4, 100 * X, X)
        logs = step(models[-1], x[rows], spoilt(Y, [4], -3e38)[rows])
        assert logs["nonfinite"] == (len(rows) == 12)
    assert_all_close(*map(all_state, models))


STEPS = [
    (method, batch_norm)
    for method, row in prl.METHODS.items()
    for batch_norm in (False, True)
    if row.score != "gradient" or not batch_norm  # which has no gradient of one example
    if row.score is not None or method == "decouple"  # not plain Keras
]


@pytest.mark.daily("prl_l-True")
@pytest.mark.fault(6)
@pytest.mark.parametrize("method, batch_norm", STEPS)
def test_a_batch_of_nothing_else_is_skipped(method, batch_norm):
    is_class = "regression" not in prl.METHODS[method].tasks
    seeds = iter([1, 2])

    def fresh():
        model = network(3 if is_class else 2, batch_norm)
        keras.utils.set_random_seed(next(seeds))
        model.set_weights([RNG.normal(size=w.shape) ** 2 for w in model.get_weights()])
        return model

    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True) if is_class else "mse"
    model = prl.build(method, fresh, epsilon=0.25, loss=loss, optimizer=keras.optimizers.Adam(0.1))
    y = LABELS if is_class else Y
    step(model, X, y)
    before = all_state(model)
    logs = step(model, np.full_like(X, np.nan), y)
    assert logs["nonfinite"] == 12
    assert_all_equal(all_state(model), before)
    assert np.isfinite(step(model, X, y)["loss"])


@pytest.mark.daily("False")
@pytest.mark.fault(6)
@pytest.mark.parametrize("batch_norm", [False, True])
def test_a_gradient_that_is_not_finite_is_not_applied(batch_norm):
    model = prl.RobustModel(network(2, batch_norm, "relu"), rule=prl.Trim(0.0))
    model.compile("adam", "mse")
    step(model, X, Y)
    before = all_state(model)
    logs = step(model, np.clip(1e38 * X, -3e38, 3e38), Y)  # finite, but not what the network makes of it
    assert logs["nonfinite"] == 12
    assert_all_equal(all_state(model), before)


@pytest.mark.fault(6)
def test_batch_norm_keeps_its_statistics():
    model = robust(batch_norm=True)
    for _ in range(3):
        step(model, spoilt(X, [0, 5], np.nan), Y)
    assert all(np.isfinite(w).all() for w in all_state(model))


def test_padding_is_not_counted():
    model = robust()
    weight = np.ones(12, "float32")
    weight[[2, 3]] = 0
    logs = step(model, spoilt(X, [2, 9], np.nan), Y, sample_weight=weight)
    assert logs["nonfinite"] == 1


@pytest.mark.daily("options1")
@pytest.mark.parametrize("options", [{"jit_compile": True}, {"run_eagerly": True}])
def test_compiled_by_xla_or_not_at_all(options):
    expected, model = robust(**GRAPH), robust(**options)
    for x in (spoilt(X, [1, 4], np.inf), np.full_like(X, np.nan), X):
        step(expected, x, Y)
        step(model, x, Y)
    assert_all_close(all_state(model), all_state(expected))


@pytest.mark.fault(6)
def test_fit_counts_them_per_epoch():
    model = robust(**GRAPH)
    history = model.fit(spoilt(X, [1, 4, 11], np.nan), Y, batch_size=5, epochs=2, verbose=0).history
    assert history["nonfinite"] == [3, 3]


@pytest.mark.fault(23)
def test_other_structures_and_types():
    inputs = {"a": keras.Input([5]), "b": keras.Input([1], dtype="int32")}
    joined = keras.layers.Concatenate()([inputs["a"], keras.ops.cast(inputs["b"], "float32")])
    model = prl.RobustModel(keras.Model(inputs, keras.layers.Dense(2)(joined)))
    model.compile("sgd", "mse", run_eagerly=True)
    x = {"a": spoilt(X, [3], np.nan), "b": np.arange(12, dtype="int32")[:, None]}
    assert step(model, x, Y)["nonfinite"] == 1
    assert all(np.isfinite(w).all() for w in all_state(model))


def test_loss_scaling_looks_for_itself():
    model = prl.RobustModel(network(), rule=prl.Trim(0.25))
    inner = keras.optimizers.SGD(0.1)
    model.compile(keras.optimizers.LossScaleOptimizer(inner, initial_scale=1e38), "mse")
    logs = step(model, X * 1e3, Y)
    assert logs["nonfinite"] == 0 and float(model.optimizer.dynamic_scale) < 1e38
    assert all(np.isfinite(w).all() for w in all_state(model))


@pytest.mark.fault(6)
def test_in_padding_they_are_in_no_log():
    weight = np.where(np.arange(12) < 6, 1.0, 0.0)
    logs = []
    for x in (X, spoilt(X, np.arange(6, 12), np.nan)):
        logs.append(robust().fit(x, Y, sample_weight=weight, batch_size=12, verbose=0).history)
    for name, values in logs[0].items():
        assert logs[1][name] == pytest.approx(values, rel=1e-6), name


@pytest.mark.fault(6)
@pytest.mark.parametrize("activation", ["tanh", "relu"])  # of NaN ReLU makes a number
def test_score_examples_finds_them_most_suspect(activation):
    model = prl.RobustModel(network(activation=activation))
    model.compile("sgd", "mse")
    scores = prl.score_examples(model, (spoilt(X, [1, 7, 8], BAD), Y))
    assert np.isinf(scores[[1, 7, 8]]).all() and np.isfinite(np.delete(scores, [1, 7, 8])).all()
