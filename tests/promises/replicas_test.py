"""Promise 4 on two and three logical CPUs: the selection is over the global batch.

Each in a process of its own, because logical devices must be made before TensorFlow starts.
"""

import pytest
from processes import run

import prl_keras as prl

SETUP = """
import sys
import keras, numpy as np, tensorflow as tf
devices = [f"CPU:{i}" for i in range(int(sys.argv[1]))]
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * len(devices))
import prl_keras as prl
from arrays import assert_all_close, assert_all_equal

cross_entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
rng = np.random.default_rng(0)
one_is_eager = True  # what is traced here is several replicas
sizes = [7, 8, 5, 1]  # of the batches: uneven shares, and fewer examples than replicas
x, y = rng.normal(size=(21, 5)).astype("float32"), rng.integers(0, 3, 21)

def network(seed, *middle):
    initializer = keras.initializers.GlorotUniform(seed)
    dense = keras.layers.Dense(3, kernel_initializer=initializer)
    return keras.Sequential([keras.Input((5,)), *middle, dense])

def optimizer():
    return keras.optimizers.SGD(0.5, momentum=0.9)

def build(method, network, loss=cross_entropy, **options):
    seeds = iter(range(2))
    options = {"epsilon": 0.4, "optimizer": optimizer(), **options}
    return prl.build(method, lambda: network(next(seeds)), loss=loss, **options)

def train(make, strategy, y=y, sample_weight=None):
    arrays = (x, y) if sample_weight is None else (x, y, sample_weight)
    with strategy.scope():
        model = make()
    model.run_eagerly = one_is_eager and strategy.num_replicas_in_sync == 1
    slices = lambda *places: keras.tree.map_structure(lambda t: t[slice(*places)], arrays)
    data, end = tf.data.Dataset.from_tensors(slices(0)).take(0), 0
    for size in sizes:
        end += size
        batch = tf.data.Dataset.from_tensor_slices(slices(end - size, end))
        data = data.concatenate(batch.batch(8))
    logs = model.fit(data, epochs=2, validation_data=data, verbose=0).history
    return model.get_weights(), logs

def assert_equal(make, what, left_out=(), **data):
    one, logs_one = train(make, tf.distribute.get_strategy(), **data)
    several, logs = train(make, mirrored, **data)
    assert_all_close(one, several, rtol=0, atol=1e-5, err_msg=what)
    assert logs_one.keys() <= logs.keys()  # plain Keras models have fewer
    for name in logs_one.keys() - {*left_out}:
        np.testing.assert_allclose(logs_one[name], logs[name], rtol=1e-4, err_msg=what + name)

mirrored = tf.distribute.MirroredStrategy(devices)
"""
EVERY_METHOD = """
recompute = sys.argv[2] == "recompute"
for method in sys.argv[3:]:
    loss = "mse" if method == "huber" else cross_entropy
    targets = rng.normal(size=(21, 3)).astype("float32") if method == "huber" else y
    assert_equal(lambda: build(method, network, loss, recompute=recompute), method, y=targets)
"""
SCORES_OF_SHARE = """
for method in sys.argv[2:]:
    for loss, targets in [(cross_entropy, y), ("mse", rng.normal(size=(21, 3)).astype("float32"))]:
        make = lambda: build(method, network, loss)
        with mirrored.scope():
            before = make().get_weights()
        weights, logs = train(make, mirrored, y=targets)
        assert all(np.isfinite(w).all() for w in weights) and logs["nonfinite"] == [0, 0], logs
        assert any(np.abs(a - b).max() > 1e-3 for a, b in zip(before, weights))
"""
# The labels are the scores: of each batch replica 0 keeps all of its share, the last replica nothing.
NOTHING_KEPT = """
sizes = [8, 8, 2]
halves = np.array([0, 0, 0, 0, 2, 2, 2, 2] * 2 + [0, 2, 0, 0, 0])

def make(*middle):
    score = lambda y, y_pred: tf.cast(y, tf.float32)
    model = prl.RobustModel(network(0, *middle), score, prl.Trim(0.5), recompute=True)
    model.compile(optimizer(), cross_entropy)
    return model

assert_equal(make, "nothing kept", y=halves)
normalized = lambda: make(keras.layers.Dropout(0.2), keras.layers.BatchNormalization())
weights, _ = train(normalized, mirrored, y=halves)
assert all(np.isfinite(w).all() for w in weights)

sizes, alone = [1, 8], lambda: make(keras.layers.BatchNormalization())  # first a share without an example
weights, logs = train(alone, mirrored, y=halves)
assert all(np.isfinite(w).all() for w in weights) and np.isfinite(logs["val_loss"]).all()
"""
# Of the second batch the first replica's share holds nothing else, of the third all do.
NOT_FINITE = """
x[[2, *range(7, 11), *range(15, 20)], 1] = np.nan

normalized = lambda seed: network(seed, keras.layers.BatchNormalization())
for method in sys.argv[2:]:
    weights, logs = train(lambda: build(method, normalized), mirrored)
    assert all(np.isfinite(w).all() for w in weights) and logs["nonfinite"] == [10, 10], logs
    assert_equal(lambda: build(method, network), method)
"""

