"""The landmark features of celeb_a: split, scale, cache."""

import concurrent.futures
import csv
import dataclasses
import pathlib
import time

import keras
import numpy as np
import pytest
import tensorflow as tf
from project import SHARED
from tfds_copy import tiny_celeb_a

from prl_keras.experiments.data import celeb_a, feature_cache, tfds
from prl_keras.experiments.data.batches import batches, shuffled_batches
from prl_keras.experiments.data.celeb_a_features import COORDINATES, FeatureNetwork
from prl_keras.experiments.data.load import load
from prl_keras.experiments.runs.config import RunConfig
from prl_keras.experiments.runs.networks import make_network
from prl_keras.experiments.runs.run import run

SMALL = FeatureNetwork(height=16, width=14, filters=(2, 2, 2), epochs=2, batch_size=16)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faces")
    tiny_celeb_a(folder, description="Faces made for a test")
    return folder


@pytest.fixture
def small(monkeypatch):
    """`load("celeb_a")` with the small network."""
    monkeypatch.setattr(celeb_a, "FeatureNetwork", lambda: SMALL)


@pytest.fixture
def trained(monkeypatch):
    """Puts random numbers in the place of the features, and counts how often they are asked for."""
    calls = []

    def extract(builder, network, verbose):
        calls.append(network)
        time.sleep(0.2)
        rng = np.random.default_rng(network.seed)
        return rng.normal(size=(20, 512)).astype("float32"), rng.normal(size=(20, 10)).astype("float32")

    monkeypatch.setattr(celeb_a, "extract_features", extract)
    return calls


def path_of(builder, network, cache_dir=None):
    return feature_cache.cache_path(builder, celeb_a._depends_on(network), cache_dir)


def features(data_dir, cache_dir, network=SMALL):
    return celeb_a.celeb_a(data_dir, cache_dir=cache_dir, network=network, verbose=0)


