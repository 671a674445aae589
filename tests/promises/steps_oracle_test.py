"""One training step on losses of one value for each step equals the brute-force oracle, for every method."""

import functools

import keras
import numpy as np
import oracle
import pytest
import steps_oracle
from arrays import assert_all_close
from dial import Dial
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from keras import layers, losses

import prl_keras as prl
from prl_keras.methods import PAPER_METHODS

PAIRS = ("decouple", "co_teaching", "co_prl_l")
BY_ELEMENT = ("min_sgd", "spl", "prl_l", "decouple", "co_teaching", "co_prl_l")
MAX_NORM = {"normclip": 0.4, "ignormclip": 1.0}
N, STEPS, WIDTH, CLASSES = 6, 4, 3, 4

SPARSE = losses.SparseCategoricalCrossentropy(from_logits=True)
IGNORING = losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=0)
OUTSIDE = losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-1)
IGNORED = {"ignoring": 0, "outside": -1}
# name: (the Keras loss, the oracle's name)
LOSSES = {
    "sparse": (SPARSE, "sparse_softmax_cross_entropy"),
    "ignoring": (IGNORING, "sparse_softmax_cross_entropy"),
    "outside": (OUTSIDE, "sparse_softmax_cross_entropy"),
    "one_hot": (losses.CategoricalCrossentropy(from_logits=True), "softmax_cross_entropy"),
    "binary": (losses.BinaryCrossentropy(from_logits=True), "sigmoid_cross_entropy"),
    "mse": (losses.MeanSquaredError(), "mse"),
}
few = settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
PLAIN = {"shuffle": False, "verbose": 0, "batch_size": 4}


def make_network(body="dense", seed=0):
    """A network of `CLASSES` outputs for each step; it hides those of which all the inputs are 0."""
    middle = {
        "dense": lambda: [layers.Dense(5, "tanh")],
        "recurrent": lambda: [layers.SimpleRNN(4, return_sequences=True, unroll=True)],
        "unmasked": lambda: [layers.Dense(5, "tanh")],
    }[body]()
    masking = [] if body == "unmasked" else [layers.Masking()]
    network = keras.Sequential([keras.Input([STEPS, WIDTH]), *masking, *middle, layers.Dense(CLASSES)])
    restart(network, seed)
    return network


def restart(network, seed):
    """Gives the network its first weights."""
    rng = np.random.default_rng([seed, 11])
    network.set_weights([rng.normal(size=w.shape) for w in network.weights])


def labels_for(loss, rng, shape):
    classes = rng.integers(CLASSES, size=shape)
    if loss in ("sparse", "ignoring"):
        return classes
    if loss == "outside":
        return np.where(rng.random(shape) < 0.3, -1, classes)
    if loss == "one_hot":
        return np.eye(CLASSES, dtype="float32")[classes]
    if loss == "binary":
        return rng.integers(2, size=(*shape, CLASSES)).astype("float32")
    return 2 * rng.normal(size=(*shape, CLASSES)).astype("float32")


def make_batch(loss, case, n=N, seed=0):
    """-> (x, y, sample_weight). Cases: "plain", "masked", "weighted", "both", "by_example" (masks too).

    The last example is hidden whole, the last but one has weight 0; ends and a hole of others are hidden.
    """
    rng = np.random.default_rng([seed, n])
    x = rng.normal(size=(n, STEPS, WIDTH)).astype("float32")
    y = labels_for(loss, rng, (n, STEPS))
    if case in ("masked", "both", "by_example"):
        for i, length in enumerate(rng.integers(1, STEPS + 1, n - 1)):
            x[i, length:] = 0
        x[0, 1] = 0
        x[-1] = 0
    step_weights = rng.uniform(0.2, 3.0, (n, STEPS)).astype("float32")
    step_weights[rng.random((n, STEPS)) < 0.3] = 0
    step_weights[-2] = 0
    weights = {"weighted": step_weights, "both": step_weights, "by_example": step_weights.max(axis=1)}
    return x, y, weights.get(case)


def mask_of(body, x):
    """What the network hides, as the oracle is told."""
    return None if body == "unmasked" else np.any(x != 0, axis=-1)


@functools.cache
def made(method, loss="sparse", body="dense", epsilon=0.3, unit="example"):
    """-> (compiled model, its networks); plain gradient descent, rate 1, without a graph."""
    options = {"max_norm": MAX_NORM[method]} if method in MAX_NORM else {}
    if unit == "element":
        options["unit"] = unit
    seeds = iter(range(2))
    model = prl.build(
        method,
        lambda: make_network(body, next(seeds)),
        epsilon=epsilon,
        loss=LOSSES[loss][0],
        optimizer=keras.optimizers.SGD(1.0),
        run_eagerly=True,
        **options,
    )
    return model, networks_of(model)


