"""The networks of the experiments: shapes, sizes worked out by hand, seeds, errors, saving."""

import random

import keras
import numpy as np
import pytest

from prl_keras.experiments.runs.networks import NETWORKS, make_network

SMALLEST = {"cnn9": (28, 28, 1), "small_cnn": (8, 8, 1), "strided_cnn": (8, 8, 1), "mlp": (20,)}


def weights_equal(a, b):
    return [np.array_equal(u, v) for u, v in zip(a.get_weights(), b.get_weights(), strict=True)]


def layers_of(network, kind):
    return [layer for layer in network.layers if isinstance(layer, kind)]


# --- Shapes and sizes -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "input_shape", "norm"),
    [
        ("cnn9", (32, 32, 3), "batch"),
        ("cnn9", (28, 28, 1), "group"),
        ("small_cnn", (8, 8, 1), "none"),
        ("small_cnn", (32, 32, 3), "batch"),
        ("small_cnn", (9, 12, 2), "group"),
        ("small_cnn", (2, 2, 1), "none"),
        ("strided_cnn", (32, 32, 3), "batch"),
        ("strided_cnn", (9, 12, 2), "group"),
        ("mlp", (512,), "none"),
        ("mlp", (8, 8, 1), "none"),
    ],
)
def test_output_is_one_linear_value_for_each_class_or_coordinate(name, input_shape, norm):
    network = make_network(name, input_shape, 7, norm)
    assert network.input_shape == (None, *input_shape)
    assert network.output_shape == (None, 7)
    assert network.layers[-1].activation is keras.activations.linear
    output = network(np.random.default_rng(0).normal(size=(3, *input_shape)).astype("float32"))
    assert output.shape == (3, 7)
    assert np.isfinite(output).all()


def test_every_network_has_a_name_and_a_three_argument_builder():
    assert tuple(NETWORKS) == ("cnn9", "small_cnn", "strided_cnn", "mlp")
    for name, builder in NETWORKS.items():
        built = builder(SMALLEST[name], 3, "none")
        assert all(weights_equal(built, make_network(name, SMALLEST[name], 3)))


# 3x3 kernels and biases, 9 * inputs * filters + filters:
#   3 -> 128      3,584    128 -> 256   295,168    256 -> 512  1,180,160
# 128 -> 128    147,584    256 -> 256   590,080    512 -> 256  1,179,904
# 128 -> 128    147,584    256 -> 256   590,080    256 -> 128    295,040
# and the head, 128 -> 10: 1,290. Together 4,430,474.
# The nine norms see 3 * 128 + 3 * 256 + 512 + 256 + 128 = 2,048 channels: scale and shift, and
# for batch norm a moving mean and variance, which are not trained.
@pytest.mark.parametrize(
    ("norm", "trained", "not_trained"),
    [("none", 4_430_474, 0), ("group", 4_434_570, 0), ("batch", 4_434_570, 4_096)],
)
def test_cnn9_has_the_parameters_of_the_table(norm, trained, not_trained):
    network = make_network("cnn9", (32, 32, 3), 10, norm)
    assert sum(int(np.prod(w.shape)) for w in network.trainable_weights) == trained
    assert sum(int(np.prod(w.shape)) for w in network.non_trainable_weights) == not_trained


def test_cnn9_has_the_layers_of_the_table():
    network = make_network("cnn9", (32, 32, 3), 10, "batch")
    convolutions = layers_of(network, keras.layers.Conv2D)
    assert [c.filters for c in convolutions] == [128] * 3 + [256] * 3 + [512, 256, 128]
    assert [c.padding for c in convolutions] == ["same"] * 6 + ["valid"] * 3
    assert [c.output.shape[1] for c in convolutions] == [32] * 3 + [16] * 3 + [6, 4, 2]
    norms = layers_of(network, keras.layers.BatchNormalization)
    assert [(n.momentum, n.epsilon) for n in norms] == [(0.9, 1e-5)] * 9
    slopes = [a.negative_slope for a in layers_of(network, keras.layers.LeakyReLU)]
    assert slopes == pytest.approx([0.01] * 9)
    assert [d.rate for d in layers_of(network, keras.layers.SpatialDropout2D)] == [0.25] * 2
    order = [type(layer).__name__ for layer in network.layers[1:5]]
    assert order == ["Conv2D", "BatchNormalization", "LeakyReLU", "Conv2D"]