def assert_equal(one, other):
    for name in ("train_x", "train_y", "test_x", "test_y", "source"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


# --- The data -----------------------------------------------------------------------------------


def test_is_a_data_set_of_standardized_targets(data_dir, tmp_path, small):
    data = load("celeb_a", data_dir=data_dir, cache_dir=tmp_path)
    assert (data.name, data.task, data.num_outputs) == ("celeb_a", "regression", 10)
    assert data.train_x.shape == (16, 512) and data.test_x.shape == (4, 512)  # 80 : 20 of the test split
    assert data.train_y.shape == (16, 10) and data.test_y.shape == (4, 10)
    assert {a.dtype.name for a in (data.train_x, data.train_y, data.test_x, data.test_y)} == {"float32"}
    np.testing.assert_allclose(data.train_y.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(data.train_y.std(axis=0), 1, atol=1e-6)
    (path,) = tmp_path.glob("*.npz")
    assert data.source == f"celeb_a/2.1.0: Faces made for a test; {path.stem.removeprefix('celeb_a-')}"


def test_the_split_is_fixed_whatever_the_seed(data_dir, tmp_path):
    one = features(data_dir, tmp_path)
    other = features(data_dir, tmp_path, dataclasses.replace(SMALL, seed=1))
    np.testing.assert_array_equal(one.train_y, other.train_y)
    np.testing.assert_array_equal(one.test_y, other.test_y)
    assert (one.train_x != other.train_x).any()


def test_rows_of_features_and_targets_belong_to_the_same_image(data_dir, tmp_path):
    part = features(data_dir, tmp_path)
    with np.load(next(tmp_path.glob("*.npz"))) as saved:  # in the order of the test split
        rows, pixels = saved["features"], saved["landmarks"]
    builder = tfds.open_builder("celeb_a", data_dir)
    stored = [example["landmarks"] for example in builder.as_dataset(split="test").as_numpy_iterator()]
    np.testing.assert_array_equal(pixels, [[landmark[name] for name in COORDINATES] for landmark in stored])
    vectors = np.concatenate([part.train_x, part.test_x])
    index = [np.abs(rows - vector).max(axis=1).argmin() for vector in vectors]
    assert sorted(index) == list(range(20))
    mean, std = pixels[index[:16]].mean(axis=0), pixels[index[:16]].std(axis=0)
    targets = np.concatenate([part.train_y, part.test_y])
    np.testing.assert_allclose(targets, (pixels[index] - mean) / std, atol=1e-5)


# --- The cache ----------------------------------------------------------------------------------


def test_the_second_time_nothing_is_trained(data_dir, tmp_path, trained):
    first = features(data_dir, tmp_path / "new" / "folder")
    assert_equal(first, features(data_dir, tmp_path / "new" / "folder"))
    assert len(trained) == 1
    names = sorted(path.suffix for path in (tmp_path / "new" / "folder").iterdir())
    assert names == [".lock", ".npz"]


def test_whatever_the_features_depend_on_changes_the_file(data_dir, tmp_path, monkeypatch):
    def name(folder=data_dir, network=SMALL):
        return path_of(tfds.open_builder("celeb_a", folder), network, tmp_path).name

    other = {"filters": (3, 2, 2)}
    names = [name()]
    for field in dataclasses.fields(SMALL):
        value = other.get(field.name) or getattr(SMALL, field.name) + 1
        names.append(name(network=dataclasses.replace(SMALL, **{field.name: value})))
    for number, changes in enumerate(({"description": "Others"}, {"sizes": (24, 8, 21)}, {"seed": 1})):
        tiny_celeb_a(tmp_path / str(number), **{"description": "Faces made for a test", **changes})
        names.append(name(tmp_path / str(number)))
    monkeypatch.setattr(celeb_a, "_PIPELINE", -1)
    names.append(name())
    monkeypatch.setattr(keras, "__version__", "0")
    names.append(name())
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("size", [0, 100, 2000, -10])
def test_a_damaged_file_is_reported_and_made_anew(data_dir, tmp_path, trained, size):
    first = features(data_dir, tmp_path)
    (path,) = tmp_path.glob("*.npz")
    whole = path.read_bytes()
    path.write_bytes(whole[:size])
    with pytest.warns(UserWarning, match=rf"{path} is damaged and is made anew"):
        assert_equal(first, features(data_dir, tmp_path))
    assert len(trained) == 2
    assert_equal(first, features(data_dir, tmp_path))
    assert len(trained) == 2


def test_a_training_that_is_stopped_leaves_no_file(data_dir, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(celeb_a, "extract_features", stop)
    with pytest.raises(KeyboardInterrupt):
        features(data_dir, tmp_path)
    assert not list(tmp_path.glob("*.npz"))


def test_two_at_once_train_once(data_dir, tmp_path, trained):
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        one, other = pool.map(lambda _: features(data_dir, tmp_path), range(2))
    assert_equal(one, other)
    assert len(trained) == 1


def test_default_folder(data_dir, monkeypatch):
    builder = tfds.open_builder("celeb_a", data_dir)
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert path_of(builder, SMALL).parent == pathlib.Path("/caches/prl_keras")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert path_of(builder, SMALL).parent == pathlib.Path("/home/someone/.cache/prl_keras")


@pytest.mark.long
def test_a_run_is_the_same_whether_the_file_was_there_or_not(data_dir, tmp_path, small):
    config = RunConfig("celeb_a", "prl_l", "linadv", 0.25, epochs=2, batch_size=4)
    histories = []
    for number in range(2):
        options = {"data_dir": data_dir, "cache_dir": tmp_path / "cache"}
        run(config, tmp_path / str(number), data_options=options, verbose=0)
        with (tmp_path / str(number) / "history.csv").open() as file:
            histories.append([{**row, "seconds": None} for row in csv.DictReader(file)])
    assert histories[0] == histories[1]


def test_global_generators_are_left_alone(data_dir, tmp_path):
    drawn = []
    for _ in range(2):  # without and with the file
        keras.utils.set_random_seed(5)
        features(data_dir, tmp_path)
        drawn.append((np.random.rand(), float(tf.random.uniform(())), float(keras.random.uniform(()))))
    assert drawn[0] == drawn[1]


# --- The faces of ../shared ---------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.skipif(not (SHARED / "tfds_faces").exists(), reason="no copy of celeb_a in ../shared/tfds_faces")
def test_the_mlp_of_the_paper_learns_the_landmarks_from_the_features(tmp_path):
    data = load("celeb_a", data_dir=SHARED / "tfds_faces", cache_dir=tmp_path)
    assert data.train_x.shape == (2756, 512) and data.test_x.shape == (690, 512)
    assert "Stand-in" in data.source and "MTFL faces" in data.source
    mlp = make_network("mlp", (512,), 10)
    mlp.compile(keras.optimizers.Adam(0.0003), "mse", metrics=[keras.metrics.R2Score()])
    train, steps = shuffled_batches(data.train_x, data.train_y, 512, seed=0)
    mlp.fit(train, epochs=50, steps_per_epoch=steps, shuffle=False, verbose=0)
    assert mlp.evaluate(batches(data.test_x, data.test_y, 1024), verbose=0)[1] > 0.69
