"""Losses of every kind, and moving statistics, on two logical CPUs: as on one, and the same on both."""

import keras
import pytest
import tensorflow as tf
from processes import run

import prl_keras as prl
from tests.promises.replicas_test import SETUP

REGULARIZED = """
def make(method, loss, recompute):
    def regularized(seed):
        # Keras cannot add a regularizer to losses of no reduction.
        regularizer = keras.regularizers.L2(0.1) if loss.reduction else None
        dense = keras.layers.Dense(3, kernel_initializer=keras.initializers.GlorotUniform(seed),
                                   kernel_regularizer=regularizer)
        return keras.Sequential([keras.Input((5,)), dense])
    return build(method, regularized, loss, recompute=recompute, optimizer=keras.optimizers.SGD(0.1))

for method in sys.argv[2:]:
    for reduction in ["sum_over_batch_size", "sum"] + [None] * (method == "prl_l"):
        for recompute in {False, method == "prl_l" and reduction == "sum_over_batch_size"}:
            loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction=reduction)
            sums = {"sum_over_batch_size": [], "sum": ["val_loss"], None: ["loss", "loss_all", "val_loss"]}
            what = f"{method} {reduction} {recompute} "
            assert_equal(lambda: make(method, loss, recompute), what, left_out=sums[reduction])
"""
MASKED = """
steps = rng.integers(1, 7, 21)
x = np.where(np.arange(7) < steps[:, None], rng.integers(1, 9, (21, 7)), 0)  # 0 is padding
y = rng.integers(0, 3, (21, 7))

def masked(seed):
    normal = keras.initializers.RandomNormal(seed=seed)
    embedding = keras.layers.Embedding(9, 4, mask_zero=True, embeddings_initializer=normal)
    dense = keras.layers.Dense(3, kernel_initializer=keras.initializers.GlorotUniform(seed))
    return keras.Sequential([keras.Input((7,)), embedding, dense])

for method in ("standard", "prl_l", "co_prl_l"):
    make = lambda: build(method, masked, optimizer=keras.optimizers.SGD(0.5))
    one, _ = train(make, tf.distribute.get_strategy(), y=y)
    several, _ = train(make, mirrored, y=y)
    assert_all_close(one, several, rtol=0, atol=1e-5, err_msg=method)
"""
STATISTICS = """
with mirrored.scope():
    normalization = keras.layers.BatchNormalization(momentum=0.5)
    network = keras.Sequential([keras.Input((5,)), normalization, keras.layers.Dense(3)])
    model = prl.RobustModel(network, rule=prl.Trim(0.4))
    model.compile(optimizer(), cross_entropy, metrics=["accuracy"])
batches = tf.data.Dataset.from_tensor_slices((x, y)).batch(8)
logs = model.fit(batches, epochs=2, validation_data=batches, verbose=0).history
for variable in network.layers[0].non_trainable_variables:
    values = [value.numpy() for value in mirrored.experimental_local_results(variable.value)]
    np.testing.assert_array_equal(*values)
alone = keras.models.clone_model(network)
alone.set_weights(network.get_weights())
alone.compile(loss=cross_entropy)
shipped = alone.evaluate(x, y, verbose=0)
np.testing.assert_allclose(logs["val_loss"][-1], shipped, rtol=1e-4)  # what was seen is what is saved

before = [w.copy() for w in network.get_weights()]
one = tf.data.Dataset.from_tensor_slices((x[:1], y[:1])).batch(2)  # nothing for the second replica
moved = network.layers[0].moving_mean
model.fit(one, verbose=0)
first_moved = 0.5 * before[2] + 0.5 * x[0]  # of the first; the second stays; their mean
np.testing.assert_allclose(np.asarray(moved), (first_moved + before[2]) / 2, atol=1e-5)
"""
BAD_REPLICA = """
halves = [np.arange(8 * i, 8 * i + 4) for i in range(2)]  # the first replica's share of each batch of 8
good = np.concatenate(halves)
hurt = x[:16].copy()
hurt[np.setdiff1d(np.arange(16), good)] = np.nan  # the second's, for both batches
for recompute in (False, True):
    found = []
    for strategy, inputs, labels, size, epsilon in (
        (mirrored, hurt, y[:16], 8, 0.4),  # the bad ones are dropped first: all the good ones stay
        (tf.distribute.get_strategy(), x[good], y[good], 4, 0.0),
    ):
        with strategy.scope():
            shared = keras.layers.BatchNormalization(momentum=0.5, synchronized=strategy is mirrored)
            model = prl.RobustModel(network(0, shared), rule=prl.Trim(epsilon), recompute=recompute)
            model.compile(keras.optimizers.SGD(0.3), cross_entropy)
        model.fit(inputs, labels, batch_size=size, shuffle=False, verbose=0)
        found.append(model.network.get_weights())
    assert_all_close(*found, rtol=0, atol=1e-5, err_msg=str(recompute))
with mirrored.scope():  # no replica has a good example: nothing changes
    model = prl.RobustModel(network(0, keras.layers.BatchNormalization(synchronized=True)), rule=prl.Trim(0))
    model.compile(keras.optimizers.SGD(0.3), cross_entropy)
before = model.network.get_weights()
model.fit(np.full_like(hurt, np.nan), y[:16], batch_size=8, verbose=0)
assert_all_equal(before, model.network.get_weights())
"""
LAYERS = """
class Penalty(keras.layers.Layer):
    def call(self, t):
        self.add_loss(0.3 * keras.ops.mean(keras.ops.square(t)))
        return t

def with_layer(kind, seed):
    if kind == "synchronized":
        return network(seed, keras.layers.BatchNormalization(momentum=0.5, synchronized=True))
    if kind == "add_loss":
        return network(seed, Penalty())
    initializer = keras.initializers.GlorotUniform(seed)
    return network(seed, keras.layers.Dense(4, kernel_initializer=initializer, kernel_regularizer="l2",
                                            activity_regularizer=keras.regularizers.L2(0.1)))

one_is_eager, sizes = False, [8, 7, 5, 1]  # even shares, uneven ones, and a replica without an example
of_methods = {
    "prl_l": ("prl_l", {}), "prl_g": ("prl_g", {}), "co_prl_l": ("co_prl_l", {}),
    "recompute": ("prl_l", {"recompute": True}), "microbatches": ("prl_g", {"microbatch_size": 3}),
}
for what in sys.argv[2:]:
    kind, name = what.split(":")
    method, options = of_methods[name]
    def make():
        sgd = keras.optimizers.SGD(0.3)
        return build(method, lambda seed: with_layer(kind, seed), optimizer=sgd, **options)
    assert_equal(make, what, left_out=["val_loss"])
"""
REFUSED = """
def error_of(fit):
    try:
        fit()
    except ValueError as error:
        return str(error)

with mirrored.scope():
    model = prl.RobustModel(network(0))
    model.compile("sgd", keras.losses.MeanSquaredError(reduction="mean_with_sample_weight"))
assert "sum_over_batch_size" in error_of(lambda: model.fit(x, np.zeros((21, 3)), verbose=0))
with mirrored.scope():
    assert "several replicas" in error_of(lambda: model.compile("sgd", "mse", jit_compile=True))
    clipped = keras.optimizers.SGD(1.0, clipnorm=1.0)
from prl_keras.keras_gaps import replicas as distributed_fit
class Both:
    clipnorm = global_clipnorm = clipvalue = None
    optimizers = [clipped]
assert distributed_fit._looks_at_size(Both)
"""


