"""Reads a CSV file: numbers, categories and texts as inputs, one column as labels."""

import csv
import difflib
import pathlib
from typing import Any

import numpy as np
import pandas as pd
from sklearn import compose, feature_extraction, impute, pipeline, preprocessing

from prl_keras.label_audit.examples import Examples, class_numbers, ends, listed

_MISSING = ("", "na", "n/a", "nan", "null", "none", "?", "-")
_MOST_CATEGORIES = 50
_MOST_CLASSES = 30  # of integers; with more the labels are numbers
_WORDS = 3  # on average, from which on a column is text
_MOST_WORDS = 1000  # of a text column that become inputs
_SHARE, _FEWEST = 0.95, 10  # of the filled cells that are numbers, if the others are taken for typos
_GROUPS = r"[+-]?\d{1,3}(?:,\d{3})+(?:\.\d*)?"  # a number with thousands separators
_LETTERS = 40  # of a cell that a note shows
_FAR = 10.0  # standard deviations; farther values are cut there


def read_table(path: pathlib.Path, label: str | None, task: str = "auto") -> Examples:
    """Reads a CSV file with a header.

    Columns of numbers are standardized, and a missing number becomes the median and a column that says so.
    Categories become a column each. Texts become the weights of their most frequent words (TF-IDF). Columns
    that number or name the rows are left out. A few cells that are no numbers in a column of numbers count as
    missing.

    Args:
        path: The file; separated by commas, semicolons, tabs or bars; UTF-8.
        label: The name of the label column.
        task: "classes", "numbers", or "auto": labels that are fractions, or more than 30 different
            integers, are numbers.

    Raises:
        ValueError: if it is no such file, or has no such column, nothing to learn from, or no two classes.
    """
    frame = _read(path)
    name = path.name
    if label is None:
        raise ValueError(f"Write --label=COLUMN, the column of {name} with the labels: {ends(list(frame))}.")
    if label not in frame:
        near = difflib.get_close_matches(label, list(frame), 1)
        hint = f" Did you mean --label={near[0]!r}?" if near else ""
        raise ValueError(f"{name} has no column {label!r}. It has {ends(list(frame))}.{hint}")
    is_empty = (frame == "").all(axis=1)
    has_label = ~frame[label].str.lower().isin({"", "nan", "null"})
    all_rows = list(frame.index)
    notes = []
    if is_empty.any():
        notes.append(f"{int(is_empty.sum()):,} empty rows are left out.")
    without = frame.index[~has_label & ~is_empty]
    if len(without):
        notes.append(f"{len(without):,} rows have no label and are left out: rows {listed(list(without))}.")
    frame = frame[has_label]
    if not len(frame):
        raise ValueError(f"{name} has no row with a label in the column {label!r}.")
    given = frame[label]
    cells = frame.drop(columns=label)
    scale = 0.0, 1.0
    names: list[str] = []
    if _are_numbers(given, task, label, notes):
        numbers = _without_separators(given).map(_number).to_numpy(float)
        scale = float(numbers.mean()), float(numbers.std())
        if not scale[1]:
            raise ValueError(f"The column {label!r} has one number everywhere, {given.iloc[0]}.")
        targets = ((numbers - scale[0]) / scale[1]).astype(np.float32)[:, None]
    else:
        targets, names, rare = class_numbers(list(given), f"The column {label!r} of {name}")
        notes += rare
    inputs, used = _inputs(cells, given if names else None, notes)
    if not used:
        raise ValueError(
            f"{name} has no column to learn from beside {label!r}: it needs numbers, categories or texts. "
            + " ".join(notes)
        )
    kind = f"{len(names):,} classes" if names else "labels that are numbers"
    source = f"{name}: {len(frame):,} labelled rows, {used:,} columns to learn from, {kind}"
    rows = list(frame.index)
    return Examples(
        inputs, targets, given.to_numpy(), names, rows, "row", source, notes, cells, scale, all_rows
    )


