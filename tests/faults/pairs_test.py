"""Pairs of networks that start alike, or of which one has batch normalization."""

import numpy as np
import pytest
from keras import layers
from small_classifier import LOSS, X, Y, network

import prl_keras as prl


@pytest.mark.fault(28)
def test_a_pair_with_the_same_initial_weights_is_warned_of():
    with pytest.warns(UserWarning, match="same initial weights"):
        prl.CoTeachingModel(network(seed=1), network(seed=1))


@pytest.mark.fault(28)
def test_a_pair_of_which_one_has_batch_norm_trains_both():
    pair = prl.CoTeachingModel(network(layers.BatchNormalization()), network(seed=1))
    pair.compile("adam", LOSS)
    before = pair.get_weights()
    pair.fit(X, Y, epochs=2, verbose=0)
    moved = [np.any(a != b) for a, b in zip(before, pair.get_weights(), strict=True)]
    assert all(moved) and all(np.isfinite(w).all() for w in pair.get_weights())
    assert len(pair.optimizer.variables) >= 2 * len(pair.trainable_variables)  # one optimizer for both