@pytest.mark.long
@pytest.mark.parametrize(
    "methods",
    [["prl_l"], ["prl_g", "co_prl_l", "standard", "decouple"]],
)
def test_regularizers_count_once_and_sums_are_sums(methods):
    run(SETUP + REGULARIZED, "2", *methods)


_METHODS = ("prl_l", "prl_g", "co_prl_l", "recompute", "microbatches")
_LONG = [f"{kind}:{method}" for kind in ("activity", "add_loss") for method in _METHODS]
_LONG += [f"synchronized:{method}" for method in ("prl_l", "co_prl_l", "recompute")]


@pytest.mark.fault(57, 58)
@pytest.mark.parametrize(
    "replicas, kinds",
    [
        ("3", ["add_loss:prl_l", "synchronized:prl_l"]),
        pytest.param("2", _LONG, marks=pytest.mark.long),
    ],
    ids=["3", "2"],
)
def test_layers_that_add_losses_or_share_statistics(replicas, kinds):
    run(SETUP + LAYERS, replicas, *kinds)


@pytest.mark.long
@pytest.mark.fault(58)
def test_a_replica_whose_examples_are_all_bad_shares_no_statistics():
    run(SETUP + BAD_REPLICA, "2")


@pytest.mark.long
@pytest.mark.fault(10)
@pytest.mark.parametrize("more", ["", MASKED], ids=["", "masks"])
def test_moving_statistics_on_two_devices_and_what_is_refused_there(more):
    run(SETUP + REFUSED + STATISTICS + more, "2")


@pytest.mark.long
def test_microbatches_of_a_share_without_an_example():
    class Own(keras.layers.Dense):
        pass

    network = keras.Sequential([keras.Input((4,)), Own(3)])
    norms = prl.scores.gradient_norm(tf.zeros([0, 4]), tf.zeros([0, 3]), network, "mse", microbatch_size=2)
    assert norms.shape == (0,)
