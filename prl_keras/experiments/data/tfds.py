"""Reads data sets from an ordinary data directory of tensorflow-datasets (TFDS)."""

import json
import os
import pathlib
import re
import textwrap
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf


class Images(NamedTuple):
    """Arrays of an image classification data set.

    Attributes:
        train_x, test_x: uint8 `[n, height, width, channels]`, as stored.
        train_y, test_y: int64 `[n]`, class indices from 0.
        class_names: A string for each class.
        source: The data that were read, from `describe`.
    """

    train_x: np.ndarray
    train_y: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray
    class_names: tuple[str, ...]
    source: str


def read_images(name: str, data_dir: pathlib.Path | str | None = None, download: bool = False) -> Images:
    """The train and test split of a TFDS data set with features "image" and "label", as `Images`.

    Examples keep the order of the files, and pixels are not converted. Arguments and errors are those of
    `open_builder` and `read_split`.
    """
    builder = open_builder(name, data_dir, download)

    def image_and_label(example):
        return example["image"], tf.cast(example["label"], tf.int64)

    train_x, train_y = read_split(builder, "train", image_and_label)
    test_x, test_y = read_split(builder, "test", image_and_label)
    names = tuple(builder.info.features["label"].names)
    return Images(train_x, train_y, test_x, test_y, names, describe(builder))


def open_builder(name: str, data_dir: pathlib.Path | str | None = None, download: bool = False) -> Any:
    """The TFDS builder of a data set, for `read_split` and `describe`.

    Args:
        name: The name in TFDS.
        data_dir: Folder that holds `NAME/VERSION`; None for the default of TFDS.
        download: Whether to fetch missing data into that folder.

    Raises:
        ImportError: if tensorflow-datasets is not installed.
        OSError: if the download fails.
        ValueError: if the files that describe the data are damaged.
    """
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise ImportError(
            f"{name} comes with tensorflow-datasets: install it, or use 'digits' or 'teacher'."
        ) from error
    # TFDS raises bare Exceptions, and protobuf's and requests' errors here: no narrower class fits.
    try:
        builder = tfds.builder(name, data_dir=os.path.expanduser(data_dir) if data_dir else None)
    except Exception as error:
        raise ValueError(_damaged(name, data_dir or "the data directory of TFDS", error)) from error
    if download:
        try:
            builder.download_and_prepare()
        except Exception as error:
            raise OSError(
                f"{name} could not be downloaded into {builder.data_dir}: {_first_line(error)}. Try again, "
                "or give the TFDS data directory of a copy that you have: --data_dir=DIR."
            ) from error
    return builder


def read_split(
    builder: Any, split: str, transform: Callable[[dict[str, Any]], tuple[Any, ...]]
) -> list[np.ndarray]:
    """One split as arrays, in the order of its files.

    Args:
        builder: From `open_builder`.
        split: "train", "test" or "validation".
        transform: Maps the tensors of one example to a tuple of tensors; TensorFlow traces it.

    Returns:
        A list with an array `[n, ...]` for each tensor of the tuple.

    Raises:
        FileNotFoundError: if the data are missing.
        ValueError: if they are damaged.
    """
    import tensorflow_datasets as tfds

    # Reads one file after the other; by default TFDS interleaves sixteen.
    in_order = tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False)
    try:
        examples = builder.as_dataset(split=split, shuffle_files=False, read_config=in_order)
    except AssertionError as error:  # TFDS's sign of a missing folder
        raise FileNotFoundError(
            f"{builder.name} is not in {builder.data_dir}. Give the TFDS data directory of a copy that you "
            "have (the folder that holds "
            f"{builder.name}/{builder.version}): --data_dir=DIR. Or let TFDS fetch it: --download."
        ) from error
    except (ValueError, KeyError) as error:  # there is no such split
        raise ValueError(_damaged(builder.name, builder.data_dir, error)) from error
    examples = examples.map(transform, num_parallel_calls=tf.data.AUTOTUNE).batch(512)
    try:
        parts = list(examples.as_numpy_iterator())
    except tf.errors.OpError as error:
        raise ValueError(_damaged(builder.name, builder.data_dir, error)) from error
    if not parts:
        raise ValueError(_damaged(builder.name, builder.data_dir, f"{split!r} has no examples"))
    return [np.concatenate(arrays) for arrays in zip(*parts)]


def describe(builder: Any) -> str:
    """One line that identifies the data: name, version, and the description in their files.

    The description comes from `dataset_info.json` beside the data, not from TFDS's own registry, so that
    other data in the format of a known set are recognised.
    """
    path = builder.data_path / "dataset_info.json"
    text = json.loads(path.read_text()).get("description", "") if path.exists() else builder.info.description
    line = textwrap.shorten(text, 120, placeholder=" ...")
    return f"{builder.info.full_name}: {line}" if line else builder.info.full_name


def _damaged(name, folder, error):
    return (
        f"{name} in {folder} cannot be read; its files are damaged: {_first_line(error)}. Remove that folder "
        "and let TFDS fetch it again (--download), or give another copy: --data_dir=DIR."
    )


def _first_line(error):
    text = re.sub(r"\{\{.*?\}\}|\[Op:.*", "", str(error)).strip()  # removes the name of a TensorFlow op
    return (text or type(error).__name__).splitlines()[0].strip(" .")
