"""The training step on batches that hypothesis chooses: ties, padding, huge targets, no example at all.

The network is linear with one output, and its weights, the inputs and the targets are small whole numbers, in
which every precision computes the scores exactly: which examples count is then never a matter of rounding.
"""

import functools

import keras
import numpy as np
import oracle
import pytest
from arrays import assert_all_close
from dial import Dial
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import prl_keras as prl

# However busy the machine is, the same cases and no limit of time.
few = settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
WIDTH = 2
POLICIES = {"float32": 1e-5, "mixed_bfloat16": 2e-2, "mixed_float16": 5e-3}  # relative error of a gradient

# name: (the oracle's method, options of the model, options of compile)
GRAPH, EAGER, XLA = {"jit_compile": False}, {"run_eagerly": True}, {"jit_compile": True}
STEPS = {
    "loss": ("spl", {"score": "loss"}, GRAPH),
    "loss_layer": ("prl_l", {}, GRAPH),
    "loss_layer_eager": ("prl_l", {}, EAGER),
    "loss_layer_xla": ("prl_l", {}, XLA),
    "loss_layer_recompute": ("prl_l", {"recompute": True}, GRAPH),
    "gradient": ("prl_g", {"score": "gradient"}, GRAPH),
    "gradient_xla": ("prl_g", {"score": "gradient"}, XLA),
    "gradient_microbatches": ("prl_g", {"score": "gradient", "microbatch_size": 2}, GRAPH),
    "pair": ("co_prl_l", {}, GRAPH),
}
each_step = pytest.mark.parametrize("name", STEPS)


def linear(dtype="float32"):
    dense = keras.layers.Dense(1, kernel_initializer="zeros", dtype=dtype)
    return keras.Sequential([keras.Input((WIDTH,), dtype="float32"), dense])


@functools.cache
def made(name, policy="float32"):
    """-> (model, its networks, the dial of its epsilon); plain gradient descent, rate 1."""
    method, options, compiled = STEPS[name]
    dial = Dial()
    options = {"rule": prl.Trim(dial), **options}
    keras.config.set_dtype_policy(policy)
    try:
        if method == "co_prl_l":
            networks = [linear(policy), linear(policy)]
            networks[1].set_weights([np.ones((WIDTH, 1)), np.zeros(1)])  # two alike would be warned of
            model = prl.CoTeachingModel(*networks, **options)
        else:
            networks = [linear(policy)]
            model = prl.RobustModel(*networks, **options)
    finally:
        keras.config.set_dtype_policy("float32")
    optimizer = keras.optimizers.SGD(1.0)
    if policy == "mixed_float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=8.0)
    model.compile(optimizer, "mse", **compiled)
    return model, networks, dial


def whole(low, high):
    return st.integers(low, high).map(float)


@st.composite
def batches(draw, sizes=(1, 7)):
    """-> (x `[n, 2]`, y `[n, 1]`, sample weights `[n]` of which some are 0), ties among them."""
    n = draw(st.sampled_from(sizes))
    rows = draw(st.lists(st.tuples(whole(-3, 3), whole(-3, 3), whole(-4, 4)), min_size=n, max_size=n))
    table = np.array(rows, np.float32).reshape(n, 3)
    sample_weight = draw(st.lists(st.sampled_from([0.0, 0.5, 1.0, 3.0]), min_size=n, max_size=n))
    return table[:, :WIDTH], table[:, WIDTH:], np.array(sample_weight, np.float32)


weights = st.lists(whole(-2, 2), min_size=2 * (WIDTH + 1), max_size=2 * (WIDTH + 1))
epsilons = st.integers(0, 99).map(lambda percent: percent / 100)


def start(networks, numbers):
    """Sets the weights of each network: kernel `[2, 1]`, bias `[1]`."""
    for network, own in zip(networks, np.array(numbers, np.float32).reshape(2, WIDTH + 1)):
        network.set_weights([own[:WIDTH, None], own[WIDTH:]])


