"""The layer-wise way against `tf.vectorized_map` and the loop; what it does not know falls back."""

import functools
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from processes import python

import prl_keras as prl
from prl_keras.scores import gradient as per_example
from prl_keras.scores.layerwise import graph as layer_wise

SPARSE = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
PROBABILITIES = keras.losses.SparseCategoricalCrossentropy()
RNG = np.random.default_rng(0)
START = RNG.bit_generator.state


@pytest.fixture(autouse=True)
def the_same_numbers_in_any_order_of_the_tests():
    RNG.bit_generator.state = START


def sequential(*body, shape=(6,)):
    return keras.Sequential([keras.Input(shape), *body])


def mlp(head=None, activation=None, **options):
    body = layers.Dense(5, activation, **options), layers.LeakyReLU(), layers.Dense(3, head, **options)
    return sequential(*body)


def residual():
    inputs = keras.Input((2, 3))
    x = layers.Dense(6, activation="gelu")(layers.Rescaling(0.5)(layers.Flatten()(inputs)))
    x = layers.Add()([x, layers.Dense(6, use_bias=False)(x)])
    x = layers.Concatenate()([layers.ELU()(x), layers.Dense(2, activation="softmax")(x)])
    return keras.Model(inputs, [layers.Softmax()(layers.Dense(3)(layers.Reshape((8,))(x)))])


def two_inputs():
    inputs = {"a": keras.Input((6,), name="a"), "b": keras.Input((4,), name="b")}
    x = layers.Multiply()([layers.Dense(5, activation="tanh")(t) for t in inputs.values()])
    return keras.Model(inputs, layers.Dense(3)(x))


def frozen():
    network = sequential(*(layers.Dense(5, "tanh") for _ in range(3)), layers.Dense(3))
    network.layers[1].trainable = False
    network.layers[2].kernel.trainable = False
    return network


def regularized():
    return mlp(kernel_regularizer=keras.regularizers.L2(0.1), bias_regularizer="l1")


NETWORKS = {
    "plain": (mlp, SPARSE),
    "no_bias": (lambda: mlp(use_bias=False), SPARSE),
    "softmax": (lambda: mlp("softmax", activation="tanh"), PROBABILITIES),
    "sigmoid": (lambda: mlp("sigmoid", activation="relu"), "binary_crossentropy"),
    "regression": (lambda: mlp(activation="silu"), "mse"),
    "residual": (residual, PROBABILITIES),
    "two_inputs": (two_inputs, SPARSE),
    "frozen": (frozen, SPARSE),
    "regularized": (regularized, SPARSE),
    "float64": (lambda: mlp(activation="tanh", dtype="float64"), SPARSE),
}


def batch(network, loss, n):
    inputs = network.inputs
    x = [tf.constant(RNG.normal(size=(n, *t.shape[1:])), "float32") for t in inputs]
    x = dict(zip("ab", x)) if len(x) > 1 else x[0]
    if isinstance(loss, str):
        return x, tf.constant(RNG.integers(0, 2, (n, 3)), "float32")
    return x, tf.constant(RNG.integers(0, 3, n))


def made(name, n=7):
    keras.utils.set_random_seed(1)
    make, loss = NETWORKS[name]
    network = make()
    for weight in network.weights:
        weight.assign(RNG.normal(size=weight.shape))
    return network, functools.partial(prl.scores.per_example_loss, loss=loss), *batch(network, loss, n)


def found(losses_of, network, x, y, weights, **options):
    """-> (y_pred, norms, weighted sums) as `per_example` gives them."""
    result = per_example.gradients(losses_of, network, x, y, **options)
    assert result.is_whole
    return result.y_pred, result.norms, result.weighted_sum(weights)


def mapped(monkeypatch, function, *args, **kwargs):
    """What `function` gives with the layer-wise way switched off."""
    with monkeypatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setattr(layer_wise, "obstacle", lambda network: "this is a test")
        return function(*args, **kwargs)


def first(n, t):
    return t[:n]


