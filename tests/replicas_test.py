"""Promise 4 on two logical CPUs: the selection is over the global batch.

In a process of its own, because logical devices must be made before TensorFlow starts.
"""

import subprocess
import sys

METHODS = ("standard", "spl", "prl_l", "prl_g", "co_prl_l", "decouple")
PROGRAM = """
import sys
import keras, numpy as np, tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
import prl_keras as prl

loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
rng = np.random.default_rng(0)
x, y = rng.normal(size=(22, 5)).astype("float32"), rng.integers(0, 3, 22)

def network(seed):
    initializer = keras.initializers.GlorotUniform(seed)
    return keras.Sequential([keras.Input((5,)), keras.layers.Dense(3, kernel_initializer=initializer)])

def train(method, strategy):
    with strategy.scope():
        seeds = iter(range(2))
        model = prl.build(method, lambda: network(next(seeds)), epsilon=0.4, loss=loss,
                          optimizer=keras.optimizers.SGD(0.5, momentum=0.9))
        # Built here: Keras's own building step reduces a batch over the replicas, uneven ones too.
        model.optimizer.build(model.trainable_variables)
    # Global batches of 8, 8 and 6: 3 on each replica in the last one.
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(8)
    logs = model.fit(data, epochs=2, verbose=0).history
    return model.get_weights(), logs

mirrored = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
for method in sys.argv[1:]:
    one, logs_one = train(method, tf.distribute.get_strategy())
    two, logs_two = train(method, mirrored)
    for a, b in zip(one, two):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5, err_msg=method)
    assert logs_one.keys() == logs_two.keys()
    for name in logs_one:
        np.testing.assert_allclose(logs_one[name], logs_two[name], rtol=1e-4, err_msg=method + name)
print("equal")
"""


def test_two_replicas_learn_what_one_device_learns():
    done = subprocess.run([sys.executable, "-c", PROGRAM, *METHODS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split()[-1] == "equal"