def test_group_norm_has_32_groups_in_cnn9_and_8_in_the_small_ones():
    for name, groups, count in (("cnn9", 32, 9), ("small_cnn", 8, 3), ("strided_cnn", 8, 3)):
        network = make_network(name, SMALLEST[name], 10, "group")
        norms = layers_of(network, keras.layers.GroupNormalization)
        assert [norm.groups for norm in norms] == [groups] * count


def test_strided_cnn_leaves_8x8_of_32x32_pixels():
    convolutions = layers_of(make_network("strided_cnn", (32, 32, 3), 10), keras.layers.Conv2D)
    assert [(c.filters, c.kernel_size[0], c.strides[0]) for c in convolutions] == [
        (24, 5, 2),
        (48, 3, 2),
        (96, 3, 1),
    ]
    assert convolutions[-1].output.shape == (None, 8, 8, 96)


def test_mlp_has_two_hidden_layers_of_256():
    network = make_network("mlp", (512,), 10)
    assert [d.units for d in layers_of(network, keras.layers.Dense)] == [256, 256, 10]
    assert network.count_params() == 512 * 256 + 256 + 256 * 256 + 256 + 256 * 10 + 10
    assert len(layers_of(network, keras.layers.LeakyReLU)) == 2


# --- Seeds ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_same_seed_same_weights_different_seed_different_weights(name):
    one, same, other = (make_network(name, SMALLEST[name], 10, seed=seed) for seed in (3, 3, 4))
    assert all(weights_equal(one, same))
    for u, v in zip(one.get_weights(), other.get_weights(), strict=True):
        if u.ndim > 1:  # the biases are all 0
            assert abs(np.corrcoef(u.ravel(), v.ravel())[0, 1]) < 0.2


def test_layers_of_the_same_shape_have_different_weights():
    kernels = [w for w in make_network("cnn9", (28, 28, 1), 10).get_weights() if w.ndim == 4]
    same_shape = [k for k in kernels if k.shape == (3, 3, 128, 128)]
    assert len(same_shape) == 2
    assert not np.array_equal(*same_shape)


def test_kernels_have_the_scale_of_he_et_al():
    for layer in layers_of(make_network("cnn9", (28, 28, 1), 10), keras.layers.Conv2D)[1:]:
        kernel = layer.get_weights()[0]
        assert kernel.std() == pytest.approx(np.sqrt(2 / np.prod(kernel.shape[:3])), rel=0.02)


def test_weights_and_dropout_do_not_depend_on_global_seeds_and_leave_them_alone():
    keras.utils.set_random_seed(1)
    one = make_network("cnn9", (28, 28, 1), 10)
    keras.utils.set_random_seed(2)
    python, numpy = random.getstate(), np.random.get_state()
    keras_draw = keras.random.normal((3,))
    keras.utils.set_random_seed(2)
    two = make_network("cnn9", (28, 28, 1), 10)
    assert all(weights_equal(one, two))
    assert random.getstate() == python
    np.testing.assert_array_equal(np.random.get_state()[1], numpy[1])
    np.testing.assert_array_equal(keras.random.normal((3,)), keras_draw)


def test_each_dropout_has_its_own_seed():
    def masks(seed):
        dropouts = layers_of(make_network("cnn9", (28, 28, 1), 10, seed=seed), keras.layers.SpatialDropout2D)
        ones = np.ones((8, 1, 1, 64), "float32")
        return [np.asarray(dropout(ones, training=True)) for dropout in dropouts]

    one, same, other = masks(0), masks(0), masks(1)
    np.testing.assert_array_equal(one, same)
    assert (one[0] != one[1]).any()
    assert (one[0] != other[0]).any()
    assert (one[1] != other[1]).any()