def assert_same(ours, theirs, rtol=1e-5):
    """To `rtol`; entries of a sum may cancel, so there against the largest entry of the tensor."""
    for a, b in zip(keras.tree.flatten(ours), keras.tree.flatten(theirs), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert a.shape == b.shape and a.dtype == b.dtype
        atol = rtol * np.abs(b).max(initial=0.0)
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)


@pytest.mark.daily("no_bias", "regularized")
@pytest.mark.parametrize("name", NETWORKS)
def test_norms_and_weighted_sums_equal_the_map(name, monkeypatch):
    network, losses_of, x, y = made(name, 33)
    assert layer_wise.applies(network)
    example = x, y, tf.constant(RNG.uniform(-1, 2, 33), "float32")
    signature = keras.tree.map_structure(lambda t: tf.TensorSpec([None, *t.shape[1:]], t.dtype), example)
    run = functools.partial(found, losses_of, network, loss_scale=0.25)
    ours, other = (tf.function(run, input_signature=signature) for _ in range(2))
    for n in (0, 1, 7, 33):
        part = keras.tree.map_structure(functools.partial(first, n), example)
        assert_same(ours(*part), mapped(monkeypatch, other, *part))


@pytest.mark.daily("None", "{'reduce_retracing'*")
@pytest.mark.parametrize("options", [{"jit_compile": True}, {"reduce_retracing": True}, None], ids=str)
def test_eager_graph_and_xla_agree(options, monkeypatch):
    network, losses_of, x, y = made("softmax", 5)
    run = functools.partial(found, losses_of, network)
    compiled = run if options is None else tf.function(run, **options)
    for n in (0, 3, 5):
        batch = x[:n], y[:n], tf.range(n, dtype=tf.float32)
        assert_same(compiled(*batch), mapped(monkeypatch, run, *batch))


@pytest.mark.parametrize("policy, rtol", [("mixed_float16", 5e-3), ("mixed_bfloat16", 4e-2)])
def test_mixed_precision(policy, rtol, monkeypatch):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        network, losses_of, x, y = made("softmax", 33)
        exact = sequential(layers.Dense(4, dtype="float32"), layers.Dense(3))
    finally:
        keras.config.set_dtype_policy(before)
    weights = tf.constant(RNG.uniform(0, 2, 33), "float32")
    run = functools.partial(found, losses_of, network, x, y, weights, loss_scale=2.0**10 / 33)
    ours = run()
    assert ours[0].dtype == policy.removeprefix("mixed_") and ours[1].dtype == tf.float32
    assert_same(ours, mapped(monkeypatch, run), rtol)
    # A layer of a precision of its own.
    np.testing.assert_array_equal(per_example.gradients(losses_of, exact, x, y)[0], exact(x))


@pytest.mark.parametrize("name", ["softmax", "sigmoid"])
def test_a_probability_of_0_has_the_gradient_of_its_logit(name, monkeypatch):
    network, losses_of, x, y = made(name)
    network.layers[-1].kernel.assign(1000 * network.layers[-1].kernel)
    run = functools.partial(found, losses_of, network, x, y, tf.ones(7))
    ours = run()
    assert np.ptp(ours[0]) == 1 and ours[1].numpy().max() > 100
    assert_same(ours, mapped(monkeypatch, run))


def test_huge_targets_have_finite_norms_and_rows_of_zeros_have_none():
    network = sequential(layers.Dense(1, use_bias=False))
    x, y = tf.constant([[0.0] * 6, [1.0] * 6, [1.0] * 6]), tf.constant([[1e25], [1e25], [0.0]])
    norms = prl.scores.gradient_norm(x, y, network, lambda y, p: tf.reduce_sum(1e5 * (p - y), 1) * 1e25)
    np.testing.assert_allclose(norms, [0, 1e30 * 6**0.5, 1e30 * 6**0.5], rtol=1e-5)


