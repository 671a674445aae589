"""Networks and models made outside the scope of a tf.distribute strategy."""

import pytest
import small_classifier  # noqa: F401, SCOPES imports it
from processes import run

SCOPES = """
import pytest, tensorflow as tf

cpus = [tf.config.LogicalDeviceConfiguration()] * 2
tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], cpus)

import prl_keras as prl
from small_classifier import LOSS, X, Y, network

strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
message = "not made in the scope of one tf.distribute strategy"

outside = network()
with strategy.scope():
    model = prl.RobustModel(outside)
    model.compile("sgd", LOSS)
with pytest.raises(ValueError, match=message):
    model.fit(X, Y, verbose=0)

model = prl.RobustModel(network())
with strategy.scope():
    model.compile("sgd", LOSS)
with pytest.raises(ValueError, match=message):
    model.fit(X, Y, verbose=0)
with pytest.raises(ValueError, match=message):
    model.train_on_batch(X, Y)

with strategy.scope():
    model = prl.RobustModel(network())
    model.compile("sgd", LOSS)
model.fit(X, Y, verbose=0)
with strategy.scope():
    unbuilt = prl.RobustModel(network())
unbuilt.compile("sgd", LOSS)
unbuilt.fit(X, Y, verbose=0)
"""


@pytest.mark.long
@pytest.mark.fault(19)
def test_what_was_made_outside_the_scope_of_a_strategy_is_refused():
    run(SCOPES)
