"""Saved models go on in a fresh process exactly where they stopped, and networks ship without prl_keras."""

import functools
import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from arrays import assert_all_equal
from processes import run

import prl_keras as prl

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(12, 4)).astype("float32"), RNG.integers(3, size=12)
LOGITS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

# What runs in the fresh process; prints nothing but what it must.
GO_ON = """
import json, sys
import keras, numpy as np
import prl_keras, tests.promises.saving_test
for path in json.loads(sys.argv[1]):
    data = np.load(path + ".npz")
    model = keras.models.load_model(path)
    out = {"predicted": model(data["x"]), "iterations": model.optimizer.iterations}
    out |= {f"state{i}": v for i, v in enumerate(model.optimizer.variables)}
    out = {key: np.array(value) for key, value in out.items()}
    model.train_on_batch(data["x"], data["y"])
    out |= {f"weight{i}": w for i, w in enumerate(model.get_weights())}
    np.savez(path + ".out.npz", **out)
"""
WITHOUT_PRL_KERAS = """
import sys
import keras, numpy as np
folder = sys.argv[1]
for name in ("model", "pair"):
    network = keras.models.load_model(f"{folder}/network_of_{name}.keras")
    np.save(f"{folder}/predicted_by_{name}.npy", network(np.load(f"{folder}/data.npz")["x"]))
assert not [name for name in sys.modules if name.startswith("prl_keras")]
try:
    keras.models.load_model(f"{folder}/robust.keras")
except Exception as error:
    print(type(error).__name__, error)
"""


@keras.saving.register_keras_serializable(package="saving_test")
class Subclass(keras.Model):
    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.hidden = keras.layers.Dense(units, activation="tanh")
        self.out = keras.layers.Dense(3)

    def call(self, x):
        return self.out(self.hidden(x))

    def get_config(self):
        return {**super().get_config(), "units": self.units}


@keras.saving.register_keras_serializable(package="saving_test")
def margin(y_true, y_pred):
    """A score of the user's own: how far the label's logit is below the largest."""
    label = keras.ops.one_hot(keras.ops.cast(y_true, "int32"), 3)
    return keras.ops.max(y_pred, axis=-1) - keras.ops.sum(label * y_pred, axis=-1)


def sequential():
    return keras.Sequential([keras.layers.Dense(5, activation="tanh"), keras.layers.Dense(3)])


def functional():
    inputs = keras.Input([4])
    hidden = keras.layers.Dense(5, activation="tanh")(inputs)
    return keras.Model(inputs, keras.layers.Dense(3)(hidden))


def softmax():
    return keras.Sequential([keras.Input([4]), keras.layers.Dense(3, activation="softmax")])


RAMP = prl.linear_ramp(0.5, steps=4)
MODELS = {  # name: (model, loss, optimizer)
    "trim": (lambda: prl.RobustModel(functional(), rule=prl.Trim(0.3)), LOGITS, "adam"),
    "ramp": (lambda: prl.RobustModel(sequential(), "loss", prl.Trim(RAMP)), LOGITS, "sgd"),
    "keep_lowest": (lambda: prl.RobustModel(Subclass(5), "loss", prl.KeepLowest(2)), LOGITS, "rmsprop"),
    "clip_norm": (lambda: prl.RobustModel(functional(), "gradient", prl.ClipNorm(0.5)), LOGITS, "adam"),
    "microbatch": (
        lambda: prl.RobustModel(sequential(), "gradient", microbatch_size=5),
        LOGITS,
        keras.optimizers.SGD(0.1, momentum=0.9),
    ),
    "no_score": (lambda: prl.RobustModel(Subclass(4), None), LOGITS, "adamw"),
    "own_score": (lambda: prl.RobustModel(sequential(), margin), LOGITS, "adam"),
    "bootstrap": (lambda: prl.RobustModel(softmax(), "loss"), prl.Bootstrap(beta=0.7), "adam"),
    "swap": (lambda: prl.CoTeachingModel(functional(), functional(), rule=prl.Trim(RAMP)), LOGITS, "adam"),
    "unbuilt_pair": (lambda: prl.CoTeachingModel(sequential(), sequential(), "gradient"), LOGITS, "adam"),
    "disagreement": (
        lambda: prl.CoTeachingModel(Subclass(5), Subclass(5), None, exchange="disagreement"),
        LOGITS,
        keras.optimizers.SGD(0.1, use_ema=True),
    ),
}


def make(name, seed=0):
    keras.utils.set_random_seed(seed)
    build, loss, optimizer = MODELS[name]
    optimizer = keras.optimizers.get(optimizer)
    model = build()
    model.compile(
        type(optimizer).from_config(optimizer.get_config()), loss, metrics=["accuracy"], run_eagerly=True
    )
    return model


@functools.cache
def trained(name):
    """For tests that leave it as it is."""
    return newly_trained(name)


def newly_trained(name):
    model = make(name)
    model.fit(X, Y, batch_size=8, epochs=2, shuffle=False, verbose=0)
    return model


