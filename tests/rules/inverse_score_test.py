"""InverseScore: weights by the formula, and at its ends."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

import prl_keras as prl

SCORES = np.float32([0.001, 0.02, 0.5, 4, 1e30])


@pytest.mark.parametrize("jit_compile", [None, False, True])
def test_is_the_inverse_with_mean_one(jit_compile):
    rule = prl.InverseScore(0.01)
    function = rule if jit_compile is None else tf.function(rule, jit_compile=jit_compile)
    expected = 1 / np.maximum(SCORES.astype(float), 0.01)
    np.testing.assert_allclose(function(SCORES), expected * 5 / expected.sum(), rtol=1e-5)


def test_padding_and_non_finite_scores_weigh_0_and_change_no_other_weight():
    rule = prl.InverseScore()
    found = rule(np.float32([1, np.nan, 2, np.inf, 3]), [True, True, True, True, False]).numpy()
    np.testing.assert_allclose(found, [4 / 3, 0, 2 / 3, 0, 0], rtol=1e-6)


@pytest.mark.parametrize("scores", [[], [0], [np.inf], [1e19, 2e19], [1e-38, 0], [0, 0, 0]])
@pytest.mark.parametrize("is_ranked", [True, False])
def test_is_finite_at_its_ends(scores, is_ranked):
    found = prl.InverseScore()(np.float32(scores), np.full(len(scores), is_ranked)).numpy()
    assert np.isfinite(found).all() and found.shape == (len(scores),)
    counted = np.isfinite(scores).sum() * is_ranked
    assert found.sum() == pytest.approx(counted, rel=1e-5)


def test_comes_back_from_its_config_and_is_the_rows_option():
    rule = prl.InverseScore(np.float32(0.2))
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(rule))
    assert again == rule == prl.InverseScore(0.2) and again != prl.InverseScore()
    json.dumps(rule.get_config())
    assert prl.METHODS["geomed"].options == {"smallest": prl.InverseScore().smallest}


def test_a_model_with_it_is_saved_and_loaded(tmp_path):
    def network():
        return keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])

    model = prl.build("geomed", network, epsilon=0.1, loss="mse", optimizer="sgd", smallest=0.5)
    x, y = np.ones((4, 2), "float32"), np.arange(12, dtype="float32").reshape(4, 3)
    model.train_on_batch(x, y)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert (again.score, again.rule) == ("distance_to_median", prl.InverseScore(0.5))
    for one, other in zip(model.example_weights(x, y), again.example_weights(x, y), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("smallest", [0, -1, np.nan, np.inf, "a", True])
def test_bad_arguments(smallest):
    with pytest.raises(ValueError, match="must be a positive number, such as"):
        prl.InverseScore(smallest)
