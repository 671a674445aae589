"""Which steps count, in every kind of step: embeddings, recurrent layers, pairs, two outputs, XLA.

The truth is a plain Keras model, trained with the weights that NumPy makes of the networks' predictions.
"""

import functools

import keras
import numpy as np
import pytest
import steps_oracle
import tensorflow as tf
from arrays import assert_all_close, assert_all_equal
from dial import Dial
from keras import layers, losses

import prl_keras as prl

N, STEPS, TOKENS, CLASSES = 8, 4, 6, 3
SPARSE = losses.SparseCategoricalCrossentropy(from_logits=True)
EAGER, XLA = {"run_eagerly": True}, {"jit_compile": True}
RECOMPUTE = {"recompute": True, **EAGER}
FIT = {"batch_size": 5, "shuffle": False, "verbose": 0}
LOSS_WEIGHTS = {"tags": 2.0, "class": 0.5}
DIAL = Dial()

# name: (network, method, unit, options)
VARIANTS = {
    "embedding": ("embedding", "prl_l", "example", EAGER),
    "embedding_by_loss": ("embedding", "spl", "example", EAGER),
    "embedding_element": ("embedding", "prl_l", "element", EAGER),
    "embedding_element_by_loss": ("embedding", "spl", "element", EAGER),
    "embedding_gradient": ("embedding", "prl_g", "example", EAGER),
    "unrolled": ("unrolled", "prl_l", "example", EAGER),
    "unrolled_element": ("unrolled", "prl_l", "element", EAGER),
    "unrolled_gradient": ("unrolled", "prl_g", "example", {"jit_compile": False}),
    "looping": ("looping", "prl_l", "example", EAGER),
    "looping_element": ("looping", "prl_l", "element", EAGER),
    "looping_gradient": ("looping", "prl_g", "example", {"jit_compile": False}),
    "pair": ("embedding", "co_prl_l", "example", EAGER),
    "pair_element": ("unrolled", "co_prl_l", "element", EAGER),
    "recompute": ("embedding", "prl_l", "example", RECOMPUTE),
    "recompute_looping": ("looping", "spl", "example", RECOMPUTE),
    "recompute_pair": ("embedding", "co_prl_l", "example", RECOMPUTE),
    "recompute_gradient": ("embedding", "prl_g", "example", RECOMPUTE),
    "xla": ("embedding", "prl_l", "example", XLA),
    "xla_element": ("embedding", "prl_l", "element", XLA),
    "xla_recompute": ("embedding", "prl_l", "example", {"recompute": True, **XLA}),
    "two_outputs": ("two_outputs", "prl_l", "example", EAGER),
    "two_outputs_by_loss": ("two_outputs", "spl", "example", EAGER),
    "two_outputs_gradient": ("two_outputs", "prl_g", "example", EAGER),
    "two_outputs_recompute": ("two_outputs", "prl_l", "example", RECOMPUTE),
    "two_outputs_pair": ("two_outputs", "co_prl_l", "example", EAGER),
    "two_outputs_xla": ("two_outputs", "prl_l", "example", XLA),
}
# A graph takes seconds to trace, so those that need one have one kind of batch.
IN_GRAPHS = [name for name, (*_, options) in VARIANTS.items() if not options.get("run_eagerly")]
each_variant_and_case = pytest.mark.parametrize(
    "name, case", [(n, c) for n in VARIANTS for c in ("masked", "both") if c == "both" or n not in IN_GRAPHS]
)
each_selection = pytest.mark.parametrize(
    "name", [name for name, (*_, options) in VARIANTS.items() if options is EAGER]
)


