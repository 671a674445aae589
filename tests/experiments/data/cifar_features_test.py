"""Features of CIFAR images: what the CNN learns from, what is kept, and on what protocol they are used."""

import dataclasses

import keras
import numpy as np
import pytest
from project import SHARED
from tfds_copy import tiny_cifar10

from prl_keras.experiments.data import cifar_features, tfds
from prl_keras.experiments.data.load import load

SMALL = cifar_features.FeatureNetwork(filters=(2, 2), units=6, components=3, batch_size=8, epochs=1)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    tiny_cifar10(folder, train=20, test=6)
    return folder


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(cifar_features, "FeatureNetwork", lambda: SMALL)


def test_is_a_data_set_of_a_fifth_of_the_training_images(data_dir, tmp_path, small):
    data = load("cifar10_features", data_dir=data_dir, cache_dir=tmp_path)
    assert (data.name, data.task, data.num_outputs) == ("cifar10_features", "classification", 10)
    assert data.train_x.shape == (4, 3) and data.test_x.shape == (6, 3)
    assert data.train_x.dtype == data.test_x.dtype == "float32"
    assert np.mean(data.train_x**2) == pytest.approx(1, rel=1e-5)
    (path,) = tmp_path.glob("cifar10-features-*.npz")
    assert data.source.endswith(path.stem.removeprefix("cifar10-"))


def test_the_cnn_learns_other_images_than_those_that_are_kept(data_dir, tmp_path, small, monkeypatch):
    seen = {}
    real = cifar_features.shuffled_batches

    def spy(x, y, *arguments):
        seen["x"], seen["y"] = x, y
        return real(x, y, *arguments)

    monkeypatch.setattr(cifar_features, "shuffled_batches", spy)
    data = load("cifar10_features", data_dir=data_dir, cache_dir=tmp_path)
    # Image i has all pixels i and label i modulo 10.
    learned = set(seen["x"][:, 0, 0, 0].tolist())
    kept = set(range(20)) - learned
    assert len(learned) == 16 and sorted(data.train_y) == sorted(i % 10 for i in kept)
    np.testing.assert_array_equal(seen["y"], seen["x"][:, 0, 0, 0] % 10)


def test_the_second_time_nothing_is_trained(data_dir, tmp_path, small, monkeypatch):
    first = load("cifar10_features", data_dir=data_dir, cache_dir=tmp_path)
    monkeypatch.setattr(cifar_features, "_compute", None)
    again = load("cifar10_features", data_dir=data_dir, cache_dir=tmp_path)
    for name in ("train_x", "train_y", "test_x", "test_y"):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))


def test_rows_and_labels_belong_to_the_same_image(data_dir, small):
    images = tfds.read_images("cifar10", data_dir)
    keras.utils.set_random_seed(3)
    _, train_y, _, test_y = cifar_features._compute(SMALL, images, verbose=0)
    drawn = np.random.rand()
    order = np.random.default_rng(0).permutation(20)
    np.testing.assert_array_equal(train_y, images.train_y[order[:4]])
    np.testing.assert_array_equal(test_y, images.test_y)
    keras.utils.set_random_seed(3)
    assert np.random.rand() == drawn  # the global generator is left alone


def test_principal_components_are_those_of_the_covariance_in_falling_order():
    rng = np.random.default_rng(0)
    mixed = rng.normal(size=(500, 3)) * [3, 2, 1] @ rng.normal(size=(3, 8))
    train, test = cifar_features.principal_components(mixed[:400], mixed[400:], 3)
    covariance = np.cov(train, rowvar=False, ddof=0)
    assert np.abs(covariance - np.diag(np.diag(covariance))).max() < 1e-3
    assert (np.diff(np.diag(covariance)) < 0).all() and np.mean(train**2) == pytest.approx(1, rel=1e-5)
    # Three components hold all of a signal of rank three: distances are kept up to the one scale.
    mean, std = mixed[:400].mean(axis=0), mixed[:400].std(axis=0) + 0.01
    standardized = (mixed - mean) / std
    ratio = np.linalg.norm(standardized[400:], axis=1) / np.linalg.norm(test, axis=1)
    assert ratio.std() < 1e-5 * ratio.mean()


def test_a_unit_that_is_always_0_stays_0():
    x = np.concatenate([np.random.default_rng(0).normal(size=(50, 2)), np.zeros((50, 1))], axis=1)
    train, _ = cifar_features.principal_components(x, x, 3)
    assert np.isfinite(train).all() and np.abs(train[:, 2]).max() < 1e-6


def test_the_networks_weights_depend_on_its_seed_alone():
    networks = [dataclasses.replace(SMALL, seed=seed) for seed in (0, 0, 1)]
    one, same, other = (
        cifar_features.make_network(network, (32, 32, 3), 10)[0].get_weights() for network in networks
    )
    np.testing.assert_equal(same, one)
    assert any((a != b).any() for a, b in zip(one, other, strict=True))


@pytest.mark.long
@pytest.mark.skipif(not (SHARED / "tfds").exists(), reason="no copy of cifar10 in ../shared/tfds")
def test_the_features_of_the_real_images_tell_the_classes_apart(tmp_path):
    data = load("cifar10_features", data_dir=SHARED / "tfds", cache_dir=tmp_path)
    assert data.train_x.shape == (10_000, 64) and data.test_x.shape == (10_000, 64)
    means = np.stack([data.train_x[data.train_y == label].mean(axis=0) for label in range(10)])
    distances = np.linalg.norm(data.test_x[:, None] - means, axis=-1)
    assert np.mean(distances.argmin(axis=1) == data.test_y) > 0.7
