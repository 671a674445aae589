"""Reads a folder of images: one subfolder per class, or the images and a CSV file of their labels."""

import pathlib
from typing import Any

import keras
import numpy as np
import pandas as pd
from tqdm import tqdm

from prl_keras.label_audit.examples import Examples, class_numbers, ends, listed

_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png")  # what keras.utils.image_dataset_from_directory takes
_LARGEST, _SMALLEST = 64, 8  # pixels of a side


def read_images(folder: pathlib.Path, label: str | None) -> Examples:
    """Reads the images of a folder.

    All get one size: the median of their longer sides, but at most 64 pixels; empty space is black. Files
    that cannot be read are left out and named.

    Args:
        folder: Holds a folder per class, as `keras.utils.image_dataset_from_directory` takes it, or images
            and a CSV file with the columns name and label.
        label: The name of the label column; None for "label", or the second column.

    Raises:
        ValueError: for a folder of another kind, no two classes, or fewer than 10 images that can be read.
    """
    files, labels, notes = find_labels(folder, label)
    pixels, is_readable = _pixels(files)
    bad = [path.relative_to(folder).as_posix() for path, good in zip(files, is_readable) if not good]
    if bad:
        notes.append(f"Files without a readable image ({len(bad):,}) are left out: {listed(bad)}.")
    files = [path for path, good in zip(files, is_readable) if good]
    labels = [text for text, good in zip(labels, is_readable) if good]
    if not files:
        raise ValueError(f"{folder} has no image that can be read: {listed(bad)}.")
    targets, names, rare = class_numbers(labels, f"{folder}")
    ids = [path.relative_to(folder).as_posix() for path in files]
    source = f"{folder.name}: {len(files):,} images in {len(names):,} classes"
    return Examples(pixels, targets, np.array(labels, object), names, ids, "file", source, notes + rare)


def is_image(path: pathlib.Path) -> bool:
    """Whether the file is an image, by its suffix."""
    return path.suffix.lower() in _SUFFIXES


def find_labels(folder: pathlib.Path, label: str | None) -> tuple[list[pathlib.Path], list[str], list[str]]:
    """-> `(files, labels, notes)`: the labelled images of a folder, unread, and what was left out.

    Arguments and errors are those of `read_images`.
    """
    files = sorted(path for path in folder.rglob("*") if is_image(path) and not _is_hidden(path, folder))
    if not files:
        raise ValueError(f"{folder} has no images ({', '.join(_SUFFIXES)}) in it or in folders in it.")
    notes: list[str] = []
    tables = sorted(folder.glob("*.csv"))
    if tables:
        files, labels = _of_table(folder, files, tables, label, notes)
    else:
        files, labels = _of_folders(folder, files, label, notes)
    return files, labels, notes


def _is_hidden(path, folder):
    return any(part.startswith((".", "__MACOSX")) for part in path.relative_to(folder).parts)


def _of_folders(folder, files, label, notes):
    """-> (files, labels), by the name of the folder in `folder` that each file is in."""
    if label is not None:
        raise ValueError(
            f"{folder} has no CSV file, so there is no column {label!r}: the labels are the names of the "
            "folders in it. Leave --label out."
        )
    loose = [path for path in files if path.parent == folder]
    if len(loose) == len(files):
        raise ValueError(
            f"{folder} has images but no labels. Put the images of each class into a folder of its own, or "
            "add a CSV file with the columns name and label."
        )
    if loose:
        names = [path.name for path in loose]
        notes.append(f"{len(loose):,} images are in no class's folder and are left out: {listed(names)}.")
    files = [path for path in files if path.parent != folder]
    return files, [path.relative_to(folder).parts[0] for path in files]


def _of_table(folder, files, tables, label, notes):
    """-> (files, labels), by the CSV file in `folder`."""
    if len(tables) > 1:
        raise ValueError(
            f"{folder} has several CSV files: {listed([path.name for path in tables])}. Keep one."
        )
    (table,) = tables
    try:
        rows = pd.read_csv(table, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except (UnicodeDecodeError, pd.errors.EmptyDataError, pd.errors.ParserError) as error:
        raise ValueError(f"{table} cannot be read as CSV, UTF-8: {str(error).strip()}.") from error
    if rows.shape[1] < 2:
        raise ValueError(f"{table} needs two columns, separated by a comma: name and label.")
    columns: list[Any] = list(rows)
    if label is None:
        label = "label" if "label" in columns else columns[1]
    if label not in columns:
        raise ValueError(f"{table} has no column {label!r}. It has {ends(columns)}.")
    known = {path.relative_to(folder).as_posix(): path for path in files}
    by_name = {path.name: path for path in files}
    matches = {
        name: sum(text.strip() in known or text.strip() in by_name for text in rows[name])
        for name in columns if name != label
    }  # fmt: skip
    of_files = max(matches, key=lambda name: matches[name])
    if not matches[of_files]:
        raise ValueError(
            f"{table} names no image of {folder}, in none of its columns {listed(list(matches))}."
        )
    found, labels, missing, unlabelled = {}, [], [], []
    for text, given in zip(rows[of_files].str.strip(), rows[label].str.strip()):
        path = known.get(text) or by_name.get(text)
        if path is None:
            missing.append(text)
        elif not given:
            unlabelled.append(text)
        elif path in found and found[path] != given:
            raise ValueError(f"{table} has two labels for {text}: {found[path]!r} and {given!r}. Keep one.")
        elif path not in found:
            found[path] = given
            labels.append(given)
    rest = [name for name, path in known.items() if path not in found and path.name not in unlabelled]
    for names, text in (
        (missing, "rows of the CSV file name a file that is not there"),
        (unlabelled, "files have no label and are left out"),
        (rest, "images are not in the CSV file and are left out"),
    ):
        if names:
            notes.append(f"{len(names):,} {text}: {listed(names)}.")
    if not found:
        raise ValueError(f"{table} has no label for an image of {folder}.")
    return list(found), labels


def _pixels(files):
    """-> (bytes `[readable, height, width, channels]`, whether each file can be read)."""
    sides, is_readable = [], []
    for path in tqdm(files, desc="Looking at the images", unit="image", disable=len(files) < 100):
        try:
            image = keras.utils.load_img(path)
        except (OSError, ValueError, SyntaxError):  # Pillow raises each of them for damaged files
            is_readable.append(False)
            continue
        is_readable.append(True)
        sides.append(max(image.size))
    if not sides:
        return np.zeros((0, _SMALLEST, _SMALLEST, 1), np.uint8), is_readable
    side = int(np.clip(np.median(sides), _SMALLEST, _LARGEST))
    pixels = np.zeros((sum(is_readable), side, side, 3), np.uint8)
    readable = [path for path, good in zip(files, is_readable) if good]
    for at, path in enumerate(
        tqdm(readable, desc="Reading the images", unit="image", disable=len(files) < 100)
    ):
        image = keras.utils.img_to_array(keras.utils.load_img(path))
        if image.shape[:2] != (side, side):
            image = keras.ops.image.resize(image, (side, side), pad_to_aspect_ratio=True)
        pixels[at] = np.clip(np.asarray(image), 0, 255).astype(np.uint8)
    if (pixels == pixels[..., :1]).all():
        pixels = np.ascontiguousarray(pixels[..., :1])
    return pixels, is_readable