def make_network(kind, seed=0):
    """A network of tokens, of which 0 is hidden; it gives logits for each step, `two_outputs` one more."""
    inputs = keras.Input([STEPS], dtype="int32")
    x = layers.Embedding(TOKENS, 4, mask_zero=True)(inputs)
    if kind in ("unrolled", "looping"):
        x = layers.LSTM(3, return_sequences=True, unroll=kind == "unrolled")(x)
    else:
        x = layers.Dense(4, "tanh")(x)
    outputs = layers.Dense(CLASSES, name="tags")(x)
    if kind == "two_outputs":
        pooled = layers.GlobalAveragePooling1D()(x)
        outputs = {"tags": outputs, "class": layers.Dense(CLASSES, name="class")(pooled)}
    network = keras.Model(inputs, outputs)
    restart(network, seed)
    return network


def restart(network, seed):
    """Gives the network its first weights."""
    rng = np.random.default_rng([seed, 5])
    network.set_weights([1.2 * rng.normal(size=w.shape).astype("float32") for w in network.weights])


def make_batch(kind="embedding", case="both"):
    """-> (x, y, sample_weight): sequences of every length; one hidden whole, one whose steps all weigh 0.

    Of two outputs none is hidden whole: the mean of no step is not a number.
    """
    rng = np.random.default_rng(3)
    x = rng.integers(1, TOKENS, (N, STEPS)).astype("int32")
    for i, length in enumerate([4, 2, 3, 1, 4, 3, 4]):
        x[i, length:] = 0
    x[0, 1] = 0
    y, s = rng.integers(CLASSES, size=(N, STEPS)), rng.uniform(0.2, 3, (N, STEPS)).astype("float32")
    s[rng.random((N, STEPS)) < 0.25] = 0
    s[4] = 0
    if kind == "two_outputs":
        y, s = (
            {"tags": y, "class": rng.integers(CLASSES, size=N)},
            {"tags": s, "class": np.ones(N, "float32")},
        )
        s["class"][4] = 0
    else:
        x[-1] = 0
    return x, y, s if case == "both" else None


def step_weights(s):
    """The user's weights for the steps."""
    s = s["tags"] if isinstance(s, dict) else s
    return np.ones((N, STEPS)) if s is None else s


def with_other_labels(batch):
    """The batch with other labels wherever they do not count."""
    x, y, s = batch
    hidden = (x == 0) | (step_weights(s) == 0)
    if not isinstance(y, dict):
        return x, np.where(hidden, (y + 1) % CLASSES, y), s
    classes = y["class"] if s is None else np.where(s["class"] == 0, (y["class"] + 1) % CLASSES, y["class"])
    return x, {"tags": np.where(hidden, (y["tags"] + 1) % CLASSES, y["tags"]), "class": classes}, s


def losses_of(kind):
    """The arguments of `compile`."""
    if kind == "two_outputs":
        return {"loss": dict.fromkeys(LOSS_WEIGHTS, SPARSE), "loss_weights": LOSS_WEIGHTS}
    return {"loss": SPARSE}


def made(name, epsilon):
    """-> the compiled model, with its first weights."""
    DIAL.epsilon.assign(epsilon)
    model = build(name, epsilon if name == "xla_recompute" else DIAL)  # which takes no schedule
    start(model)
    return model


@functools.cache
def build(name, epsilon):
    kind, method, unit, options = VARIANTS[name]
    seeds = iter(range(2))
    return prl.build(
        method,
        lambda: make_network(kind, next(seeds)),
        epsilon=epsilon,
        optimizer=keras.optimizers.SGD(1.0),
        unit=unit,
        **losses_of(kind),
        **options,
    )


@functools.cache
def plain(kind, seed):
    """The same network as a Keras model that is no model of ours."""
    network = make_network(kind, seed)
    network.compile(keras.optimizers.SGD(1.0), **losses_of(kind), run_eagerly=True)
    return network


def start(model):
    for seed, network in enumerate(model.networks):
        restart(network, seed)


def after_step(model, batch):
    """The weights after one step from the first ones."""
    start(model)
    model.train_on_batch(*batch)
    return model.get_weights()