def _read(path):
    """All cells as text, indexed by the row as a spreadsheet numbers it: the header is row 1.

    Blank lines are counted but have no row here, as in `pandas.read_csv`.
    """

    def cells(**more):
        frame = pd.read_csv(
            path, sep=separator, dtype=str, keep_default_na=False, encoding="utf-8-sig",
            skipinitialspace=True, low_memory=False, **more,
        )  # fmt: skip
        return frame.fillna("").apply(lambda column: column.str.strip())

    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            start = file.read(1 << 16)
        if "\0" in start:
            raise ValueError(f"{path} is no CSV file. Save the table as CSV.")
        try:
            separator = csv.Sniffer().sniff(start.split("\n")[0], ",;\t|").delimiter
        except csv.Error:
            separator = ","
        frame = cells(skip_blank_lines=False)
        is_blank = _is_blank(frame, cells)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no UTF-8 text: {error}. Save the table as CSV, UTF-8.") from error
    except pd.errors.EmptyDataError as error:
        raise ValueError(f"{path} is empty.") from error
    except pd.errors.ParserError as error:
        raise ValueError(f"{path} cannot be read as CSV: {str(error).strip()}.") from error
    if not isinstance(frame.index, pd.RangeIndex):
        raise ValueError(
            f"{path} has rows with more cells than its header. Name every column in the first row."
        )
    frame.columns = [str(name).strip() for name in frame.columns]
    return frame.set_axis(range(2, 2 + len(frame)))[~is_blank.to_numpy()]


def _is_blank(frame, cells):
    """Whether each row of the frame is a blank line, not a row of empty cells, which looks the same there.

    Of several side by side the last ones are taken for the blank lines.
    """
    is_empty = (frame == "").all(axis=1)
    if not is_empty.any():
        return is_empty
    is_empty_cells = (cells() == "").all(axis=1)  # the same rows, but no blank lines
    after = (~is_empty_cells).cumsum()[is_empty_cells]  # how many full rows are before each
    number = (~is_empty).cumsum().map(after.value_counts()).fillna(0)
    return is_empty & (is_empty.groupby((~is_empty).cumsum()).cumsum() > number)


def _number(text: str) -> float:
    """The number that a cell holds, with a decimal point or comma; NaN if it is missing or infinite."""
    if text.lower() in _MISSING:
        return np.nan
    value = float(text.replace(",", ".") if text.count(",") == 1 and "." not in text else text)
    return value if np.isfinite(value) else np.nan


def _is_number(text):
    try:
        _number(text)
    except ValueError:
        return False
    return True


def _without_separators(cells):
    """The cells without thousands separators.

    "1,234,567" and "1,234.5" show that the commas of a column are some. In a column without such a cell
    "1,234" has a decimal comma.
    """
    is_grouped = cells.str.fullmatch(_GROUPS)
    shows_it = is_grouped & ((cells.str.count(",") > 1) | cells.str.contains(".", regex=False))
    return cells.mask(is_grouped, cells.str.replace(",", "")) if shows_it.any() else cells


def _are_numbers(given, task, label, notes):
    """Whether the labels are numbers, not classes."""
    if task == "classes":
        return False
    cells = _without_separators(given)
    bad = [row for row, text in cells.items() if not _is_number(text) or np.isnan(_number(text))]
    if task == "numbers":
        if bad:
            raise ValueError(
                f"The column {label!r} has a label that is no number: {given[bad[0]]!r} in row {bad[0]}."
            )
        return True
    if bad:
        return False
    numbers = cells.map(_number)
    if (numbers % 1 == 0).all() and given.nunique() <= _MOST_CLASSES:
        return False
    notes.append(
        f"The column {label!r} has {given.nunique():,} different numbers, so its labels are taken as "
        "numbers. Write --task=classes if they are classes."
    )
    return True