def networks_of(model):
    return list(getattr(model, "networks", [model]))


def start(networks):
    """Each network as it was made."""
    for seed, network in enumerate(networks):
        restart(network, seed)


def applied(model, networks, batch):
    """The gradients that one step applies: for each network a list of arrays."""
    before = [network.get_weights() for network in networks]
    model.train_on_batch(*batch)
    after = [network.get_weights() for network in networks]
    return [[b - a for b, a in zip(*pair, strict=True)] for pair in zip(before, after, strict=True)]


def assert_same(got, expected, tolerance=1e-4):
    for own, others in zip(got, expected, strict=True):
        largest = max(np.abs(g).max() for g in others)
        assert_all_close(own, others, rtol=tolerance, atol=1e-2 * tolerance * max(largest, 1))


def assert_one_step(method, loss, body, batch, unit="example", epsilon=0.3):
    """The step that is applied is the oracle's; -> the oracle's."""
    model, networks = made(method, loss, body, epsilon, unit)
    start(networks)
    expected = steps_oracle.step(
        method,
        networks,
        *batch,
        loss=LOSSES[loss][1],
        epsilon=epsilon,
        max_norm=MAX_NORM.get(method),
        mask=mask_of(body, batch[0]),
        ignore_class=IGNORED.get(loss),
        unit=unit,
    )
    assert_same(applied(model, networks, batch), expected.gradients)
    return expected


def loss_for(method):
    return "mse" if method == "huber" else "sparse"


# The library against the oracle.


@pytest.mark.daily("*-both")
@pytest.mark.fault(26)
@pytest.mark.parametrize("case", ["masked", "weighted", "both"])
@pytest.mark.parametrize("method", PAPER_METHODS)
def test_every_method(method, case):
    loss = loss_for(method)
    assert_one_step(method, loss, "dense", make_batch(loss, case))


@pytest.mark.daily("spl", "prl_l", "prl_g", "co_prl_l")
@pytest.mark.parametrize("method", PAPER_METHODS)
def test_every_method_of_a_recurrent_network(method):
    loss = loss_for(method)
    assert_one_step(method, loss, "recurrent", make_batch(loss, "both"))


@pytest.mark.parametrize("case", ["plain", "weighted"])
@pytest.mark.parametrize("method", ["spl", "prl_l", "prl_g", "ignormclip", "co_prl_l"])
def test_without_masks(method, case):
    assert_one_step(method, "sparse", "unmasked", make_batch("sparse", case))


@pytest.mark.daily("*-both", "*-by_example")
@pytest.mark.parametrize("case", ["masked", "weighted", "both", "by_example"])
@pytest.mark.parametrize("method", BY_ELEMENT)
def test_every_method_by_element(method, case):
    assert_one_step(method, "sparse", "dense", make_batch("sparse", case), unit="element")


@pytest.mark.parametrize("method", ["spl", "prl_l", "co_prl_l"])
def test_a_recurrent_network_by_element(method):
    assert_one_step(method, "sparse", "recurrent", make_batch("sparse", "both"), unit="element")


@pytest.mark.parametrize("unit", ["example", "element"])
@pytest.mark.parametrize("loss", ["one_hot", "binary", "mse"])
@pytest.mark.parametrize("method", ["spl", "prl_l"])
def test_every_loss(method, loss, unit):
    assert_one_step(method, loss, "dense", make_batch(loss, "both"), unit=unit)


@pytest.mark.daily("spl-*", "prl_l-*", "decouple-ignoring")
@pytest.mark.fault(26)
@pytest.mark.parametrize("loss", IGNORED)
@pytest.mark.parametrize("method", ["spl", "prl_l", "prl_g", "ignormclip", "decouple"])
def test_a_class_that_the_loss_ignores(method, loss):
    assert_one_step(method, loss, "unmasked", make_batch(loss, "plain"))
    assert_one_step(method, loss, "dense", make_batch(loss, "both"))


@pytest.mark.parametrize("loss", IGNORED)
@pytest.mark.parametrize("method", ["spl", "prl_l", "co_prl_l"])
def test_a_class_that_the_loss_ignores_by_element(method, loss):
    assert_one_step(method, loss, "unmasked", make_batch(loss, "plain"), unit="element")
    assert_one_step(method, loss, "dense", make_batch(loss, "both"), unit="element")


