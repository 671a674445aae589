"""`export`: the file gives what `predict` gives, for every kind of network."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import prl_keras as prl

X, Y = np.random.default_rng(0).normal(size=(8, 4)).astype("float32"), np.arange(8) % 3
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


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
    "sequential": lambda: keras.Sequential([keras.Input((4,)), layers.Dense(3)]),
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


@pytest.mark.daily("built by the first batch-one", "subclassed-pair", "inputs in a list-one")
@pytest.mark.fault(35)
@pytest.mark.parametrize("is_pair", [False, True], ids=["one", "pair"])
@pytest.mark.parametrize("kind", NETWORKS)
def test_the_file_gives_what_predict_gives(kind, is_pair, tmp_path):
    model, x = trained(kind, is_pair)
    model.export(tmp_path, verbose=False)
    loaded = tf.saved_model.load(str(tmp_path))
    served = loaded.serve(x)
    np.testing.assert_allclose(served, model.predict(x, verbose=0), rtol=1e-5, atol=1e-6)


@pytest.mark.fault(35)
def test_a_signature_is_passed_on(tmp_path):
    model, _ = trained("subclassed", is_pair=False)
    model.export(tmp_path, "tf_saved_model", False, [keras.InputSpec("float32", (2, 4))])
    loaded = tf.saved_model.load(str(tmp_path))
    np.testing.assert_allclose(loaded.serve(X[:2]), model.predict(X[:2], verbose=0), rtol=1e-5, atol=1e-6)
    with pytest.raises(TypeError, match=r"shape=\(2, 4\)"):
        loaded.serve(X)


@pytest.mark.fault(35)
def test_a_network_that_was_never_called_gets_the_advice_of_keras(tmp_path):
    for network in (Subclassed(), keras.Sequential([layers.Dense(3)])):
        with pytest.raises(ValueError, match=r"(called at least once|built) before export"):
            prl.RobustModel(network).export(tmp_path)


@pytest.mark.fault(35)
@pytest.mark.parametrize("is_pair", [False, True], ids=["one", "pair"])
def test_an_archive_of_endpoints(is_pair, tmp_path):
    model, x = trained("sequential", is_pair)
    archive = keras.export.ExportArchive()
    archive.track(model)
    archive.add_endpoint("serve", model.call, [keras.InputSpec("float32", (None, 4))])
    archive.write_out(tmp_path, verbose=False)
    loaded = tf.saved_model.load(str(tmp_path))
    served = loaded.serve(x)
    np.testing.assert_allclose(served, model.predict(x, verbose=0), rtol=1e-5, atol=1e-6)


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
