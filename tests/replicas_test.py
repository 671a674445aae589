"""Promise 4 on two logical CPUs: the selection is over the global batch.

In a process of its own, because logical devices must be made before TensorFlow starts.
"""

import subprocess
import sys

import pytest

METHODS = ("standard", "spl", "prl_l", "prl_g", "co_prl_l", "decouple")
SETUP = """
import sys
import keras, numpy as np, tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
import prl_keras as prl

loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
rng = np.random.default_rng(0)
x, y = rng.normal(size=(22, 5)).astype("float32"), rng.integers(0, 3, 22)

def network(seed, *middle):
    initializer = keras.initializers.GlorotUniform(seed)
    dense = keras.layers.Dense(3, kernel_initializer=initializer)
    return keras.Sequential([keras.Input((5,)), *middle, dense])

def optimizer():
    return keras.optimizers.SGD(0.5, momentum=0.9)

def train(make, strategy, y=y):
    with strategy.scope():
        model = make()
        # Built here: Keras's own building step reduces a batch over the replicas, uneven ones too.
        model.optimizer.build(model.trainable_variables)
    # Global batches of 8, 8 and 6: 3 on each replica in the last one.
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(8)
    logs = model.fit(data, epochs=2, verbose=0).history
    return model.get_weights(), logs

def assert_equal(make, what, **data):
    one, logs_one = train(make, tf.distribute.get_strategy(), **data)
    two, logs_two = train(make, mirrored, **data)
    for a, b in zip(one, two):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5, err_msg=what)
    assert logs_one.keys() == logs_two.keys()
    for name in logs_one:
        np.testing.assert_allclose(logs_one[name], logs_two[name], rtol=1e-4, err_msg=what + name)

mirrored = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
"""
EVERY_METHOD = """
recompute = sys.argv[1] == "recompute"
for method in sys.argv[2:]:
    def make():
        seeds = iter(range(2))
        return prl.build(method, lambda: network(next(seeds)), epsilon=0.4, loss=loss,
                         optimizer=optimizer(), recompute=recompute)
    assert_equal(make, method)
print("equal")
"""
# The labels are the scores: of each batch replica 0 keeps all of its half, replica 1 nothing.
NOTHING_KEPT = """
halves = np.tile([0, 0, 0, 0, 2, 2, 2, 2], 3)[:22]
halves[-6:] = [0, 0, 0, 2, 2, 2]

def make(*middle):
    score = lambda y, y_pred: tf.cast(y, tf.float32)
    model = prl.RobustModel(network(0, *middle), score, prl.Trim(0.5), recompute=True)
    model.compile(optimizer(), loss)
    return model

assert_equal(make, "nothing kept", y=halves)
normalized = lambda: make(keras.layers.Dropout(0.2), keras.layers.BatchNormalization())
weights, _ = train(normalized, mirrored, y=halves)
assert all(np.isfinite(w).all() for w in weights)
print("equal")
"""


def run(program, *arguments):
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split()[-1] == "equal"


@pytest.mark.parametrize("mode, methods", [("masked", METHODS), ("recompute", METHODS[1:])])
def test_two_replicas_learn_what_one_device_learns(mode, methods):
    run(SETUP + EVERY_METHOD, mode, *methods)


def test_a_replica_of_which_nothing_is_kept_adds_nothing():
    run(SETUP + NOTHING_KEPT)
