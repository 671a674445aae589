"""Each layer type that `layer_wise` knows, directly and by Gram matrices, against a tape for each example."""

import functools
import itertools
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from keras import layers

import prl_keras as prl
from prl_keras.scores import gradient as per_example
from prl_keras.scores.layerwise import conv as conv_gradients
from prl_keras.scores.layerwise import graph as layer_wise
from prl_keras.scores.layerwise import layers as layer_gradients

WAYS = ["chosen", "direct", "gram"]
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
LOSSES_OF = functools.partial(prl.scores.per_example_loss, loss=LOSS)


@pytest.fixture
def take(monkeypatch):
    def way(name):
        if name != "chosen":
            for module in (conv_gradients, layer_gradients):
                monkeypatch.setattr(module, "direct_is_small", lambda *sizes: name == "direct")

    return way


def built(shape, *body, dtype="float32"):
    keras.utils.set_random_seed(5)
    network = keras.Sequential([keras.Input(shape, dtype=dtype), *body, layers.Flatten(), layers.Dense(3)])
    rng = np.random.default_rng(2)
    for weight in network.weights:
        weight.assign(0.5 * rng.normal(size=weight.shape))
    return network


def batch(network, n, seed=0):
    rng, (_, *shape) = np.random.default_rng(seed), network.input_shape
    if network.inputs[0].dtype == "int32":
        x = tf.constant(rng.integers(0, 5, (n, *shape)), "int32")
    else:
        x = tf.constant(rng.normal(size=(n, *shape)), "float32")
    return x, tf.constant(rng.integers(0, 3, n))


def looped(network, n=4):
    """A tape for each example: the gradients of each."""
    (x, y), loop = batch(network, n), []
    trained = [w.value for w in network.trainable_weights]
    for i in range(n):
        with tf.GradientTape() as tape:
            loss = LOSSES_OF(y[i : i + 1], network(x[i : i + 1], training=True))
        loop.append([tf.convert_to_tensor(g) for g in tape.gradient(loss, trained)])
    return loop


def assert_equals(loop, network, rtol=2e-4, run=lambda function: function):
    """Norms, and weighted sums for unequal weights, against `looped`."""
    assert layer_wise.obstacle(network) is None
    n = len(loop)
    x, y = batch(network, n)
    weights = tf.constant(np.random.default_rng(1).uniform(0.2, 2, n), "float32")

    def ours(x, y, weights):
        found = per_example.gradients(LOSSES_OF, network, x, y, loss_scale=0.5)
        assert found.is_whole
        sums = [tf.convert_to_tensor(g) for g in found.weighted_sum(weights)]
        return found.y_pred, found.norms, sums

    y_pred, norms, sums = run(ours)(x, y, weights)
    np.testing.assert_allclose(y_pred, network(x, training=True), rtol=1e-4, atol=1e-4)
    expected = np.array([tf.linalg.global_norm(each) for each in loop])
    np.testing.assert_allclose(norms, expected, rtol=rtol, atol=1e-4 * expected.max())
    noise = 1e-6 * expected.max()  # before a normalization a gradient is 0 but for rounding
    for j, total in enumerate(sums):
        expected = sum(0.5 * weights[i] * loop[i][j] for i in range(n))
        assert total.shape == expected.shape and total.dtype == expected.dtype
        np.testing.assert_allclose(total, expected, rtol=rtol, atol=rtol * np.abs(expected).max() + noise)


def branched():
    """Two branches of one input."""
    inputs = keras.Input((4, 4, 2))
    a, b = layers.Conv2D(3, 2, padding="same")(inputs), layers.Conv2D(3, 1)(inputs)
    x = layers.GlobalAveragePooling2D()(layers.Add()([a, layers.GroupNormalization(3)(b)]))
    return keras.Model(inputs, layers.Dense(3)(x))


def partly_frozen():
    network = built((6, 6, 2), layers.Conv2D(4, 3), layers.GroupNormalization(2), layers.Conv2D(4, 2))
    network.layers[0].trainable = False
    network.layers[1].gamma.trainable = False
    network.layers[2].kernel.trainable = False
    return network


def with_frozen_batch_norm():
    network = built((5, 5, 2), layers.Conv2D(4, 3), layers.BatchNormalization(), layers.Conv2D(3, 2))
    network.layers[1].moving_variance.assign([0.5, 1.0, 2.0, 3.0])
    network.layers[1].trainable = False
    return network


def cnn9_in_small(pooling=layers.MaxPooling2D):
    body = []
    for filters, padding in ((8, "same"), (16, "same"), (24, "valid")):
        body += [layers.Conv2D(filters, 3, padding=padding), layers.GroupNormalization(4), layers.LeakyReLU()]
        body += [pooling(2)] if padding == "same" else []
    return built((16, 16, 3), *body, layers.GlobalAveragePooling2D())


