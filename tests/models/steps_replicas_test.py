"""Which steps count, on two replicas: the selection is over the steps or the sequences of the global batch.

In processes of their own, because logical devices must be made before TensorFlow starts.
"""

import pytest
from processes import run

from tests.promises.replicas_test import SETUP

STEPS = """
from keras import layers
x = rng.integers(1, 6, (21, 4))
for i, length in enumerate(rng.integers(1, 5, 21)):
    x[i, length:] = 0
y, s = rng.integers(0, 3, (21, 4)), rng.choice([0.0, 0.5, 1, 3], (21, 4)).astype("float32")
s[5] = 0
two_outputs = {"tags": y, "class": rng.integers(0, 3, 21)}
two_weights = {"tags": s, "class": np.ones(21, "float32")}
two_weights["class"][5] = 0
losses = ["loss", "loss_all", "val_loss", "class_loss", "tags_loss", "val_class_loss", "val_tags_loss"]

def network(seed, several):
    normal = lambda: keras.initializers.RandomNormal(seed=seed)
    inputs = keras.Input((4,), dtype="int32")
    hidden = layers.Embedding(6, 4, mask_zero=True, embeddings_initializer=normal())(inputs)
    tags = layers.Dense(3, kernel_initializer=normal())(hidden)
    if not several:
        return keras.Model(inputs, tags)
    pooled = layers.GlobalAveragePooling1D()(hidden)
    return keras.Model(inputs, {"tags": tags, "class": layers.Dense(3, kernel_initializer=normal())(pooled)})

def compile_options(several):
    if several:
        loss, weights = {"tags": cross_entropy, "class": cross_entropy}, {"tags": 2.0, "class": 0.5}
        return {"loss": loss, "loss_weights": weights}
    return {"loss": cross_entropy}

def make(method, unit, several, epsilon=0.4):
    options = {"epsilon": epsilon, "unit": unit, **compile_options(several)}
    return build(method, lambda seed: network(seed, several), **options)
"""
REPLICAS = """
all_sizes = sizes
for case in sys.argv[2:]:
    method, unit, *several = case.split()
    sizes = all_sizes[:3] if several else all_sizes  # see `EMPTY_SHARE`
    data = {"y": two_outputs, "sample_weight": two_weights} if several else {"y": y, "sample_weight": s}
    assert_equal(lambda: make(method, unit, several), case, left_out=losses, **data)
"""
EPSILON_0 = """
def plain(several):
    made = network(0, several)
    made.compile(optimizer(), **compile_options(several))
    return made

several = sys.argv[2] == "several"
if several:
    sizes, y, s = sizes[:3], two_outputs, two_weights
keras_alone, _ = train(lambda: plain(several), tf.distribute.get_strategy(), y, s)
unit = "example" if several else "element"
two, _ = train(lambda: make("prl_l", unit, several, epsilon=0.0), mirrored, y, s)
assert_all_close(keras_alone, two, rtol=0, atol=1e-5)
"""
# A mean over the steps that no mask hides, of a replica without an example.
EMPTY_SHARE = """
sizes = [1]
one, _ = train(lambda: make("spl", "example", True), tf.distribute.get_strategy(), two_outputs)
two, logs = train(lambda: make("spl", "example", True), mirrored, two_outputs)
assert logs["nonfinite"] == [0, 0], logs["nonfinite"]
assert_all_close(one, two, rtol=0, atol=1e-5)
"""


@pytest.mark.long
def test_two_replicas_learn_what_one_device_learns():
    run(SETUP + STEPS + REPLICAS, "2", "co_prl_l example", "prl_l element", "prl_l example several")


@pytest.mark.long
@pytest.mark.parametrize("case", ["elements", "several"])
def test_two_replicas_with_epsilon_0_learn_what_keras_learns(case):
    run(SETUP + STEPS + EPSILON_0, "2", case)


@pytest.mark.long
@pytest.mark.fault(26)
def test_a_replica_without_an_example_and_a_mean_over_visible_steps():
    run(SETUP + STEPS + EMPTY_SHARE, "2")
