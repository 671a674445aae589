"""CIFAR-10 and CIFAR-100."""

import pathlib
from typing import Any

import numpy as np

from prl_keras.experiments.data import tfds
from prl_keras.experiments.data.dataset import Dataset


def cifar10(data_dir: pathlib.Path | str | None = None, download: bool = False, **_: Any) -> Dataset:
    """CIFAR-10: x in [0, 1] `[n, 32, 32, 3]`, 10 classes, 50,000 train and 10,000 test images.

    The images are neither augmented nor standardized. They keep the order of the TFDS files.
    """
    return _images("cifar10", data_dir, download)


def cifar100(data_dir: pathlib.Path | str | None = None, download: bool = False, **_: Any) -> Dataset:
    """CIFAR-100: like `cifar10`, with its 100 fine classes."""
    return _images("cifar100", data_dir, download)


def _images(name, data_dir, download):
    read = tfds.read_images(name, data_dir, download)
    # Divided without a float64 copy: CIFAR's train part is 614 MB as float32.
    train_x, test_x = (np.divide(x, np.float32(255), dtype=np.float32) for x in (read.train_x, read.test_x))
    arrays = train_x, read.train_y, test_x, read.test_y
    names = read.class_names
    return Dataset(name, "classification", *arrays, len(names), read.source, names)