def plain_after_step(kind, batch, weights):
    """The weights of plain networks after a step with the user's weights times the given `[n, steps]`."""
    x, y, s = batch
    after = []
    for seed, w in enumerate(weights):
        network = plain(kind, seed)
        restart(network, seed)
        sample_weight = w * step_weights(s)
        if kind == "two_outputs":
            of_class = w[:, 0] * (1 if s is None else s["class"])
            sample_weight = {"tags": sample_weight, "class": of_class}
        network.train_on_batch(x, y, sample_weight)
        after += network.get_weights()
    return after


assert_same = functools.partial(assert_all_close, rtol=1e-4, atol=3e-5)


# What NumPy selects.


def selection(method, networks, batch, unit, epsilon):
    """The rule's weights `[n, steps]` for each network, from the networks' predictions alone."""
    x, y, s = batch
    counts = (x != 0) & (step_weights(s) != 0)
    chosen = []
    for network in networks:
        predictions = network(x)
        several = isinstance(predictions, dict)
        tags = value_of(method, predictions["tags"] if several else predictions, y["tags"] if several else y)
        if unit == "element":
            chosen.append(trim(tags.ravel(), counts.ravel(), epsilon).reshape(N, STEPS))
            continue
        number = np.maximum(counts.sum(axis=1), 1)
        power = 2 if method in ("prl_l", "co_prl_l") else 1  # root mean square of norms, or mean of losses
        scores, is_ranked = ((tags**power * counts).sum(axis=1) / number) ** (1 / power), counts.any(axis=1)
        if several:
            classes = value_of(method, predictions["class"], y["class"])
            parts = [LOSS_WEIGHTS["tags"] * scores, LOSS_WEIGHTS["class"] * classes]
            scores = (parts[0] ** power + parts[1] ** power) ** (1 / power)
            is_ranked = is_ranked | (np.ones(N, bool) if s is None else s["class"] != 0)
        chosen.append(np.repeat(trim(scores, is_ranked, epsilon)[:, None], STEPS, axis=1))
    return chosen[::-1]


def value_of(method, logits, y):
    """The loss of each step, or the norm of softmax minus the one-hot label."""
    p = np.array(logits, "float64")
    p = np.exp(p - p.max(axis=-1, keepdims=True))
    p /= p.sum(axis=-1, keepdims=True)
    one_hot = np.eye(CLASSES)[y]
    if method == "spl":
        return -np.log((p * one_hot).sum(axis=-1))
    return np.linalg.norm(p - one_hot, axis=-1)


def trim(scores, is_ranked, epsilon):
    """Weights m / k for the k lowest of the m that are ranked."""
    m, weights = is_ranked.sum(), np.zeros(len(scores))
    k = max(1, int(np.floor((1 - epsilon) * m + 1e-6)))
    lowest = np.argsort(np.where(is_ranked, scores.astype("float32"), np.inf), kind="stable")[:k]
    weights[lowest] = m / k
    return weights


# The variants.


@pytest.mark.daily(
    "embedding-masked",
    "embedding_element-*",
    "embedding_gradient-masked",
    "looping_element-masked",
    "recompute_gradient-masked",
    "two_outputs-masked",
    "two_outputs_pair-masked",
)
@each_variant_and_case
def test_a_step_is_kerass_with_the_weights_that_numpy_selects(name, case):
    kind, method, unit, _ = VARIANTS[name]
    if method == "prl_g" and kind == "two_outputs":
        pytest.skip("the oracle has one output")
    model = made(name, 0.4)
    batch = make_batch(kind, case)
    if method == "prl_g":
        x, y, s = batch
        options = {"loss": "sparse_softmax_cross_entropy", "epsilon": 0.4, "mask": x != 0}
        weights = steps_oracle.step(method, model.networks, x, y, s, **options).weights
        weights = [np.repeat(w[:, None], STEPS, axis=1) for w in weights]
    else:
        weights = selection(method, model.networks, batch, unit, 0.4)
    assert all(0 < (w > 0).sum() < w.size for w in weights)
    assert_same(after_step(model, batch), plain_after_step(kind, batch, weights))


