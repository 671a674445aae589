"""Files of revision 070aada, before the library's modules moved, still load and go on as they did there.

data/saved_070aada has for each model its `.keras` file, its weights, and in expected.json what that revision
predicted, evaluated and, after one epoch more, had as weights.
"""

import functools
import json
import pathlib

import keras
import numpy as np
import pytest
from arrays import assert_all_equal
from processes import run

import prl_keras as prl

SAVED = pathlib.Path(__file__).parent / "data" / "saved_070aada"
EXPECTED = json.loads((SAVED / "expected.json").read_text())
DATA = np.load(SAVED / "data.npz")
X, Y = DATA["x"], DATA["y"]


def load(name):
    """Without a graph, which would take seconds to trace."""
    model = keras.saving.load_model(SAVED / f"{name}.keras")
    model.run_eagerly = True
    return model


@functools.cache
def loaded(name):
    """For tests that leave it as it is."""
    return load(name)


@pytest.mark.parametrize("name", EXPECTED)
def test_a_model_loads_and_predicts(name):
    model = loaded(name)
    np.testing.assert_allclose(
        model.predict(X, verbose=0), EXPECTED[name]["predictions"], rtol=1e-5, atol=1e-6
    )
    found = model.evaluate(X, Y, verbose=0, batch_size=24)
    assert found == pytest.approx(EXPECTED[name]["evaluate"], rel=1e-5)


@pytest.mark.daily("prl_l", "prl_g", "auto", "co_prl_l")
@pytest.mark.parametrize("name", [name for name in EXPECTED if name != "bootstrap"])
def test_a_model_trains_on(name):
    """The optimizer, dropout's seeds and a schedule's step go on: the same weights after one epoch more.

    But for bootstrap's plain Keras model: Keras saves no seeds.
    """
    model = load(name)
    model.fit(X, Y, batch_size=8, epochs=1, shuffle=False, verbose=0)
    for found, expected in zip(model.get_weights(), EXPECTED[name]["one_epoch_more"], strict=True):
        found = found[0] if found.shape == (5,) and not np.shape(expected) else found  # the state of epsilon
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", EXPECTED)
def test_a_file_of_weights_loads(name):
    model = loaded(name)
    expected = model.get_weights()
    for weight in model.weights:
        weight.assign(0 * weight.value)
    model.load_weights(SAVED / f"{name}.weights.h5")
    assert_all_equal(model.get_weights(), expected)


@pytest.mark.parametrize("name", [name for name in EXPECTED if "scores" in EXPECTED[name]])
def test_a_record_loads(name):
    record = prl.SelectionRecord((X, Y), SAVED / f"{name}.record.npz").load()
    np.testing.assert_allclose(record.scores, EXPECTED[name]["scores"], rtol=1e-6)
    assert record.dropped.astype(int).sum(axis=2).tolist() == EXPECTED[name]["dropped"]
    assert record.margins.shape == record.scores.shape and np.isnan(record.margins).all()
    assert len(prl.audit(loaded(name), (X, Y), record=record)) == len(X)


@pytest.mark.long
def test_a_model_loads_in_a_fresh_process():
    path = str(SAVED / "prl_l.keras")
    assert "RobustModel" in run(f"import keras, prl_keras; print(type(keras.saving.load_model({path!r})))")
