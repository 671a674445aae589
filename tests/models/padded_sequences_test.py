"""Padded sequences of which 30% have wrong labels: what is found is wrong, and length decides nothing."""

import keras
import numpy as np
import pytest

import prl_keras as prl

N, STEPS, CLASSES, EPSILON = 1024, 20, 6, 0.3
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def data():
    """-> (inputs, labels, bool `[n]` which sequences are wrong, lengths); classes from 1, 0 is padding."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(2, STEPS + 1, N)
    mask = np.arange(STEPS) < lengths[:, None]
    true = rng.integers(1, CLASSES, (N, STEPS))
    x = (np.eye(CLASSES)[true] + 0.5 * rng.normal(size=(N, STEPS, CLASSES))).astype("float32")
    is_wrong = rng.random(N) < EPSILON
    others = (true + rng.integers(1, CLASSES - 1, true.shape) - 1) % (CLASSES - 1) + 1
    y = np.where(is_wrong[:, None], others, true)
    return np.where(mask[..., None], x, 0), np.where(mask, y, 0), is_wrong, lengths


def network(seed):
    keras.utils.set_random_seed(seed)
    layers = [
        keras.layers.Masking(),
        keras.layers.LSTM(16, return_sequences=True),
        keras.layers.Dense(CLASSES),
    ]
    return keras.Sequential([keras.Input((STEPS, CLASSES)), *layers])


@pytest.mark.long
@pytest.mark.parametrize("is_pair", [False, True])
@pytest.mark.parametrize("score", ["loss", "loss_layer_gradient"])
def test_97_of_100_that_are_found_are_wrong(score, is_pair):
    x, y, is_wrong, lengths = data()
    if is_pair:
        model = prl.CoTeachingModel(network(0), network(1), score=score, rule=prl.Trim(EPSILON))
    else:
        model = prl.RobustModel(network(0), score=score, rule=prl.Trim(EPSILON))
    model.compile(keras.optimizers.Adam(0.01), LOSS)
    model.fit(x, y, batch_size=64, epochs=8, verbose=0)
    scores = prl.score_examples(model, (x, y))
    found = np.argsort(-scores)[: int(EPSILON * N)]
    assert is_wrong[found].mean() >= 0.97
    assert abs(np.corrcoef(scores[~is_wrong], lengths[~is_wrong])[0, 1]) < 0.25
