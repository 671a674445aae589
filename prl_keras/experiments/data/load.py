"""The data sets by name. To add one, write a file beside this one and a row in `DATASETS`."""

import pathlib
import types
from collections.abc import Callable
from typing import NamedTuple

from prl_keras.experiments.data.celeb_a import celeb_a
from prl_keras.experiments.data.cifar import cifar10, cifar100
from prl_keras.experiments.data.cifar_features import cifar10_features, cifar100_features
from prl_keras.experiments.data.dataset import Dataset
from prl_keras.experiments.data.scipy_docs import scipy_docs
from prl_keras.experiments.data.tables import breast_cancer, wine
from prl_keras.experiments.data.toy import digits, teacher
from prl_keras.validate import check_integer


class Source(NamedTuple):
    """A row of `DATASETS`.

    Attributes:
        read: Function that returns the `Dataset`. `load` passes its own keyword arguments.
        task: "classification" or "regression".
        short: The data set's name in the rows of the paper, such as "CF10"; "" if it has none.
        of: The data set of images whose features these are; "" for others.
    """

    read: Callable[..., Dataset]
    task: str
    short: str = ""
    of: str = ""


#: Name -> `Source`.
DATASETS = types.MappingProxyType(
    {
        "digits": Source(digits, "classification", "digits"),
        "scipy_docs": Source(scipy_docs, "classification", "docs"),
        "wine": Source(wine, "classification", "wine"),
        "breast_cancer": Source(breast_cancer, "classification", "cancer"),
        "teacher": Source(teacher, "regression", "teacher"),
        "cifar10": Source(cifar10, "classification", "CF10"),
        "cifar100": Source(cifar100, "classification", "CF100"),
        "cifar10_features": Source(cifar10_features, "classification", "CF10", of="cifar10"),
        "cifar100_features": Source(cifar100_features, "classification", "CF100", of="cifar100"),
        "celeb_a": Source(celeb_a, "regression"),
    }
)


def load(
    name: str,
    seed: int = 0,
    *,
    data_dir: pathlib.Path | str | None = None,
    download: bool = False,
    cache_dir: pathlib.Path | str | None = None,
) -> Dataset:
    """The `Dataset` with that name.

    Args:
        name: a key of `DATASETS`.
        seed: int >= 0; only made-up data (teacher) depend on it.
        data_dir: TFDS data directory of cifar10, cifar100 and celeb_a, the folder that holds `cifar10`
            and so on; None for the default of TFDS. The others need no files.
        download: whether TFDS may fetch missing data into it.
        cache_dir: folder for features of images (see `feature_cache.cache_path`).

    Raises:
        ValueError: for an unknown name, an invalid seed or damaged data files.
        FileNotFoundError: if data_dir lacks the data, without `download`.
        OSError: if the download fails.
        ImportError: if the package that holds the data is not installed.
    """
    if name not in DATASETS:
        raise ValueError(f"name={name!r} is unknown; use one of {tuple(DATASETS)}.")
    seed = check_integer("seed", seed, 0)
    return DATASETS[name].read(seed=seed, data_dir=data_dir, download=download, cache_dir=cache_dir)