@pytest.mark.parametrize("method", ["spl", "prl_l", "prl_g", "ignormclip", "co_prl_l"])
def test_weights_for_examples_beside_a_mask(method):
    assert_one_step(method, "sparse", "dense", make_batch("sparse", "by_example"))


@pytest.mark.parametrize("unit", ["example", "element"])
def test_a_batch_of_which_nothing_counts_moves_nothing(unit):
    x, y, _ = make_batch("sparse", "masked")
    model, networks = made("prl_l", unit=unit)
    for batch in ((0 * x, y, None), (x, y, np.zeros((N, STEPS), "float32"))):
        start(networks)
        assert not any(g.any() for gradients in applied(model, networks, batch) for g in gradients)


# The step on batches that hypothesis chooses.


@functools.cache
def dialled(method, unit):
    """-> (model, its networks, the dial of its epsilon), in a graph."""
    dial, seeds = Dial(), iter(range(2))
    model = prl.build(
        method,
        lambda: make_network("dense", next(seeds)),
        epsilon=dial,
        loss=SPARSE,
        optimizer=keras.optimizers.SGD(1.0),
        jit_compile=False,
        **({"unit": unit} if unit == "element" else {}),
    )
    return model, networks_of(model), dial


@functools.cache
def plain(seed):
    """A Keras model that is no model of ours."""
    network = make_network("dense", seed)
    network.compile(keras.optimizers.SGD(1.0), SPARSE, jit_compile=False)
    return network


def for_each_step(values):
    return st.lists(st.sampled_from(values), min_size=N * STEPS, max_size=N * STEPS)


@st.composite
def batches(draw):
    """-> (x, y, step weights): steps hidden behind the end and within, weights of which some are 0."""
    x, y, _ = make_batch("sparse", "plain", seed=draw(st.integers(0, 99)))
    lengths = draw(st.lists(st.integers(0, STEPS), min_size=N, max_size=N))
    is_hole = draw(for_each_step([False, False, False, True]))
    visible = (np.arange(STEPS) < np.array(lengths)[:, None]) & ~np.reshape(is_hole, (N, STEPS))
    weights = draw(st.one_of(for_each_step([1.0]), for_each_step([0.0, 0.5, 1.0, 3.0])))
    return x * visible[..., None], y, np.reshape(weights, (N, STEPS)).astype("float32")


epsilons = st.integers(0, 95).map(lambda percent: percent / 100)
DRAWN = [(method, "example") for method in ("prl_l", "spl", "prl_g", "co_prl_l")]
DRAWN += [(method, "element") for method in ("prl_l", "spl", "co_prl_l")]


@pytest.mark.daily("prl_l-element", "prl_g-example")
@pytest.mark.parametrize("method, unit", DRAWN)
def test_a_step_is_the_oracles_step(method, unit):
    model, networks, dial = dialled(method, unit)

    @few
    @given(epsilons, batches())
    def check(epsilon, batch):
        start(networks)
        dial.epsilon.assign(epsilon)
        options = {"epsilon": epsilon, "mask": mask_of("dense", batch[0]), "unit": unit}
        expected = steps_oracle.step(method, networks, *batch, loss="sparse_softmax_cross_entropy", **options)
        assert_same(applied(model, networks, batch), expected.gradients)

    check()


@pytest.mark.parametrize("method, unit", DRAWN)
def test_with_epsilon_0_a_step_is_that_of_keras(method, unit):
    model, networks, dial = dialled(method, unit)

    @settings(few, max_examples=6)
    @given(batches())
    def check(batch):
        start(networks)
        dial.epsilon.assign(0.0)
        expected = []
        for seed in range(len(networks)):
            restart(plain(seed), seed)
            expected += applied(plain(seed), [plain(seed)], batch)
        assert_same(applied(model, networks, batch), expected)

    check()


# Epsilon 0 is Keras's own fit.

TRIMMED = [("spl", "example"), ("prl_l", "example"), ("prl_g", "example"), ("co_prl_l", "example")]
TRIMMED += [("spl", "element"), ("prl_l", "element"), ("co_prl_l", "element")]