def train(model, name, x, y, s):
    """An epoch; two steps where another size of the batch would mean another graph."""
    if name in IN_GRAPHS:
        for _ in range(2):
            model.train_on_batch(x, y, s)
    else:
        model.fit(x, y, sample_weight=s, **FIT)


@pytest.mark.daily("embedding_gradient", "unrolled_element", "two_outputs")
@pytest.mark.parametrize("name", VARIANTS)
def test_with_epsilon_0_fit_is_that_of_keras(name):
    kind = VARIANTS[name][0]
    x, y, s = make_batch(kind)
    model = made(name, 0.0)
    train(model, name, x, y, s)
    for seed, network in enumerate(model.networks):
        other = plain(kind, seed)
        restart(other, seed)
        train(other, name, x, y, s)
        assert_same(network.get_weights(), other.get_weights())


@pytest.mark.daily(
    "embedding-masked",
    "embedding_by_loss-masked",
    "embedding_element-masked",
    "embedding_gradient-masked",
    "unrolled_element-both",
    "looping_element-masked",
    "pair_element-masked",
    "recompute-*",
    "xla_element-both",
    "two_outputs-*",
)
@each_variant_and_case
def test_labels_that_do_not_count_change_nothing(name, case):
    model, batch = made(name, 0.4), make_batch(VARIANTS[name][0], case)
    other = with_other_labels(batch)
    assert any((a != b).any() for a, b in zip(*map(keras.tree.flatten, (batch[1], other[1])), strict=True))
    assert_same(after_step(model, other), after_step(model, batch), atol=1e-6)


@each_selection
def test_how_large_step_weights_are_does_not_reach_the_selection(name):
    model = made(name, 0.4)
    x, y, s = make_batch(VARIANTS[name][0])
    larger = keras.tree.map_structure(lambda t: t * np.linspace(1, 9, N).reshape([N] + [1] * (t.ndim - 1)), s)
    assert_all_equal(model.example_weights(x, y, s), model.example_weights(x, y, larger))


@each_selection
def test_an_example_of_which_nothing_counts_weighs_nothing(name):
    """Of `make_batch` the fifth, by its weights, and the last, by its mask."""
    kind = VARIANTS[name][0]
    for weights in made(name, 0.4).example_weights(*make_batch(kind)):
        rows = np.asarray(weights).reshape(N, -1)
        assert rows.any() and not rows[4].any()
        assert kind == "two_outputs" or not rows[-1].any()


@pytest.mark.daily("element")
@pytest.mark.parametrize("unit", ["example", "element"])
def test_the_mask_of_a_dataset_in_a_graph(unit):
    """`fit` on a dataset of uneven batches, in a graph, is the step by step one."""
    batch = make_batch()
    weights = []
    for options in (EAGER, {"jit_compile": False}):
        model = prl.RobustModel(make_network("embedding"), rule=prl.Trim(0.4), unit=unit)
        model.compile(keras.optimizers.SGD(0.5, momentum=0.9), SPARSE, **options)
        model.fit(tf.data.Dataset.from_tensor_slices(batch).batch(5), epochs=2, verbose=0)
        weights.append(model.get_weights())
    assert_same(*weights)


@pytest.mark.daily("embedding-element")
@pytest.mark.parametrize("unit", ["example", "element"])
@pytest.mark.parametrize("kind", ["embedding", "looping"])
def test_half_precision_runs(kind, unit):
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = prl.RobustModel(make_network(kind), rule=prl.Trim(0.4), unit=unit)
    finally:
        keras.config.set_dtype_policy("float32")
    model.compile(keras.optimizers.SGD(0.1), SPARSE, run_eagerly=True)
    before = model.get_weights()
    x, y, s = make_batch()
    history = model.fit(x, y, sample_weight=s, **FIT).history
    assert np.isfinite(history["loss"]).all() and history["nonfinite"] == [0]
    assert all(np.isfinite(w).all() for w in model.get_weights())
    assert any((a != b).any() for a, b in zip(before, model.get_weights(), strict=True))