class TestDropout:
    def network(self, rate=0.5):
        keras.utils.set_random_seed(2)
        return sequential(
            layers.Dropout(rate),
            layers.GaussianNoise(0.1),
            layers.Dense(4, "tanh"),
            layers.Dropout(rate),
            layers.Dense(3),
        )

    def test_the_same_masks_for_norms_and_sums_and_one_for_each_example(self):
        network, losses_of = self.network(), made("plain")[1]
        x, y = tf.ones((8, 6)), tf.zeros(8, "int32")
        y_pred, norms, weighted_sum, _ = per_example.gradients(losses_of, network, x, y)
        sums = [weighted_sum(one_hot) for one_hot in tf.eye(8)]
        np.testing.assert_allclose(norms, [tf.linalg.global_norm(s) for s in sums], rtol=1e-5)
        assert len(np.unique(y_pred.numpy().round(5), axis=0)) == 8
        again = per_example.gradients(losses_of, network, x, y).y_pred
        assert not np.allclose(again, y_pred)

    def test_inference_mode_has_none_and_leaves_the_seeds_alone(self):
        network = self.network()
        x, y = tf.ones((4, 6)), tf.zeros(4, "int32")
        states = [w.numpy() for w in network.non_trainable_variables]
        norms = prl.scores.gradient_norm(x, y, network, SPARSE, training=False)
        assert len(np.unique(norms.numpy().round(6))) == 1
        np.testing.assert_array_equal(states, [w.numpy() for w in network.non_trainable_variables])

    @pytest.mark.daily("None")
    @pytest.mark.parametrize("microbatch_size", [None, 3])
    def test_dropping_nothing_is_plain_fit_mask_by_mask(self, microbatch_size):
        x, y = RNG.normal(size=(20, 6)), RNG.integers(0, 3, 20)
        weights = []
        ours = {"microbatch_size": microbatch_size}
        for method, options in (("standard", {"run_eagerly": True}), ("prl_g", ours)):
            model = prl.build(method, self.network, epsilon=0.0, loss=SPARSE, optimizer="sgd", **options)
            model.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0)
            weights.append(model.get_weights())
        assert_same(*weights)


# What falls back.


@keras.saving.register_keras_serializable("layer_wise_test")
class MyDense(layers.Dense):
    def call(self, inputs, training=None):
        return 2 * super().call(inputs)


@keras.saving.register_keras_serializable("layer_wise_test")
class MyModel(keras.Model):
    def call(self, inputs, training=None):
        return 2 * super().call(inputs)


def functional(body, shape=(6,), **options):
    inputs = keras.Input(shape, **options)
    return keras.Model(inputs, body(inputs))


def used_twice(inputs):
    shared = layers.Dense(6, activation="tanh")
    return layers.Dense(3)(shared(shared(inputs)))


def with_lora():
    network = mlp()
    network.layers[0].enable_lora(2)
    network.layers[0].lora_kernel_b.assign(tf.ones((2, 5)))
    return network


def replaced_call():
    network = mlp()
    layer = network.layers[0]
    layer.call = lambda inputs, training=None: 2 * layers.Dense.call(layer, inputs)
    return network


def replaced_call_of_the_model():
    network = functional(layers.Dense(3))
    network.call = lambda inputs, training=None, mask=None: 2 * type(network).call(network, inputs)
    return network


def with_weights_outside_the_graph():
    network = functional(layers.Dense(3))
    network.other = layers.Dense(2)
    network.other.build((None, 6))
    return network


def replaced_activation():
    network = mlp()
    network.layers[0].activation = lambda x: x**2
    return network


FALLBACKS = {
    "used_twice": lambda: functional(used_twice),
    "lambda": lambda: sequential(layers.Dense(4), layers.Lambda(lambda x: x**2), layers.Dense(3)),
    "mean_over_the_batch": lambda: functional(
        lambda x: layers.Dense(3)(x - keras.ops.mean(layers.Dense(6)(x), axis=0, keepdims=True))
    ),
    "operator": lambda: functional(lambda x: layers.Dense(3)(x + layers.Dense(6)(x))),
    "subclassed_layer": lambda: sequential(MyDense(4), layers.Dense(3)),
    "subclassed_model": lambda: MyModel((i := keras.Input((6,))), layers.Dense(3)(i)),
    "own_activation": lambda: mlp(activation=lambda x: x - tf.reduce_mean(x)),
    "replaced_activation": replaced_activation,
    "replaced_call": replaced_call,
    "replaced_call_of_the_model": replaced_call_of_the_model,
    "weights_outside_the_graph": with_weights_outside_the_graph,
    "softmax_over_the_batch": lambda: sequential(layers.Dense(4), layers.Softmax(axis=0), layers.Dense(3)),
    "softmax_over_the_batch_from_the_end": lambda: sequential(layers.Softmax(axis=-2), layers.Dense(3)),
    "nested": lambda: sequential(sequential(layers.Dense(4)), layers.Dense(3)),
    "prelu": lambda: sequential(layers.Dense(4), layers.PReLU(), layers.Dense(3)),
    "normalization": lambda: sequential(layers.Dense(4), layers.RMSNormalization(), layers.Dense(3)),
    "lora": with_lora,
}


