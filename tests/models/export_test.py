"""`export`: the file gives what `predict` gives, for every kind of network."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from small_classifier import LOSS, X, Y, network

import prl_keras as prl


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(3)

    def call(self, inputs, training=None):
        return self.dense(inputs)


def functional(kind):
    inputs = {name: keras.Input((4,), name=name) for name in ("a", "b")}
    given = inputs if kind is dict else list(inputs.values())
    return keras.Model(given, layers.Dense(3)(layers.Add()(list(inputs.values()))))


NETWORKS = {
    "sequential": network,
    "built by the first batch": lambda: keras.Sequential([layers.Dropout(0.5), layers.Dense(3)]),
    "subclassed": Subclassed,
    "inputs in a dict": lambda: functional(dict),
    "inputs in a list": lambda: functional(list),
}


def trained(kind, is_pair):
    networks = [NETWORKS[kind]() for _ in range(1 + is_pair)]
    model = (prl.CoTeachingModel if is_pair else prl.RobustModel)(*networks)
    model.compile("sgd", LOSS, run_eagerly=True)
    x = {"inputs in a dict": {"a": X, "b": X}, "inputs in a list": [X, X]}.get(kind, X)
    model.fit(x, Y, verbose=0)
    return model, x


def assert_served(directory, model, x):
    """-> what was loaded."""
    loaded = tf.saved_model.load(str(directory))
    np.testing.assert_allclose(loaded.serve(x), model.predict(x, verbose=0), rtol=1e-5, atol=1e-6)
    return loaded


@pytest.mark.daily("built by the first batch-one", "subclassed-pair", "inputs in a list-one")
@pytest.mark.fault(35)
@pytest.mark.parametrize("is_pair", [False, True], ids=["one", "pair"])
@pytest.mark.parametrize("kind", NETWORKS)
def test_the_file_gives_what_predict_gives(kind, is_pair, tmp_path):
    model, x = trained(kind, is_pair)
    model.export(tmp_path, verbose=False)
    assert_served(tmp_path, model, x)


@pytest.mark.fault(35)
def test_a_signature_is_passed_on(tmp_path):
    model, _ = trained("subclassed", is_pair=False)
    model.export(tmp_path, "tf_saved_model", False, [keras.InputSpec("float32", (2, 4))])
    loaded = assert_served(tmp_path, model, X[:2])
    with pytest.raises(TypeError, match=r"shape=\(2, 4\)"):
        loaded.serve(X)


@pytest.mark.fault(35)
def test_a_network_that_was_never_called_gets_the_advice_of_keras(tmp_path):
    for unbuilt in (Subclassed(), keras.Sequential([layers.Dense(3)])):
        with pytest.raises(ValueError, match=r"(called at least once|built) before export"):
            prl.RobustModel(unbuilt).export(tmp_path)


@pytest.mark.fault(35)
@pytest.mark.parametrize("is_pair", [False, True], ids=["one", "pair"])
def test_an_archive_of_endpoints(is_pair, tmp_path):
    model, x = trained("sequential", is_pair)
    archive = keras.export.ExportArchive()
    archive.track(model)
    archive.add_endpoint("serve", model.call, [keras.InputSpec("float32", (None, 4))])
    archive.write_out(tmp_path, verbose=False)
    assert_served(tmp_path, model, x)


@pytest.mark.long
@pytest.mark.fault(35)
@pytest.mark.filterwarnings("ignore:.*tf.lite.Interpreter")
def test_tensorflow_lite(tmp_path):
    model, x = trained("sequential", is_pair=False)
    path = tmp_path / "model.tflite"
    model.export(path, format="litert", verbose=False)
    interpreter = tf.lite.Interpreter(str(path))
    (given,), (wanted,) = interpreter.get_input_details(), interpreter.get_output_details()
    interpreter.resize_tensor_input(given["index"], x.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(given["index"], x)
    interpreter.invoke()
    np.testing.assert_allclose(
        interpreter.get_tensor(wanted["index"]), model.predict(x, verbose=0), atol=1e-5
    )