NETWORKS = {
    "dense": lambda: built((6,), layers.Dense(5, "tanh")),
    "dense_on_sequences": lambda: built((7, 4), layers.Dense(5, "gelu"), layers.Dense(2, use_bias=False)),
    "dense_on_images": lambda: built((3, 3, 2), layers.Dense(4, "relu")),
    "conv1d_causal": lambda: built((9, 3), layers.Conv1D(4, 3, padding="causal", dilation_rate=2)),
    "conv1d_causal_strided": lambda: built((9, 3), layers.Conv1D(4, 3, padding="causal", strides=2)),
    "conv2d": lambda: built((6, 5, 3), layers.Conv2D(4, (3, 2), activation="relu")),
    "conv2d_no_bias": lambda: built((6, 6, 3), layers.Conv2D(4, 3, use_bias=False, padding="same")),
    "conv2d_larger_than_strides": lambda: built((7, 8, 2), layers.Conv2D(3, 2, strides=(3, 2))),
    "conv3d": lambda: built((4, 5, 4, 2), layers.Conv3D(3, (2, 3, 1), padding="same", strides=(1, 2, 1))),
    "embedding": lambda: built((6,), layers.Embedding(5, 3), layers.Conv1D(4, 2), dtype="int32"),
    "embedding_of_images": lambda: built((2, 3), layers.Embedding(5, 3), dtype="int32"),
    "group_norm": lambda: built((4, 4, 6), layers.GroupNormalization(3), layers.Conv2D(2, 1)),
    "group_norm_no_gamma": lambda: built((4, 6), layers.GroupNormalization(3, scale=False)),
    "group_norm_no_beta": lambda: built((4, 6), layers.GroupNormalization(-1, center=False, axis=1)),
    "layer_norm": lambda: built((4, 6), layers.LayerNormalization()),
    "layer_norm_two_axes": lambda: built((4, 6, 2), layers.LayerNormalization(axis=(2, 1))),
    "layer_norm_nothing": lambda: built((4, 6), layers.LayerNormalization(center=False, scale=False)),
    "pooling": lambda: built(
        (8, 8, 2),
        layers.ZeroPadding2D(1),
        layers.Conv2D(3, 3),
        layers.AveragePooling2D(2),
        layers.UpSampling2D(2),
        layers.Cropping2D(1),
        layers.MaxPooling2D(2),
    ),
    "branched": branched,
    "partly_frozen": partly_frozen,
    "frozen_batch_norm": with_frozen_batch_norm,
    "cnn9_in_small": cnn9_in_small,
}


@pytest.mark.daily(
    "dense",
    "dense_on_sequences",
    "conv1d_causal",
    "conv2d",
    "conv2d_no_bias",
    "conv2d_larger_than_strides",
    "conv3d",
    "embedding",
    "group_norm",
    "layer_norm_two_axes",
    "pooling",
    "branched",
    "partly_frozen",
)
@pytest.mark.parametrize("name", NETWORKS)
def test_equals_the_loop(name, take):
    network = NETWORKS[name]()
    loop = looped(network)
    for way in WAYS:
        take(way)
        assert_equals(loop, network)


@pytest.mark.daily("layer_norm-direct", "layer_norm-gram")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["cnn9_in_small", "conv1d_causal", "layer_norm", "embedding"])
def test_in_a_graph_and_compiled_by_xla(name, way, take):
    take(way)
    network = NETWORKS[name]()
    loop = looped(network)
    for options in ({}, {"jit_compile": True}):
        assert_equals(loop, network, run=functools.partial(tf.function, **options))


@pytest.mark.daily("gram")
@pytest.mark.parametrize("way", WAYS)
def test_channels_first_and_groups_which_run_under_xla_alone(way, take):
    take(way)
    first = {"data_format": "channels_first", "padding": "same"}
    network = built(
        (4, 5, 6), layers.Conv2D(6, 3, strides=2, **first), layers.Conv2D(4, 2, groups=2, **first)
    )
    x, y = batch(network, 3)

    @functools.partial(tf.function, jit_compile=True)
    def each(x, y):
        with tf.GradientTape() as tape:
            loss = LOSSES_OF(y, network(x))
        return tape.gradient(loss, [w.value for w in network.trainable_weights])

    loop = [each(x[i : i + 1], y[i : i + 1]) for i in range(3)]
    found = tf.function(
        lambda x, y: (lambda f: (f.norms, f.weighted_sum(tf.constant([1.0, 0.0, 2.0]))))(
            per_example.gradients(LOSSES_OF, network, x, y)
        ),
        jit_compile=True,
    )(x, y)
    np.testing.assert_allclose(found[0], [tf.linalg.global_norm(g) for g in loop], rtol=2e-4)
    for ours, a, _, c in zip(found[1], *loop):
        np.testing.assert_allclose(ours, a + 2 * c, rtol=2e-4, atol=2e-4 * np.abs(a + 2 * c).max())


@st.composite
def convolutions(draw):
    rank = draw(st.integers(1, 2))
    sizes = lambda low, high: [draw(st.integers(low, high)) for _ in range(rank)]  # noqa: E731
    kernel, groups = sizes(1, 3), draw(st.sampled_from([1, 1, 2]))
    strides, dilation = sizes(1, 3), sizes(1, 2)
    if draw(st.booleans()):
        strides = [1] * rank
    else:
        dilation = [1] * rank  # Keras refuses both at once
    return {
        "rank": rank,
        "shape": (*sizes(1, 8), groups * draw(st.integers(1, 3))),
        "filters": groups * draw(st.integers(1, 3)),
        "kernel_size": kernel,
        "strides": strides,
        "dilation_rate": dilation,
        "groups": groups,
        "padding": draw(st.sampled_from(["valid", "same"])),
        "use_bias": draw(st.booleans()),
    }