@pytest.mark.daily(
    "used_twice",
    "subclassed_model",
    "replaced_activation",
    "replaced_call_of_the_model",
    "weights_outside_the_graph",
    "softmax_over_the_batch",
)
@pytest.mark.fault(16)
@pytest.mark.parametrize("name", FALLBACKS)
def test_what_it_does_not_know_falls_back_and_equals_the_loop(name):
    keras.utils.set_random_seed(1)
    network = FALLBACKS[name]()
    assert not layer_wise.applies(network)
    x, y = tf.constant(RNG.normal(size=(5, 6)), "float32"), tf.constant(RNG.integers(0, 3, 5))
    losses_of = made("plain")[1]
    _, norms, weighted_sum, _ = per_example.gradients(losses_of, network, x, y)
    for i, one_hot in enumerate(tf.eye(5)):
        with tf.GradientTape() as tape:
            loss = losses_of(y[i : i + 1], network(x[i : i + 1], training=True))
        expected = tape.gradient(
            loss, [w.value for w in network.trainable_weights], unconnected_gradients="zero"
        )
        assert_same(weighted_sum(one_hot), expected, rtol=1e-4)
        np.testing.assert_allclose(norms[i], tf.linalg.global_norm(expected), rtol=1e-4)


@pytest.mark.parametrize(
    "make",
    [
        lambda: functional(lambda x: layers.Dense(3)(layers.Concatenate(axis=0)([x, x]))),
        lambda: functional(lambda x: layers.Dense(3)(layers.Concatenate(axis=-2)([x, x]))),
        lambda: sequential(layers.Dropout(0.5, noise_shape=(1, 6)), layers.Dense(3)),
        lambda: functional(layers.Dense(3), sparse=True),
        lambda: mlp(activity_regularizer="l2"),
        lambda: sequential(layers.LeakyReLU(activity_regularizer="l2"), layers.Dense(3)),
        lambda: sequential(layers.Rescaling(np.ones((2, 1))), layers.Dense(3)),
        lambda: functional(lambda x: layers.Dense(3)(x), batch_shape=(4, 6), shape=None),
        lambda: functional(
            lambda x: layers.Dense(3)(layers.Reshape((1,))(layers.Activation("softmax")(x))), ()
        ),
        lambda: functional(lambda x: [layers.Dense(3)(x), layers.Dense(3)(x)]),
        lambda: functional(lambda x: {"a": layers.Dense(3)(x)}),
        lambda: sequential(layers.Flatten()),
        lambda: keras.Sequential([layers.Dense(3)]),
        lambda: sequential(layers.Embedding(7, 2, mask_zero=True), layers.Flatten(), layers.Dense(3)),
        lambda: sequential(layers.BatchNormalization(), layers.Dense(3)),
        lambda: sequential(layers.Dense(4), layers.GlobalAveragePooling1D(), shape=(None, 6)),
        lambda: sequential(layers.Conv1D(4, 2), layers.GlobalAveragePooling1D(), shape=(None, 6)),
        lambda: sequential(layers.Dense(3, autocast=False)),
    ],
)
def test_more_that_falls_back(make):
    assert not layer_wise.applies(make())


def test_a_quantized_or_frozen_network_falls_back():
    network = mlp()
    network.trainable = False
    assert not layer_wise.applies(network)
    network = mlp()
    network.quantize("int8")
    assert not layer_wise.applies(network)


# In training.