# --- Saving and errors ------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "norm"), [("cnn9", "batch"), ("small_cnn", "group"), ("mlp", "none")])
def test_saves_and_loads(name, norm, tmp_path):
    network = make_network(name, SMALLEST[name], 4, norm, seed=2**40)
    x = np.random.default_rng(0).normal(size=(2, *SMALLEST[name])).astype("float32")
    network.save(tmp_path / "network.keras")
    loaded = keras.models.load_model(tmp_path / "network.keras")
    np.testing.assert_array_equal(network(x), loaded(x))
    np.testing.assert_array_equal(network(x, training=True), loaded(x, training=True))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"name": "resnet"},
            "name='resnet' is unknown; use one of .*'cnn9', 'small_cnn', 'strided_cnn', 'mlp'",
        ),
        ({"input_shape": 8}, r"input_shape=8 must be a tuple .* write x.shape\[1:\]"),
        ({"input_shape": ()}, "must be a tuple of integers >= 1"),
        ({"input_shape": (None, 8, 1)}, "must be a tuple of integers >= 1"),
        ({"input_shape": (8, 8, 0)}, "must be a tuple of integers >= 1"),
        ({"input_shape": (8, 8)}, r"\(8, 8\): small_cnn needs images .* Write x\[..., None\]"),
        ({"input_shape": (8, 1, 1)}, "at least 2 x 2 pixels"),
        ({"name": "cnn9", "input_shape": (32, 27, 3)}, "cnn9 needs images .* at least 28 x 28"),
        ({"name": "strided_cnn", "input_shape": (8, 7, 3)}, "strided_cnn needs images .* at least 8 x 8"),
        ({"num_outputs": 0}, "num_outputs=0 must be a whole number of at least 1"),
        ({"num_outputs": 10.0}, "num_outputs=10.0 must be a whole number"),
        ({"norm": "layer"}, "norm='layer' is unknown; use one of .*'none', 'batch', 'group'"),
        ({"norm": None}, "norm=None is unknown"),
        ({"name": "mlp", "norm": "batch"}, "mlp has no normalization; write norm='none'"),
        ({"seed": None}, "seed=None must be a whole number of at least 0"),
        ({"seed": -1}, "seed=-1 must be"),
        ({"precision": "half"}, "precision='half' is unknown; use one of .*'float32', 'bfloat16', 'float16'"),
        ({"seed": True}, "seed=True must be"),
    ],
)
def test_errors(arguments, message):
    defaults = {"name": "small_cnn", "input_shape": (8, 8, 1), "num_outputs": 10}
    with pytest.raises(ValueError, match=message):
        make_network(**{**defaults, **arguments})


# --- Precision --------------------------------------------------------------------------------


@pytest.mark.daily("float32-*", "bfloat16-small_cnn", "float16-mlp")
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_layers_compute_in_the_precision_and_weights_and_logits_are_float32(name, precision):
    norm = "none" if name == "mlp" else "batch"
    network = make_network(name, SMALLEST[name], 3, norm, precision=precision)
    assert keras.config.dtype_policy().name == "float32"
    assert {layer.compute_dtype for layer in network.layers[1:-1]} == {precision}
    assert network(np.ones((2, *SMALLEST[name]), "float32")).dtype == "float32"
    assert {weight.dtype for weight in network.get_weights()} == {np.dtype("float32")}
    assert all(weights_equal(network, make_network(name, SMALLEST[name], 3, norm)))


def test_a_network_that_is_refused_leaves_the_policy():
    with pytest.raises(ValueError, match="at least 28 x 28"):
        make_network("cnn9", (8, 8, 1), 3, precision="bfloat16")
    assert keras.config.dtype_policy().name == "float32"