@pytest.mark.daily("spl-*", "prl_l-*", "prl_g-example-sparse-masked", "co_prl_l-example-sparse-masked")
@pytest.mark.parametrize("loss, case", [("sparse", "masked"), ("ignoring", "both")])
@pytest.mark.parametrize("method, unit", TRIMMED)
def test_with_epsilon_0_fit_is_that_of_keras(method, unit, loss, case):
    x, y, sample_weight = make_batch(loss, case, n=7)
    model, networks = made(method, loss, "dense", 0.0, unit)
    start(networks)
    model.fit(x, y, sample_weight=sample_weight, **PLAIN)
    for seed, network in enumerate(networks):
        other = make_network("dense", seed)
        other.compile(keras.optimizers.SGD(1.0), LOSSES[loss][0], run_eagerly=True)
        other.fit(x, y, sample_weight=sample_weight, **PLAIN)
        assert_same([network.get_weights()], [other.get_weights()])


@pytest.mark.parametrize("option", [{"score": "gradient"}, {"recompute": True}])
def test_what_elements_refuse(option):
    with pytest.raises(ValueError, match="element"):
        prl.RobustModel(make_network(), unit="element", **option)


# The oracle against `oracle.step`, Keras, and sums worked by hand.


@pytest.mark.parametrize("method", PAPER_METHODS)
def test_the_oracle_of_one_step_is_that_of_examples(method):
    loss = LOSSES[loss_for(method)][1]
    networks = [keras.Sequential([keras.Input([5]), layers.Dense(CLASSES)]) for _ in range(2)]
    networks = networks if method in PAIRS else networks[:1]
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(9, 5)).astype("float32"), labels_for(loss_for(method), rng, (9,))
    s = np.array([1, 0.5, 0] * 3)
    options = {"loss": loss, "epsilon": 0.3, "max_norm": MAX_NORM.get(method)}
    mine = steps_oracle.step(method, networks, x, y, s, **options)
    other = oracle.step(method, networks, x, y, s, **options)
    assert_same(mine.gradients, other.gradients, 1e-6)


@pytest.mark.parametrize("loss, case", [("sparse", "both"), ("ignoring", "both"), ("mse", "masked")])
def test_the_oracle_of_standard_is_keras(loss, case):
    assert_one_step("standard", loss, "dense", make_batch(loss, case))


def by_hand(method, sample_weight, unit="example", epsilon=0.4):
    """Predictions 0 for inputs 1; see the tests."""
    network = keras.Sequential([keras.Input([2, 1]), layers.Dense(1, use_bias=False)])
    network.set_weights([np.zeros((1, 1))])
    targets = np.array([[[1.0], [50]], [[3], [3]], [[2], [4]]])
    mask = np.array([[1, 0], [1, 1], [1, 1]])
    options = {"loss": "mse", "epsilon": epsilon, "mask": mask, "unit": unit}
    return steps_oracle.step(method, [network], np.ones((3, 2, 1)), targets, sample_weight, **options)


def test_the_oracle_by_hand():
    """Visible squares 1; 9, 9; 4, 16, gradients -2; -6, -6; -4, -8; means 1, 9, 10; N = 5."""
    step = by_hand("spl", None)  # keeps 1 of 3 examples: floor(0.6 * 3) = 1
    np.testing.assert_allclose(step.weights[0], [3, 0, 0])
    np.testing.assert_allclose(step.gradients[0][0], [[3 * -2 / 5]])
    step = by_hand("spl", np.array([[0, 7], [2, 1], [3, 0]]))  # means 9 and 4; m = 2, k = 1; N is still 5
    np.testing.assert_allclose(step.weights[0], [0, 0, 2])
    np.testing.assert_allclose(step.gradients[0][0], [[2 * 3 * -4 / 5]])
    step = by_hand("spl", np.array([[0, 7], [2, 1], [3, 1]]), "element")  # 9, 9, 4, 16: m = 4, k = 2
    np.testing.assert_allclose(step.weights[0], [[0, 0], [2, 0], [2, 0]])
    np.testing.assert_allclose(step.gradients[0][0], [[2 * (2 * -6 + 3 * -4) / 5]])


def test_the_oracles_scores_do_not_fall_with_the_length():
    """Norms of d loss / d prediction: 2; 6, 6; 4, 8: their root mean squares 2, 6, sqrt(40)."""
    step = by_hand("prl_l", None, epsilon=0.3)
    np.testing.assert_allclose(step.weights[0], [1.5, 1.5, 0])
    # PRL(G): the means -2, -6, -6, times the roots of 1, 2, 2; of a tie the earlier is kept.
    np.testing.assert_allclose(by_hand("prl_g", None, epsilon=0.3).weights[0], [1.5, 1.5, 0])
