"""Data sets of tensorflow-datasets: read as they lie there, or refused with a way out."""

import os
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from processes import python
from project import SHARED
from tfds_copy import tiny_celeb_a, tiny_cifar10

from prl_keras.experiments.data import tfds as reader
from prl_keras.experiments.data.load import load
from prl_keras.experiments.runs.config import RunConfig
from prl_keras.experiments.runs.run import run


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


# --- What is read -------------------------------------------------------------------------------


@pytest.mark.parametrize("files_per_split", [1, 3])
def test_order_pixels_and_labels_are_those_of_the_files(tmp_path, files_per_split):
    tiny_cifar10(tmp_path, train=20, files_per_split=files_per_split)
    data = load("cifar10", data_dir=tmp_path)
    pixels = np.arange(20, dtype="float32") / 255
    np.testing.assert_array_equal(data.train_x, np.broadcast_to(pixels[:, None, None, None], (20, 32, 32, 3)))
    np.testing.assert_array_equal(data.train_y, np.arange(20) % 10)
    np.testing.assert_array_equal(data.test_x[:, 0, 0, 0] * 255, np.arange(100, 105))
    assert (data.name, data.task, data.num_outputs) == ("cifar10", "classification", 10)
    assert (data.train_x.dtype, data.train_y.dtype) == ("float32", "int64")
    assert (data.test_x.dtype, data.test_y.dtype) == ("float32", "int64")


def test_source_is_the_description_beside_the_data_and_one_line(tmp_path):
    tiny_cifar10(tmp_path, description="Not the real one,\n\nbut " + "very " * 50 + "similar")
    source = load("cifar10", data_dir=tmp_path).source
    assert source.startswith("cifar10/3.0.2: Not the real one, but very")
    assert "\n" not in source and len(source) < 140
    tiny_celeb_a(tmp_path, description="")
    builder = reader.open_builder("celeb_a", tmp_path)
    assert reader.describe(builder) == "celeb_a/2.1.0"


def test_home_directory_is_understood(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    tiny_cifar10(tmp_path / "data")
    assert len(load("cifar10", data_dir="~/data").train_x) == 7


def test_download_leaves_a_copy_that_is_there_as_it_is(tmp_path):
    folder = tiny_cifar10(tmp_path)
    before = sorted((path.name, path.stat().st_mtime_ns) for path in folder.iterdir())
    assert len(load("cifar10", data_dir=tmp_path, download=True).train_x) == 7
    assert before == sorted((path.name, path.stat().st_mtime_ns) for path in folder.iterdir())


@pytest.mark.long
def test_cifar100_is_read_and_trained_on(tmp_path):
    with tfds.testing.mock_data(num_examples=150):
        data = load("cifar100", data_dir=tmp_path / "mocked")
        result = run(
            RunConfig("cifar100", "prl_l", "symmetric", 0.2, epochs=1, batch_size=50),
            tmp_path / "run",
            data_options={"data_dir": tmp_path / "mocked"},
            verbose=0,
        )
    assert data.train_x.shape == data.test_x.shape == (150, 32, 32, 3)
    assert 0 <= data.train_x.min() < 0.1 and 0.9 < data.train_x.max() <= 1
    assert data.num_outputs == 100 and data.train_y.max() >= 10
    assert data.source.startswith("cifar100/3.0.2")
    assert result["epochs"] == 1 and result["test_metric"] == "accuracy"


@pytest.mark.skipif(not (SHARED / "tfds/cifar10").exists(), reason="no copy of CIFAR-10 in ../shared/tfds")
@pytest.mark.long
def test_cifar10_of_50000_images_takes_little_memory():
    """In a process of its own, whose peak memory is that of reading alone."""
    script = (
        "import resource, sys, tensorflow, tensorflow_datasets\n"
        "from prl_keras.experiments.data.load import load\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024\n"
        "before = peak()\n"
        "data = load('cifar10', data_dir=sys.argv[1])\n"
        "assert data.train_x.shape == (50000, 32, 32, 3) and data.test_x.shape == (10000, 32, 32, 3)\n"
        "assert (data.train_x.min(), data.train_x.max()) == (0, 1)\n"
        "assert data.train_y.sum() == 225000 and data.test_y.sum() == 45000  # 5,000 and 1,000 a class\n"
        "print((peak() - before) / (data.train_x.nbytes + data.test_x.nbytes))\n"
    )
    assert float(python("-c", script, SHARED / "tfds").stdout) < 2


# --- What is refused ----------------------------------------------------------------------------


@pytest.mark.fault(25)
@pytest.mark.parametrize("name", ["cifar10", "cifar100", "celeb_a"])
def test_missing_data_name_both_ways_out(tmp_path, name):
    with pytest.raises(FileNotFoundError, match=rf"{name} is not in {tmp_path}.*--data_dir=DIR.*--download"):
        load(name, data_dir=tmp_path, cache_dir=tmp_path / "cache")


@pytest.mark.fault(25)
@pytest.mark.parametrize("damage", [truncate, os.remove, lambda path: path.write_bytes(b"")])
@pytest.mark.parametrize("file", ["cifar10-train.tfrecord-00000-of-00001", "dataset_info.json"])
def test_damaged_data_name_the_data_set_and_the_folder(tmp_path, damage, file):
    folder = tiny_cifar10(tmp_path, train=40)
    damage(folder / file)
    with pytest.raises(ValueError, match=rf"cifar10 in {tmp_path}.* damaged: .*--data_dir=DIR") as error:
        load("cifar10", data_dir=tmp_path)
    assert "{{" not in str(error.value) and "\n" not in str(error.value)


@pytest.mark.fault(25)
def test_a_file_cut_between_two_records_is_noticed(tmp_path):
    folder = tiny_cifar10(tmp_path, train=40, test=1)
    one, many = (folder / f"cifar10-{split}.tfrecord-00000-of-00001" for split in ("test", "train"))
    many.write_bytes(one.read_bytes())
    with pytest.raises(ValueError, match=r"damaged.*40 elements but contained only 1 element"):
        load("cifar10", data_dir=tmp_path)


def test_a_failed_download_is_an_oserror(tmp_path, monkeypatch):
    def fail(self):
        raise RuntimeError("no network\nlong story")

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", fail)
    with pytest.raises(OSError, match=r"cifar10 could not be downloaded into .*: no network\. Try again"):
        load("cifar10", data_dir=tmp_path, download=True)


def test_the_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(ImportError, match="cifar10 comes with tensorflow-datasets: install it"):
        load("cifar10")


@pytest.mark.long
def test_the_package_is_imported_only_when_needed():
    script = (
        "import sys\nfrom prl_keras.experiments.data.load import load\n"
        "from prl_keras.experiments.runs import run\n"
        "load('teacher')\nassert 'tensorflow_datasets' not in sys.modules"
    )
    python("-c", script)
