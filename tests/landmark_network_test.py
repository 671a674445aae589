"""The CNN of the landmark features, and the distortions that it is trained on."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from prl_keras.corruption import _LANDMARK_PAIRS
from prl_keras.experiments.landmark_network import COORDINATES, FeatureNetwork, distort, make_network


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


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize(
    ("zoom", "shift"), [(1.0, (0, 0)), (1.0, (0.1, -0.05)), (1.2, (0, 0.1)), (0.8, (0.05, 0))]
)
def test_landmarks_move_with_the_pixels(zoom, shift, mirror):
    """In image k a bright spot lies at landmark k; it is found where `distort` says."""
    height, width = 120, 100
    columns, rows = np.random.default_rng(0).integers([25, 30], [75, 90], (5, 2)).T
    images = np.zeros((5, height, width, 1), "uint8")
    for k, (row, column) in enumerate(zip(rows, columns)):
        images[k, row - 2 : row + 3, column - 2 : column + 3] = 200
    positions = ((np.stack([columns, rows], axis=1) + 0.5) / [width, height] - 0.5).reshape(1, 10)
    moved, landmarks_of = distort(
        tf.constant(images),
        tf.constant(np.tile(positions, (5, 1)), tf.float32),
        tf.fill([5], zoom),
        tf.constant([shift] * 5, tf.float32),
        tf.fill([5], mirror),
    )
    assert moved.dtype == landmarks_of.dtype == "float32" and moved.shape == images.shape
    names = [1, 0, 2, 4, 3] if mirror else range(5)  # which landmark a spot has become
    for k, name in enumerate(names):
        spot = moved[k, :, :, 0].numpy()
        found = (
            np.array([spot.sum(axis=0) @ np.arange(width), spot.sum(axis=1) @ np.arange(height)]) / spot.sum()
        )
        expected = (landmarks_of[k].numpy().reshape(5, 2)[name] + 0.5) * [width, height] - 0.5
        np.testing.assert_allclose(found, expected, atol=0.1)


def test_a_zoom_of_one_without_shift_changes_nothing():
    images = np.random.default_rng(0).integers(0, 256, (2, 9, 8, 1)).astype("float32")
    positions = np.random.default_rng(1).uniform(-0.5, 0.5, (2, 10)).astype("float32")
    same = distort(
        tf.constant(images), tf.constant(positions), tf.ones(2), tf.zeros((2, 2)), tf.zeros(2, bool)
    )
    np.testing.assert_allclose(same[0], images, atol=1e-3)
    np.testing.assert_allclose(same[1], positions, atol=1e-6)