def _inputs(cells: Any, classes: Any, notes: list[str]) -> tuple[np.ndarray, int]:
    """-> (float32 `[n, inputs]`, from how many columns); says in `notes` which columns are left out.

    `classes` are the labels if they are classes, else None. A column that says the same is left out.
    """
    numbers, categories, texts, left_out, typos = [], [], [], [], []
    frame = pd.DataFrame(index=cells.index)
    for at, name in enumerate(cells.columns):
        column = cells.iloc[:, at]
        is_missing = column.str.lower().isin(_MISSING)
        filled = column[~is_missing]
        key = f"column_{at}"
        if filled.nunique() == 0 or (filled.nunique() == 1 and not is_missing.any()):
            left_out.append(f"{name} (one value)")
        elif classes is not None and _say_the_same(column, classes):
            left_out.append(f"{name} (says the same as the label)")
        elif (values := _numbers(column, filled)) is not None:
            if _number_the_rows(values):
                left_out.append(f"{name} (numbers the rows)")
                continue
            frame[key] = values
            numbers.append(key)
            typos += _on_typos(name, filled)
        elif filled.str.split().str.len().mean() >= _WORDS and filled.nunique() > 2:
            frame[key] = column
            texts.append(key)
        elif filled.nunique() <= min(_MOST_CATEGORIES, max(2, len(filled) // 2)):
            frame[key] = column.where(~is_missing, "(missing)")
            categories.append(key)
        else:
            example = _cut(filled.iloc[0])
            left_out.append(f"{name} ({filled.nunique():,} different values, such as {example!r})")
    notes += typos
    if left_out:
        notes.append(f"Columns that are left out: {listed(left_out)}.")
    used = len(numbers) + len(categories) + len(texts)
    if not used:
        return np.zeros((len(cells), 0), np.float32), 0
    of_numbers = pipeline.make_pipeline(
        impute.SimpleImputer(strategy="median", add_indicator=True), preprocessing.StandardScaler()
    )
    parts = [
        ("numbers", of_numbers, numbers),
        ("categories", preprocessing.OneHotEncoder(sparse_output=False), categories),
        *((key, feature_extraction.text.TfidfVectorizer(max_features=_MOST_WORDS, sublinear_tf=True), key)
          for key in texts),
    ]  # fmt: skip
    transform = compose.ColumnTransformer(parts, sparse_threshold=0)
    try:
        found = transform.fit_transform(frame)
    except ValueError as error:
        if "empty vocabulary" not in str(error):
            raise
        raise ValueError("A text column has no words of two letters or more; leave it out.") from error
    return np.clip(found, -_FAR, _FAR).astype(np.float32), used


def _numbers(column, filled):
    """The numbers of a column, NaN if a cell is missing or no number; None if it is no column of numbers.

    `filled` are the cells that are not missing.
    """
    cells = _without_separators(filled)
    is_number = cells.map(_is_number)
    if not is_number.all() and (is_number.sum() < _FEWEST or is_number.mean() < _SHARE):
        return None
    return cells[is_number].map(_number).reindex(column.index)


def _number_the_rows(values):
    """Whether the numbers go up or down by one in each row; a few may be missing."""
    places = np.arange(len(values))
    is_regular = (values - places).nunique() == 1 or (values + places).nunique() == 1
    return len(values) > 2 and values.notna().mean() >= _SHARE and is_regular


def _on_typos(name, filled):
    """A sentence on the cells of a column of numbers that are none, in a list; empty if all are numbers."""
    bad = filled[~_without_separators(filled).map(_is_number)]
    if bad.empty:
        return []
    first = f"{_cut(bad.iloc[0])!r} in row {bad.index[0]}"
    if len(bad) == 1:
        return [f"{name}: 1 cell is no number and counts as missing: {first}."]
    return [f"{name}: {len(bad):,} cells are no numbers and count as missing: the first is {first}."]


def _cut(text):
    return text if len(text) <= _LETTERS else text[: _LETTERS - 3] + "..."


def _say_the_same(column, classes):
    """Whether each value of the column goes with one class, and each class with one value."""
    pairs = len(set(zip(column, classes)))
    return pairs == column.nunique() == classes.nunique()
