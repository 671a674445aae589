"""Data sets: what they hold."""

import dataclasses
import sys

import keras
import numpy as np
import pytest

from prl_keras.experiments.data.batches import batches, shuffled_batches
from prl_keras.experiments.data.load import DATASETS, Dataset, load
from prl_keras.experiments.runs.networks import make_network


@pytest.mark.parametrize("seed", [None, -1, 1.0, "0"])
def test_errors_of_seeds(seed):
    with pytest.raises(ValueError, match=f"seed={seed!r} must be a whole number of at least 0"):
        load("teacher", seed)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"name='mnist' is unknown; use one of .*digits.*teacher"):
        load("mnist")


@pytest.mark.parametrize(
    "name", ["digits", "scipy_docs", "wine", "breast_cancer", "teacher"]
)  # the others: tfds_datasets_test, landmarks_test
def test_the_fields_are_what_they_are_said_to_be(name):
    data = load(name)
    assert data.name == name
    for x, y in ((data.train_x, data.train_y), (data.test_x, data.test_y)):
        assert len(x) == len(y) > 0
        assert x.dtype == "float32"
        assert np.isfinite(x).all()
        if data.task == "classification":
            assert (y.dtype, y.ndim) == ("int64", 1)
            assert set(y) == set(range(data.num_outputs))
        else:
            assert data.task == "regression"
            assert (y.dtype, y.shape[1:]) == ("float32", (data.num_outputs,))
    assert data.source and "\n" not in data.source
    with pytest.raises(dataclasses.FrozenInstanceError):
        data.train_y = None


def test_names_and_what_they_are_read_from():
    assert list(DATASETS) == [
        "digits", "scipy_docs", "wine", "breast_cancer", "teacher", "cifar10", "cifar100", "cifar10_features",
        "cifar100_features", "celeb_a",
    ]  # fmt: skip
    assert load("digits").source == "digits of scikit-learn"
    assert load("teacher", 3).source == "random network and inputs, seed 3"


def test_options_for_other_data_sets_do_no_harm(tmp_path):
    options = {"data_dir": tmp_path / "none", "download": True, "cache_dir": tmp_path / "none"}
    np.testing.assert_array_equal(load("teacher", **options).train_x, load("teacher").train_x)
    assert not list(tmp_path.iterdir())


class TestSubset:
    x, y = np.arange(30, dtype="float32")[:, None], np.arange(30)
    data = Dataset("numbers", "classification", x, y, x[:20] + 100, y[:20] + 100, 120, "made for a test")

    def test_smaller_ones_lie_within_larger_ones_and_rows_stay_together(self):
        small, large = self.data.subset(5, 4), self.data.subset(17, 9)
        assert small.train_x.shape == (5, 1) and large.test_y.shape == (9,)
        np.testing.assert_array_equal(small.train_y, large.train_y[:5])
        np.testing.assert_array_equal(small.test_x, large.test_x[:4])
        for part in (small, large):
            np.testing.assert_array_equal(part.train_x[:, 0], part.train_y)
            np.testing.assert_array_equal(part.test_x[:, 0], part.test_y)
            assert len(set(part.train_y)) == len(part.train_y)
        assert large.train_y.tolist() != sorted(large.train_y)
        assert (small.name, small.num_outputs, small.source) == ("numbers", 120, "made for a test")

    def test_none_is_all_in_the_order_given(self):
        same, trained_on = self.data.subset(), self.data.subset(test_size=3)
        assert same.train_x is self.data.train_x and same.test_y is self.data.test_y
        assert trained_on.train_x is self.data.train_x and len(trained_on.test_x) == 3

    def test_all_of_them_are_each_there_once(self):
        assert sorted(self.data.subset(train_size=30).train_y) == list(range(30))

    def test_errors(self):
        with pytest.raises(ValueError, match="train_size=31 is more than the 30 train examples of numbers"):
            self.data.subset(train_size=31)
        with pytest.raises(ValueError, match="test_size=21 is more than the 20 test examples of numbers"):
            self.data.subset(test_size=21)
        for bad in (0, -1, 2.0, True, "3"):
            with pytest.raises(ValueError, match=f"train_size={bad!r} must be a whole number of at least 1"):
                self.data.subset(train_size=bad)


def test_digits_shapes_range_balance_and_fixed_split():
    data, other = load("digits", seed=0), load("digits", seed=1)
    assert data.train_x.shape == (1437, 8, 8, 1)
    assert data.test_x.shape == (360, 8, 8, 1)
    assert (data.train_x.min(), data.train_x.max()) == (0, 1)
    # 174 to 183 images a class, a fifth of them, 34.9 to 36.7, in the test part.
    assert set(np.bincount(data.test_y)) <= {34, 35, 36, 37}
    assert 139 <= np.bincount(data.train_y).min() <= np.bincount(data.train_y).max() <= 147
    np.testing.assert_array_equal(data.train_x, other.train_x)
    np.testing.assert_array_equal(data.test_y, other.test_y)


def test_digits_without_scikit_learn_say_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match="digits come with scikit-learn"):
        load("digits")


def test_teacher_is_standardized_and_a_function_of_the_seed():
    data, same, other = load("teacher", 0), load("teacher", 0), load("teacher", 1)
    assert data.train_x.shape == (2000, 20)
    assert data.test_y.shape == (500, 4)
    np.testing.assert_allclose(data.train_y.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(data.train_y.std(axis=0), 1, atol=1e-6)
    assert np.abs(data.test_y.mean(axis=0)).max() > 1e-4  # by the train part, not by all
    np.testing.assert_array_equal(data.train_x, same.train_x)
    np.testing.assert_array_equal(data.test_y, same.test_y)
    assert (data.train_x != other.train_x).all()


@pytest.mark.daily("teacher-*")
@pytest.mark.parametrize(
    "name, network, loss, metric, batch_size, least",
    [
        ("digits", "small_cnn", keras.losses.SparseCategoricalCrossentropy(True), "accuracy", 128, 0.93),
        ("teacher", "mlp", "mse", "r2_score", 64, 0.8),
    ],
)
def test_is_learned_by_its_network(name, network, loss, metric, batch_size, least):
    data = load(name)
    network = make_network(network, data.train_x.shape[1:], data.num_outputs)
    network.compile(keras.optimizers.Adam(1e-3), loss, metrics=[metric])
    train, steps = shuffled_batches(data.train_x, data.train_y, batch_size, seed=0)
    network.fit(train, epochs=10, steps_per_epoch=steps, verbose=0, shuffle=False)
    assert network.evaluate(batches(data.test_x, data.test_y, 500), verbose=0)[1] > least