@pytest.fixture(scope="module")
def resumed(tmp_path_factory, request):
    """For every model that is asked for: what a fresh process found in its file, and what this one has."""
    folder, here = tmp_path_factory.mktemp("saved"), {}
    items = [item for item in request.session.items if "resumed" in item.fixturenames]
    for name in dict.fromkeys(item.callspec.params["name"] for item in items):
        model = newly_trained(name)
        path = str(folder / f"{name}.keras")
        model.save(path)
        np.savez(path + ".npz", x=X, y=Y)
        values = {"predicted": model(X), "iterations": model.optimizer.iterations}
        values |= {f"state{i}": v for i, v in enumerate(model.optimizer.variables)}
        values = {key: np.array(value) for key, value in values.items()}
        before = model.get_weights()
        model.train_on_batch(X, Y)
        values |= {f"weight{i}": w for i, w in enumerate(model.get_weights())}
        moved = max(np.abs(a - b).max() for a, b in zip(before, model.get_weights()))
        here[name] = path, values, moved
    run(GO_ON, json.dumps([path for path, _, _ in here.values()]))
    return {
        name: (dict(np.load(path + ".out.npz")), values, moved)
        for name, (path, values, moved) in here.items()
    }


@pytest.mark.daily("trim", "microbatch", "swap")
@pytest.mark.fault(21)
@pytest.mark.parametrize("name", MODELS)
def test_a_saved_model_goes_on_in_a_fresh_process(resumed, name):
    there, here, moved = resumed[name]
    assert set(there) == set(here)
    for key in here:
        np.testing.assert_allclose(there[key], here[key], rtol=0, atol=1e-6, err_msg=key)
    assert here["iterations"] == 4 and moved > 1e-5


@pytest.mark.parametrize("name", MODELS)
def test_config_round_trip(name):
    model = make(name)
    copy = type(model).from_config(model.get_config())
    assert copy.rule == model.rule or copy.rule.get_config() == model.rule.get_config()
    assert (copy.score, copy.microbatch_size) == (model.score, model.microbatch_size)
    assert getattr(copy, "exchange", None) == getattr(model, "exchange", None)
    for network, original in zip(copy.networks, model.networks):
        assert network is not original and type(network) is type(original)
    json.dumps(model.get_config())


@pytest.mark.daily("trim")
@pytest.mark.parametrize("name", ["trim", "microbatch", "swap"])
def test_save_weights_and_load_weights(name, tmp_path):
    model, other = trained(name), make(name, seed=1)
    model.save_weights(tmp_path / "m.weights.h5")
    other.build(X.shape)
    assert np.abs(np.array(other(X) - model(X))).max() > 1e-3
    other.load_weights(tmp_path / "m.weights.h5")
    assert_all_equal(other.get_weights(), model.get_weights())
    for network, original in zip(other.networks, model.networks):
        np.testing.assert_allclose(network(X), original(X), atol=1e-6)


@pytest.mark.daily("ramp")
@pytest.mark.parametrize("name", ["ramp", "swap"])
def test_model_checkpoint_keeps_the_best(name, tmp_path):
    model, seen = make(name), []
    path = tmp_path / "best.keras"
    best = keras.callbacks.ModelCheckpoint(path, monitor="val_loss", mode="max", save_best_only=True)
    record = keras.callbacks.LambdaCallback(on_epoch_end=lambda e, logs: seen.append(model.get_weights()))
    history = model.fit(
        X, Y, batch_size=8, epochs=3, validation_data=(X, Y), callbacks=[best, record], verbose=0
    ).history
    loaded = keras.models.load_model(path)
    assert_all_equal(loaded.get_weights(), seen[int(np.argmax(history["val_loss"]))])
    np.testing.assert_allclose(loaded.evaluate(X, Y, verbose=0)[0], max(history["val_loss"]), rtol=1e-5)


@pytest.fixture(scope="module")
def without_prl_keras(tmp_path_factory):
    """What a process that never imports prl_keras makes of two networks, and prints of a robust model."""
    folder = tmp_path_factory.mktemp("shipped")
    networks = {"model": trained("trim").network, "pair": trained("unbuilt_pair").network_b}
    np.savez(folder / "data.npz", x=X)
    trained("trim").save(folder / "robust.keras")
    for name, network in networks.items():
        network.save(folder / f"network_of_{name}.keras")
    printed = run(WITHOUT_PRL_KERAS, folder)
    shipped = {name: np.load(folder / f"predicted_by_{name}.npy") for name in networks}
    return [(shipped[name], network(X)) for name, network in networks.items()], printed


@pytest.mark.long
@pytest.mark.fault(21)
def test_the_network_ships_without_prl_keras(without_prl_keras):
    for shipped, here in without_prl_keras[0]:
        np.testing.assert_allclose(shipped, here, atol=1e-6)


@pytest.mark.parametrize("name", ["trim", "ramp"])
def test_the_network_exports(name, tmp_path):
    network = trained(name).network
    network.export(tmp_path / "exported", verbose=False)
    loaded = tf.saved_model.load(tmp_path / "exported")
    served = loaded.serve(tf.constant(X))
    np.testing.assert_allclose(served, network(X), atol=1e-6)


@pytest.mark.long
@pytest.mark.fault(21)
def test_without_the_import_the_class_and_its_module_are_named(without_prl_keras):
    _, printed = without_prl_keras
    assert printed.startswith("TypeError")
    for part in ("'RobustModel'", "all imported", "prl_keras"):
        assert part in printed


@pytest.mark.fault(21)
@pytest.mark.parametrize("share", [0, 0.5, 0.99])
def test_a_cut_file_is_a_value_error(share, tmp_path):
    path = tmp_path / "model.keras"
    trained("trim").save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match=r"model\.keras"):
        keras.models.load_model(path)


@pytest.mark.fault(21)
def test_loaded_without_compiling_it_predicts_the_same(tmp_path):
    model = trained("swap")
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", compile=False)
    assert not loaded.compiled
    np.testing.assert_allclose(loaded.predict(X, verbose=0), model.predict(X, verbose=0), atol=1e-6)