SEVERAL_OUTPUTS = """
one_is_eager = False  # in a graph Keras's means of each output's loss are over batches, not over examples
targets = {"a": y, "b": rng.normal(size=(21, 4, 1)).astype("float32")}
def two_outputs(seed):
    inputs = keras.Input((5,))
    initializer = keras.initializers.GlorotUniform(seed)
    dense = lambda units: keras.layers.Dense(units, kernel_initializer=initializer)(inputs)
    return keras.Model(inputs, {"a": dense(3), "b": keras.layers.Reshape((4, 1))(dense(4))})
for method in ("prl_l", "prl_g", "co_prl_l"):
    def make():
        loss, weights = {"a": cross_entropy, "b": "mse"}, {"a": 0.3, "b": 2.0}
        return build(method, two_outputs, loss, loss_weights=weights)
    # Keras's means over the replicas are left out.
    assert_equal(make, method, y=targets, left_out=["val_a_loss", "val_b_loss"])
"""


# Their scores are those of a replica's share.
OF_SHARE = ["sever", "geomed"]
METHODS = [name for name in prl.METHODS if name not in OF_SHARE]
SCORED = [name for name in METHODS if prl.METHODS[name].score]
OF_EACH_KIND = ["prl_g", "co_prl_l"]
LONG = pytest.mark.long
two_and_three = pytest.mark.parametrize("replicas", ["2", "3"])


@pytest.mark.fault(5, 19)
@pytest.mark.parametrize(
    "replicas, mode, methods",
    [
        ("2", "masked", OF_EACH_KIND),
        pytest.param("2", "masked", METHODS, marks=LONG),
        pytest.param("3", "masked", METHODS, marks=LONG),
        pytest.param("3", "recompute", SCORED, marks=LONG),
    ],
)
def test_replicas_learn_what_one_device_learns(replicas, mode, methods):
    run(SETUP + EVERY_METHOD, replicas, mode, *methods)


@LONG  # tests/scores has their small and empty batches on one device
@two_and_three
def test_scores_of_a_share_train(replicas):
    run(SETUP + SCORES_OF_SHARE, replicas, *OF_SHARE)


@pytest.mark.long
@pytest.mark.fault(5)
@two_and_three
def test_a_replica_of_which_nothing_is_kept_adds_nothing(replicas):
    run(SETUP + NOTHING_KEPT, replicas)


@pytest.mark.long
@pytest.mark.fault(6)
@pytest.mark.parametrize(
    "replicas, method",
    [("2", "prl_l"), ("2", "decouple"), ("3", "prl_l")],
)
def test_examples_that_are_not_finite(replicas, method):
    run(SETUP + NOT_FINITE, replicas, method)


@LONG  # test_a_step_is_that_of_the_examples_with_the_lowest_weighted_sum has them on one device
@pytest.mark.fault(23)
def test_several_outputs():
    run(SETUP + SEVERAL_OUTPUTS, "2")