@pytest.mark.long
@given(options=convolutions(), way=st.sampled_from(WAYS[1:]), n=st.integers(1, 3))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_any_convolution_equals_the_loop(options, way, n):
    rank, shape = options.pop("rank"), options.pop("shape")
    reach = [(k - 1) * step for k, step in zip(options["kernel_size"], options["dilation_rate"])]
    assume(options["padding"] == "same" or all(size > r for size, r in zip(shape, reach)))
    layer = [layers.Conv1D, layers.Conv2D][rank - 1](**options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conv_gradients, "direct_is_small", lambda *sizes: way == "direct")
        network = built(shape, layer)
        assert_equals(looped(network, n), network)


def test_an_empty_batch_has_no_norms_and_zero_sums():
    for name in ("cnn9_in_small", "embedding", "layer_norm", "dense_on_sequences"):
        network = NETWORKS[name]()
        x, y = batch(network, 0)
        found = per_example.gradients(LOSSES_OF, network, x, y)
        assert found.norms.shape == (0,)
        for total in found.weighted_sum(tf.zeros(0)):
            assert not np.any(tf.convert_to_tensor(total))


def test_the_ways_are_chosen_by_size():
    """Large images with few channels are taken directly, small ones with many by their Gram matrices."""
    chosen = []
    for size, channels in ((16, 2), (4, 32)):
        layer = layers.Conv2D(channels, 3, padding="same")
        h = tf.ones((2, size, size, channels))
        d = layer(h)
        kernel, bias = layer_gradients.LAYER_TYPES[layers.Conv2D].contributions(layer, h, d)
        chosen.append(kernel.gradients is None)
        assert bias.gradients is not None
    assert chosen == [False, True]


def test_huge_gradients_have_finite_norms():
    network = built((6, 6, 2), layers.Conv2D(3, 3), layers.GroupNormalization(3))
    x, y = batch(network, 3)
    plain = per_example.gradients(LOSSES_OF, network, x, y).norms
    for factor in (1e25, 1e-10):
        scaled = per_example.gradients(lambda y, p: factor * LOSSES_OF(y, p), network, x, y).norms  # noqa: B023
        np.testing.assert_allclose(scaled, factor * plain, rtol=1e-3)


@pytest.mark.long
def test_an_embedding_is_stepped_on_as_in_plain_training():
    """Sparse gradients: under Adam the rows that a batch does not take stay where they are."""
    weights = []
    for method in ("standard", "prl_g"):
        make = lambda: built((6,), layers.Embedding(50, 3), dtype="int32")  # noqa: E731
        model = prl.build(method, make, epsilon=0.0, loss=LOSS, optimizer=keras.optimizers.Adam(0.01))
        x, y = batch(make(), 12)
        model.fit(x, y, batch_size=4, epochs=3, shuffle=False, verbose=0)
        weights.append(model.get_weights())
    for plain, ours in zip(*weights, strict=True):
        np.testing.assert_allclose(ours, plain, rtol=1e-4, atol=1e-6)


def test_mixed_precision_of_a_convolutional_network():
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        half = cnn9_in_small(layers.AveragePooling2D)  # of two maxima float16 takes now one, now the other
    finally:
        keras.config.set_dtype_policy(before)
    full = cnn9_in_small(layers.AveragePooling2D)
    x, y = batch(full, 6)
    ours, exact = (
        per_example.gradients(LOSSES_OF, network, x, y, loss_scale=64.0) for network in (half, full)
    )
    assert ours.y_pred.dtype == tf.float16 and ours.norms.dtype == tf.float32
    np.testing.assert_allclose(ours.norms, exact.norms, rtol=0.03)
    for a, b in itertools.zip_longest(*(found.weighted_sum(tf.ones(6)) for found in (ours, exact))):
        assert a.dtype == tf.float32
        np.testing.assert_allclose(a, b, atol=0.03 * np.abs(b).max())


@pytest.mark.fault(16)
def test_falling_back_is_said_once_for_each_network_with_the_reason():
    def network(name):
        layer = layers.Conv2D(2, 2, name=name)
        return keras.Sequential(
            [keras.Input((4, 4, 1)), layer, layers.PReLU(name="unknown"), layers.Flatten()]
        )

    for name in ("first", "second"):
        made = network(name)
        x, y = batch(made, 2)
        with pytest.warns(UserWarning, match="vectorized_map.*PReLU 'unknown'") as said:
            for _ in range(2):
                per_example.gradients(LOSSES_OF, made, x, y % 2)
        assert sum("vectorized_map" in str(warning.message) for warning in said) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        known = built((4,), layers.Dense(2))
        per_example.gradients(LOSSES_OF, known, *batch(known, 2))
