"""`recompute=True` makes the masked step, and where it cannot, what the docstring of `RobustModel` says."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from arrays import assert_all_close
from keras import layers, losses

import prl_keras as prl

RNG = np.random.default_rng(0)
N = 14  # batches of 8 and 6
X, Y = RNG.normal(size=(N, 4)).astype("float32"), RNG.integers(3, size=N)
TARGETS = RNG.normal(size=(N, 3)).astype("float32")
S = RNG.uniform(0.2, 3.0, size=N).astype("float32")
ZEROS = np.where(np.arange(N) % 3 == 1, 0, S)
CROSS_ENTROPY = losses.SparseCategoricalCrossentropy(from_logits=True)
FIT = {"batch_size": 8, "shuffle": False, "verbose": 0}
EAGER = {"run_eagerly": True}
XLA = {"jit_compile": True}  # compiled anew for each size of a batch: the tests have one


def make_network(*middle, seed=0, **dense):
    keras.utils.set_random_seed(seed)
    return keras.Sequential([
        keras.Input([4]), layers.Dense(6, "tanh", **dense), *[m() for m in middle], layers.Dense(3, **dense)
    ])  # fmt: skip


def robust(network, score="loss_layer_gradient", rule=prl.Trim(0.4), loss=CROSS_ENTROPY, **options):
    """A compiled RobustModel, or a pair if `network` is a list of two."""
    names = ("recompute", "microbatch_size", "exchange")
    of_model = {name: options.pop(name) for name in names if name in options}
    if isinstance(network, list):
        model = prl.CoTeachingModel(*network, score, rule, **of_model)
    else:
        model = prl.RobustModel(network, score, rule, **of_model)
    model.compile(**{"optimizer": keras.optimizers.SGD(0.3), "loss": loss, **options})
    return model


def assert_both_ways_agree(make, x=X, y=Y, **fit):
    """`make(recompute)` gives a compiled model: one fit of each moves its weights alike and logs the same."""
    runs = []
    for recompute in (False, True):
        model = make(recompute)
        before = model.get_weights()
        history = model.fit(x, y, **{**FIT, **fit}).history
        runs.append((model.get_weights(), history))
        assert all(np.isfinite(w).all() for w in model.get_weights())
        assert any(np.abs(a - b).max() > 1e-3 for a, b in zip(before, model.get_weights()))
    (masked, masked_history), (recomputed, history) = runs
    assert_all_close(recomputed, masked)
    assert history.keys() == masked_history.keys()
    for name in history:
        np.testing.assert_allclose(history[name], masked_history[name], rtol=1e-5, err_msg=name)


# The same step.


WEIGHTS = {"none": None, "some": S, "zeros": ZEROS}
SCORED = [method for method, row in prl.METHODS.items() if row.score or row.exchange]
METHOD_CASES = [(method, weights) for method in SCORED for weights in WEIGHTS]
METHOD_CASES += [(method, "zeros") for method in prl.METHODS if method not in SCORED]  # most are plain Keras


@pytest.mark.daily("prl_l-zeros", "prl_g-zeros", "co_prl_l-zeros", "gmm-zeros")
@pytest.mark.parametrize("method, weights", METHOD_CASES)
def test_every_method(method, weights):
    def make(recompute):
        seeds = iter(range(2))
        return prl.build(
            method,
            lambda: make_network(seed=next(seeds)),
            epsilon=0.4,
            loss="mse" if method == "huber" else CROSS_ENTROPY,
            optimizer="adam",
            metrics=["mae" if method == "huber" else "accuracy"],
            recompute=recompute,
            **EAGER,
        )

    y = TARGETS if method == "huber" else Y
    assert_both_ways_agree(make, y=y, sample_weight=WEIGHTS[weights])


@pytest.mark.daily("loss-*")
@pytest.mark.parametrize("score, options", [("loss", {"steps_per_execution": 2}), ("gradient", {})], ids=str)
def test_in_a_graph(score, options):
    fit = {"sample_weight": S, "batch_size": 5}
    assert_both_ways_agree(lambda r: robust(make_network(), score, recompute=r, **options), **fit)


@pytest.mark.daily("swap")
@pytest.mark.parametrize("exchange", ["swap", "disagreement"])
def test_a_pair_in_a_graph(exchange):
    def make(recompute):
        regularized = {"kernel_regularizer": keras.regularizers.L2(0.05)}
        networks = [make_network(seed=seed, **regularized) for seed in (0, 1)]
        return robust(networks, exchange=exchange, recompute=recompute)

    assert_both_ways_agree(make)


@pytest.mark.parametrize("microbatch_size", [1, 3])
def test_prl_g_in_microbatches(microbatch_size):
    norm = lambda: layers.GroupNormalization(2)  # noqa: E731
    options = {"microbatch_size": microbatch_size, **EAGER}
    assert_both_ways_agree(lambda r: robust(make_network(norm), "gradient", recompute=r, **options))


def dict_network():
    inputs = {"a": keras.Input([1], name="a"), "b": keras.Input([3], name="b")}
    return keras.Model(inputs, make_network()(layers.Concatenate()([inputs["a"], inputs["b"]])))


L2 = keras.regularizers.L2(0.05)
CASES = {  # name: (options of robust, network, arguments of fit)
    "class_weight": ({}, make_network, {"class_weight": {0: 9, 1: 1, 2: 0.1}}),
    "weight_column": ({}, make_network, {"sample_weight": ZEROS[:, None]}),
    "dict": ({}, dict_network, {"x": {"a": X[:, :1], "b": X[:, 1:]}}),
    "regularizer": ({}, lambda: make_network(kernel_regularizer=L2), {}),
    "loss_weights": ({"loss_weights": 0.3}, make_network, {}),
    "keep_lowest": ({"rule": prl.KeepLowest(2)}, make_network, {}),
    "clip_norm": ({"rule": prl.ClipNorm(0.5)}, make_network, {}),
    "one_example_left": ({"rule": prl.Trim(0.9)}, make_network, {"batch_size": 7}),
    "rule_of_integers": ({"rule": lambda s, *_: tf.cast(s < 0.9, "int32")}, make_network, {}),
    "no_score": ({"score": None}, make_network, {"sample_weight": ZEROS}),
    "weighted_metrics": ({"weighted_metrics": ["accuracy"]}, make_network, {"sample_weight": S}),
}


@pytest.mark.daily("class_weight", "regularizer", "rule_of_integers", "one_example_left")
@pytest.mark.parametrize("name", CASES)
def test_everything_else_that_enters_a_step(name):
    options, network, fit = CASES[name]
    assert_both_ways_agree(lambda r: robust(network(), recompute=r, **options, **EAGER), **fit)


def step_network(mask_zero=False):
    """A prediction for each time step; the steps of token 0 are masked if so asked."""
    keras.utils.set_random_seed(0)
    embedding = layers.Embedding(5, 4, mask_zero=mask_zero)
    return keras.Sequential([keras.Input([6], dtype="int32"), embedding, layers.Dense(3)])


TOKENS, STEPS = RNG.integers(5, size=(N, 6)), RNG.integers(3, size=(N, 6))
REDUCTIONS = ("sum_over_batch_size", "mean", "mean_with_sample_weight", "sum", "none", None)

BY_STEP = RNG.uniform(size=(N, 6))
DATA = {  # name: (network, ignored class, x, y, sample_weight)
    "rows": (make_network, None, X, Y, None),
    "steps": (step_network, None, TOKENS, STEPS, None),
    "weighted_rows_of_steps": (step_network, None, TOKENS, STEPS, ZEROS),
    "masked_steps": (lambda: step_network(mask_zero=True), None, TOKENS, STEPS, BY_STEP),
    "ignored_class": (step_network, 2, TOKENS, STEPS, BY_STEP),
}


@pytest.mark.daily("None-rows", "none-ignored_class", "sum-ignored_class", "sum_over_batch_size-rows")
@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_every_reduction(reduction, name):
    network, ignored, x, y, weights = DATA[name]
    loss = losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=ignored, reduction=reduction)
    rate = 0.01 if reduction in ("sum", "none", None) else 0.3

    def make(recompute):
        optimizer = keras.optimizers.SGD(rate)
        return robust(network(), "loss", recompute=recompute, loss=loss, optimizer=optimizer, **EAGER)

    assert_both_ways_agree(make, x, y, sample_weight=weights)


@pytest.mark.parametrize("loss", ["mse", losses.MeanAbsoluteError(), lambda y, z: (y - z)[:, 0] ** 2])
def test_losses_by_name_and_functions(loss):
    assert_both_ways_agree(lambda r: robust(make_network(), recompute=r, loss=loss, **EAGER), y=TARGETS)


def test_mixed_float16():
    previous = keras.config.dtype_policy()
    try:
        keras.config.set_dtype_policy("mixed_float16")
        models = [robust(make_network(), recompute=recompute) for recompute in (False, True)]
    finally:
        keras.config.set_dtype_policy(previous)
    for model in models:
        model.fit(X, Y, **FIT)
        assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
        assert int(model.optimizer.iterations) == 2
    assert_all_close(models[1].get_weights(), models[0].get_weights(), atol=2e-3)


# Keras around it.


def test_a_rising_epsilon_does_not_retrace():
    traces, rule = [], prl.Trim(prl.linear_ramp(0.6, steps=8))
    model = robust(make_network(), rule=lambda *a: traces.append(1) or rule(*a), recompute=True)
    data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(8)
    kept = model.fit(data, epochs=4, verbose=0).history["kept_fraction"]
    assert len(traces) == 1 and kept[0] > kept[1] > kept[2] > 0.35


def test_saved_and_loaded_it_goes_on(tmp_path):
    model = robust(make_network(layers.BatchNormalization), recompute=True)
    model.fit(X, Y, **FIT)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.recompute is True and loaded.get_config()["recompute"] is True
    for each in (model, loaded):
        each.train_on_batch(X, Y)
    assert_all_close(loaded.get_weights(), model.get_weights())


def test_xla_is_refused_and_auto_does_without_where_only_the_step_knows_how_many_are_kept():
    rule = prl.Trim(prl.linear_ramp(0.4, 10))
    with pytest.raises(ValueError, match=r"jit_compile=True does not go with recompute=True.*'auto'"):
        robust(make_network(), rule=rule, recompute=True, jit_compile=True)
    assert robust(make_network(), rule=rule, recompute=True).jit_compile is False
    assert robust(make_network(), jit_compile=True).jit_compile is True


XLA_CASES = [
    (prl.Trim(0.4), "zeros"),
    (prl.KeepLowest(3), "none"),
    (prl.ClipNorm(0.5), "some"),
    (prl.Trim(0.4), "none"),
    (prl.KeepLowest(3), "zeros"),
    (prl.ClipNorm(0.5), "zeros"),
]


@pytest.mark.daily("ClipNorm*-some")
@pytest.mark.parametrize("rule, weights", XLA_CASES, ids=str)
def test_xla_makes_the_same_step_of_a_rule_that_keeps_a_fixed_number(rule, weights):
    def make(recompute):
        return robust(make_network(), rule=rule, recompute=recompute, **(XLA if recompute else EAGER))

    assert_both_ways_agree(make, sample_weight=WEIGHTS[weights], batch_size=N // 2)


def test_xla_makes_the_same_step_of_a_pair():
    def make(recompute):
        networks = [make_network(seed=seed) for seed in (0, 1)]
        return robust(networks, recompute=recompute, **(XLA if recompute else EAGER))

    assert_both_ways_agree(make, sample_weight=ZEROS, batch_size=N // 2)


def test_sparse_inputs_are_refused():
    inputs = keras.Input([4], sparse=True)
    model = robust(keras.Model(inputs, layers.Dense(3)(inputs)), recompute=True, **EAGER)
    data = tf.data.Dataset.from_tensor_slices((tf.sparse.from_dense(X), Y)).batch(8)
    with pytest.raises(ValueError, match=r"SparseTensor.*recompute=False"):
        model.fit(data, verbose=0)