@pytest.mark.long
@pytest.mark.parametrize("method", ["prl_g", "ignormclip"])
def test_a_whole_training_gives_the_weights_of_the_map(method, monkeypatch):
    x, y = RNG.normal(size=(30, 6)), RNG.integers(0, 3, 30)
    sample_weight = RNG.uniform(0.5, 2, 30) * (np.arange(30) % 5 > 0)

    def train(**options):
        keras.utils.set_random_seed(3)
        rule = {"max_norm": 1.0} if method == "ignormclip" else {}
        optimizer = keras.optimizers.Adam(0.01)
        model = prl.build(
            method, regularized, epsilon=0.3, loss=SPARSE, optimizer=optimizer, **rule, **options
        )
        logs = model.fit(x, y, sample_weight=sample_weight, batch_size=8, epochs=2, verbose=0).history
        return model.get_weights(), logs, prl.score_examples(model, (x, y))

    expected = mapped(monkeypatch, train, run_eagerly=True)
    for microbatch_size in (None, 3):
        with monkeypatch.context() as patch:
            patch.delattr(per_example, "_one_gradient")  # no example by itself, microbatches or not
            ours = train(microbatch_size=microbatch_size)
        assert_same(ours[0], expected[0], rtol=1e-4)
        assert_same(ours[1:], expected[1:], rtol=1e-4)


def test_the_layers_stay_as_they_are(tmp_path):
    network, losses_of, x, y = made("softmax")
    before = [(dict(vars(layer)), layer.get_config()) for layer in network.layers]
    per_example.gradients(losses_of, network, x, y)
    with pytest.raises(ValueError, match="incompatible"):
        per_example.gradients(losses_of, network, x[:, :3], y)
    with pytest.raises(Exception, match="division by zero"):
        per_example.gradients(lambda y, y_pred: 1 / 0, network, x, y)
    for layer, (attributes, config) in zip(network.layers, before):
        assert layer.get_config() == config
        assert all(vars(layer)[name] is value for name, value in attributes.items() if name != "_called")
    model = prl.RobustModel(network, score="gradient")
    model.compile("sgd", PROBABILITIES)
    model.fit(x, y, verbose=0)
    model.network.save(tmp_path / "network.keras")
    loaded = keras.saving.load_model(tmp_path / "network.keras")
    np.testing.assert_array_equal(loaded(x), network(x))
    assert layer_wise.applies(loaded)


@pytest.mark.parametrize("name, shape", [("plain", (7, 4)), ("residual", (7, 3, 2))])
def test_inputs_that_do_not_fit_are_refused_as_in_a_call_of_the_network(name, shape):
    network, losses_of, _, y = made(name)
    for call in (network, lambda x: per_example.gradients(losses_of, network, x, y)):
        with pytest.raises(ValueError, match="incompatible with the layer"):
            call(tf.ones(shape))


REPLICAS = """
import keras, numpy as np, tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
import prl_keras as prl
from prl_keras.scores import gradient as per_example
from keras import layers
del per_example._one_gradient

rng = np.random.default_rng(0)
x, y = rng.normal(size=(22, 5)).astype("float32"), rng.integers(0, 3, 22)

def network():
    keras.utils.set_random_seed(0)
    # Dropout of next to nothing: it assigns its seed, where the replicas' threads take turns.
    body = [layer for _ in range(3) for layer in (layers.Dense(6, "tanh"), layers.Dropout(1e-9))]
    return keras.Sequential([keras.Input((5,)), *body, layers.Dense(3, "softmax")])

weights = []
for strategy in (tf.distribute.get_strategy(), tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])):
    with strategy.scope():
        loss = keras.losses.SparseCategoricalCrossentropy()
        model = prl.build("prl_g", network, epsilon=0.4, loss=loss, optimizer="sgd")
        model.optimizer.build(model.trainable_variables)
    model.fit(tf.data.Dataset.from_tensor_slices((x, y)).batch(8), epochs=2, verbose=0)
    weights.append(model.get_weights())
for one, two in zip(*weights):
    np.testing.assert_allclose(one, two, rtol=0, atol=1e-5)
print("equal")
"""


@pytest.mark.long
def test_two_replicas_whose_threads_take_turns_learn_what_one_device_learns():
    assert python("-c", REPLICAS).stdout.split()[-1] == "equal"