def step(name, numbers, epsilon, batch, policy="float32"):
    """The gradients that one step applies: for each network a list of arrays."""
    model, networks, dial = made(name, policy)
    start(networks, numbers)
    dial.epsilon.assign(epsilon)
    before = [network.get_weights() for network in networks]
    model.train_on_batch(*batch)
    after = [network.get_weights() for network in networks]
    return [[b - a for b, a in zip(*pair)] for pair in zip(before, after)]


def expected_step(name, numbers, epsilon, batch):
    twins = [linear() for _ in made(name)[1]]
    start(twins, numbers)
    return oracle.step(STEPS[name][0], twins, *batch, loss="mse", epsilon=epsilon)


def assert_same(got, expected, tolerance=1e-5):
    for own, others in zip(got, expected, strict=True):
        largest = max(np.abs(g).max() for g in others)
        assert_all_close(own, others, rtol=tolerance, atol=tolerance * max(largest, 1))


@pytest.mark.daily("loss_layer", "loss_layer_eager", "gradient", "pair")
@each_step
def test_a_step_is_the_oracles_step(name):
    @few
    @given(weights, epsilons, batches())
    def check(numbers, epsilon, batch):
        expected = expected_step(name, numbers, epsilon, batch).gradients
        assert_same(step(name, numbers, epsilon, batch), expected)

    check()


@pytest.mark.daily("loss_layer-mixed_bfloat16")
@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize("name", ["loss_layer", "gradient"])
def test_a_step_in_half_precision_takes_the_same_examples(name, policy):
    @few
    @given(weights, epsilons, batches())
    def check(numbers, epsilon, batch):
        expected = expected_step(name, numbers, epsilon, batch).gradients
        assert_same(step(name, numbers, epsilon, batch, policy), expected, 3 * POLICIES[policy])

    check()


@pytest.mark.daily("loss_layer", "loss_layer_xla", "loss_layer_recompute", "gradient", "pair")
@each_step
def test_what_padding_holds_never_moves_a_weight(name):
    @few
    @given(weights, epsilons, batches(sizes=(7,)), st.sampled_from([0.0, 5.0, -1e15, 1e15, 1e-30]))
    def check(numbers, epsilon, batch, other):
        x, y, sample_weight = batch
        padding = sample_weight == 0
        expected = step(name, numbers, epsilon, batch)
        for changed in (
            (x, np.where(padding[:, None], np.float32(other), y)),
            (np.where(padding[:, None], np.float32(other / 1e3), x), y),
        ):
            assert_same(step(name, numbers, epsilon, (*changed, sample_weight)), expected)

    check()


@pytest.mark.daily("loss_layer", "loss_layer_recompute", "gradient", "pair")
@each_step
def test_an_empty_batch_and_one_of_padding_move_nothing(name):
    empty = np.zeros((0, WIDTH), np.float32), np.zeros((0, 1), np.float32), np.zeros(0, np.float32)
    padding = np.ones((7, WIDTH), np.float32), np.ones((7, 1), np.float32), np.zeros(7, np.float32)
    for batch in (empty, padding):
        for gradients in step(name, [2.0, -1, 1, 1, 0, 1], 0.3, batch):
            assert not any(gradient.any() for gradient in gradients)


@pytest.mark.parametrize("name", ["loss", "loss_layer", "loss_layer_xla", "gradient", "loss_layer_recompute"])
def test_a_dropped_target_may_be_as_wrong_as_it_likes(name):
    @few
    @given(weights, epsilons, batches(sizes=(7,)), st.sampled_from([1e3, 1e10, -1e15]))
    def check(numbers, epsilon, batch, wrong):
        x, y, sample_weight = batch
        dropped = (expected_step(name, numbers, epsilon, batch).weights[0] == 0) & (sample_weight > 0)
        far = np.where(dropped[:, None], np.float32(wrong), y)
        assert_same(
            step(name, numbers, epsilon, (x, far, sample_weight)), step(name, numbers, epsilon, batch)
        )

    check()
