"""Which steps count, on two replicas: the selection is over the steps or the sequences of the global batch.

In processes of their own, because logical devices must be made before TensorFlow starts.
"""

import subprocess
import sys

import pytest

SETUP = """
import sys
import keras, numpy as np, tensorflow as tf
from keras import layers
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
import prl_keras as prl

cross_entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
mirrored = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
sizes, rng = [7, 8, 5, 1], np.random.default_rng(0)  # uneven shares, and a replica without an example
x = rng.integers(1, 6, (21, 4))
for i, length in enumerate(rng.integers(1, 5, 21)):
    x[i, length:] = 0
y, s = rng.integers(0, 3, (21, 4)), rng.choice([0.0, 0.5, 1, 3], (21, 4)).astype("float32")
s[5] = 0
classes, of_class = rng.integers(0, 3, 21), np.ones(21, "float32")
of_class[5] = 0

def network(seed, several):
    normal = lambda: keras.initializers.RandomNormal(seed=seed)
    inputs = keras.Input((4,), dtype="int32")
    hidden = layers.Embedding(6, 4, mask_zero=True, embeddings_initializer=normal())(inputs)
    tags = layers.Dense(3, kernel_initializer=normal())(hidden)
    if not several:
        return keras.Model(inputs, tags)
    pooled = layers.GlobalAveragePooling1D()(hidden)
    return keras.Model(inputs, {"tags": tags, "class": layers.Dense(3, kernel_initializer=normal())(pooled)})

def optimizer():
    return keras.optimizers.SGD(0.5, momentum=0.9)

def data(several, weighted):
    arrays = (x, {"tags": y, "class": classes} if several else y)
    if weighted:
        arrays += ({"tags": s, "class": of_class} if several else s,)
    slices = lambda *places: keras.tree.map_structure(lambda t: t[slice(*places)], arrays)
    batches, end = tf.data.Dataset.from_tensors(slices(0)).take(0), 0
    for size in sizes:
        end += size
        batches = batches.concatenate(tf.data.Dataset.from_tensor_slices(slices(end - size, end)).batch(8))
    return batches

def loss(several):
    return {"tags": cross_entropy, "class": cross_entropy} if several else cross_entropy

def train(strategy, method, unit, epsilon, several, weighted):
    seeds = iter(range(2))
    options = {"loss_weights": {"tags": 2.0, "class": 0.5}} if several else {}
    with strategy.scope():
        model = prl.build(method, lambda: network(next(seeds), several), epsilon=epsilon, unit=unit,
                          loss=loss(several), optimizer=optimizer(), **options)
    model.run_eagerly = strategy.num_replicas_in_sync == 1  # what is traced here is two replicas
    logs = model.fit(data(several, weighted), epochs=2, verbose=0).history
    return model, logs

def assert_equal(weights, others, what=""):
    for a, b in zip(weights, others, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5, err_msg=what)
"""
REPLICAS = """
all_sizes = sizes
for arguments in sys.argv[1:]:
    method, unit, *more = arguments.split()
    several, weighted = "several" in more, "weighted" in more
    sizes = all_sizes[:3] if several else all_sizes  # see `EMPTY_SHARE`
    one, logs_one = train(tf.distribute.get_strategy(), method, unit, 0.4, several, weighted)
    two, logs = train(mirrored, method, unit, 0.4, several, weighted)
    assert_equal(one.get_weights(), two.get_weights(), arguments)
    for name in ("kept_fraction", "score_threshold", "nonfinite"):
        np.testing.assert_allclose(logs_one[name], logs[name], rtol=1e-4, err_msg=arguments + name)
print("equal")
"""
EPSILON_0 = """
for case in sys.argv[1:]:
    several, unit = case == "several", "example" if case == "several" else "element"
    sizes = sizes[:3] if several else sizes
    plain = network(0, several)
    options = {"loss_weights": {"tags": 2.0, "class": 0.5}} if several else {}
    plain.compile(optimizer(), loss(several), run_eagerly=True, **options)
    plain.fit(data(several, True), epochs=2, verbose=0)
    two, _ = train(mirrored, "prl_l", unit, 0.0, several, True)
    assert_equal(plain.get_weights(), two.network.get_weights())
print("equal")
"""
# A mean over the steps that no mask hides, of a replica without an example.
EMPTY_SHARE = """
sizes = [1]
one, _ = train(tf.distribute.get_strategy(), "spl", "example", 0.4, True, False)
two, logs = train(mirrored, "spl", "example", 0.4, True, False)
assert logs["nonfinite"] == [0, 0], logs["nonfinite"]
assert_equal(one.get_weights(), two.get_weights())
print("equal")
"""


def run(program, *arguments):
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split()[-1] == "equal"


@pytest.mark.long
def test_two_replicas_learn_what_one_device_learns():
    cases = "co_prl_l example weighted", "prl_l element weighted", "prl_l example several weighted"
    run(SETUP + REPLICAS, *cases)


@pytest.mark.long
@pytest.mark.parametrize("case", ["elements", "several"])
def test_two_replicas_with_epsilon_0_learn_what_keras_learns(case):
    run(SETUP + EPSILON_0, case)


@pytest.mark.long
@pytest.mark.fault(26)
def test_a_replica_without_an_example_and_a_mean_over_visible_steps():
    run(SETUP + EMPTY_SHARE)
