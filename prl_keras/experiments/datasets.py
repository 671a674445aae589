"""Data sets by name: what is trained on, and what is measured on."""

import dataclasses
import types

import numpy as np

from prl_keras.experiments import landmarks, tfds_datasets
from prl_keras.experiments.landmark_network import COORDINATES
from prl_keras.validate import check_integer


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Train and test arrays with clean targets.

    Attributes:
        name: the key of `DATASETS`.
        task: "classification" or "regression".
        train_x, test_x: float32 `[n, ...]`.
        train_y, test_y: int64 labels `[n]`, or float32 targets `[n, q]`.
        num_outputs: number of classes, or q.
        source: one line that says which data were really read.
        class_names: a string for each class, its number if left out; of targets none.
    """

    name: str
    task: str
    train_x: np.ndarray
    train_y: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray
    num_outputs: int
    source: str
    class_names: tuple[str, ...] = ()

    def __post_init__(self):
        if self.task == "classification" and not self.class_names:
            object.__setattr__(self, "class_names", tuple(map(str, range(self.num_outputs))))

    def subset(self, train_size=None, test_size=None):
        """A `Dataset` of fewer examples: the first of a permutation that is always the same.

        Hence a smaller subset of the train part lies within a larger one, and so for the test part.

        Args:
            train_size, test_size: integer >= 1; None for all examples, in the order they have.

        Raises:
            ValueError: a size that is not such an integer, or larger than the part.
        """
        parts = {}
        for part, size in (("train", train_size), ("test", test_size)):
            x, y = getattr(self, f"{part}_x"), getattr(self, f"{part}_y")
            if size is None:
                continue
            if check_integer(f"{part}_size", size, 1) > len(x):
                raise ValueError(
                    f"{part}_size={size} is more than the {len(x)} {part} examples of {self.name}: give at "
                    "most as many, or None for all."
                )
            rows = np.random.default_rng(0).permutation(len(x))[:size]
            parts |= {f"{part}_x": x[rows], f"{part}_y": y[rows]}
        return dataclasses.replace(self, **parts)


def load(name, seed=0, *, data_dir=None, download=False, cache_dir=None):
    """The `Dataset` of that name.

    Args:
        name: a key of `DATASETS`.
        seed: int >= 0; matters only where data are made up (teacher).
        data_dir: TFDS data directory of cifar10, cifar100 and celeb_a, the folder that holds `cifar10`
            and so on; None for the default of TFDS. The others need no files.
        download: whether TFDS may fetch the data into it if they are not there.
        cache_dir: folder for the features of celeb_a (see `landmarks.landmark_features`).

    Raises:
        ValueError: an unknown name, a seed that is not an integer >= 0, or damaged data files.
        FileNotFoundError: data that are not in data_dir, without `download`.
        OSError: a failed download.
        ImportError: a package that the data come with is missing.
    """
    if name not in DATASETS:
        raise ValueError(f"name={name!r} is unknown; use one of {tuple(DATASETS)}.")
    seed = check_integer("seed", seed, 0)
    return DATASETS[name](seed=seed, data_dir=data_dir, download=download, cache_dir=cache_dir)


def digits(**_):
    """8x8 handwritten digits of scikit-learn: x in [0, 1] `[n, 8, 8, 1]`, 10 classes.

    1,437 train and 360 test images, stratified by class; the split is fixed, whatever the seed.
    """
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise ImportError("digits come with scikit-learn: install it, or use 'teacher'.") from error
    images, labels = load_digits(return_X_y=True)
    images = (images.reshape(-1, 8, 8, 1) / 16).astype(np.float32)  # pixels are 0, ..., 16
    labels = labels.astype(np.int64)
    split = {"test_size": 360, "stratify": labels, "random_state": 0}
    train_x, test_x, train_y, test_y = train_test_split(images, labels, **split)
    source = "digits of scikit-learn"
    return Dataset("digits", "classification", train_x, train_y, test_x, test_y, 10, source)


def teacher(seed=0, **_):
    """Regression on a random network, 2,000 train and 500 test examples, p = 20, q = 4.

        x ~ N(0, I_p),  y = tanh(x A / sqrt(p)) B / sqrt(h) + 0.05 N(0, I_q),  h = 32,

    A `[p, h]` and B `[h, q]` standard normal. Then each coordinate of y is shifted and scaled so
    that its train part has mean 0 and standard deviation 1. All is drawn from `seed`.
    """
    rng = np.random.default_rng(seed)
    p, h, q, train, n = 20, 32, 4, 2000, 2500
    first, second = rng.standard_normal((p, h)), rng.standard_normal((h, q))
    x = rng.standard_normal((n, p))
    y = np.tanh(x @ first / np.sqrt(p)) @ second / np.sqrt(h)
    y += 0.05 * rng.standard_normal((n, q))
    y = (y - y[:train].mean(axis=0)) / y[:train].std(axis=0)
    x, y = x.astype(np.float32), y.astype(np.float32)
    source = f"random network and inputs, seed {seed}"
    return Dataset("teacher", "regression", x[:train], y[:train], x[train:], y[train:], q, source)


def cifar10(data_dir=None, download=False, **_):
    """CIFAR-10: x in [0, 1] `[n, 32, 32, 3]`, 10 classes, 50,000 train and 10,000 test images.

    No augmentation and no standardization, in the order of the TFDS files.
    """
    return _images("cifar10", data_dir, download)


def cifar100(data_dir=None, download=False, **_):
    """CIFAR-100: as `cifar10`, with its 100 fine classes."""
    return _images("cifar100", data_dir, download)


def celeb_a(data_dir=None, download=False, cache_dir=None, **_):
    """Ten face landmark coordinates from 512 CNN features of an image: see `landmarks`."""
    part = landmarks.landmark_features(data_dir, download, cache_dir)
    arrays = part.train_x, part.train_y, part.test_x, part.test_y
    return Dataset("celeb_a", "regression", *arrays, len(COORDINATES), part.source)


#: name -> loader, called with the keyword arguments of `load`, which is the way in that checks them.
DATASETS = types.MappingProxyType(
    {"digits": digits, "teacher": teacher, "cifar10": cifar10, "cifar100": cifar100, "celeb_a": celeb_a}
)


def _images(name, data_dir, download):
    read = tfds_datasets.read_images(name, data_dir, download)
    # Divided without a float64 copy: CIFAR's train part is 614 MB as float32.
    train_x, test_x = (np.divide(x, np.float32(255), dtype=np.float32) for x in (read.train_x, read.test_x))
    labels = read.train_y, read.test_y
    names = read.class_names
    return Dataset(
        name, "classification", train_x, labels[0], test_x, labels[1], len(names), read.source, names
    )
