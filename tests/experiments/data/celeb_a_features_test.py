"""The CNN of the landmark features."""

import keras
import numpy as np

from prl_keras.corruption import _LANDMARK_PAIRS
from prl_keras.experiments.data.celeb_a_features import COORDINATES, FeatureNetwork, make_network


def test_coordinates_are_in_the_order_that_pairflip_swaps():
    for left, right in _LANDMARK_PAIRS:
        assert COORDINATES[left].replace("left", "right") == COORDINATES[right] != COORDINATES[left]
    assert len(COORDINATES) == 10 and COORDINATES[4:6] == ("nose_x", "nose_y")


def test_network_shapes():
    cnn, dense = make_network(FeatureNetwork())
    assert cnn.input_shape == (None, 64, 54, 1)
    assert cnn.output_shape == (None, 10) and dense.output_shape == (None, 512)
    assert sum(isinstance(layer, keras.layers.Conv2D) for layer in cnn.layers) == 3


def test_initial_weights_are_a_function_of_the_seed():
    def weights(seed):
        return make_network(FeatureNetwork(filters=(2, 2, 2), seed=seed))[0].get_weights()

    for one, same, other in zip(weights(1), weights(1), weights(2), strict=True):
        np.testing.assert_array_equal(one, same)
        assert (one != other).any() or not one.any()  # biases are 0
