"""The program `python -m prl_keras.audit`."""

import argparse
import importlib
import os
import pathlib
import shutil
import sys
from collections.abc import Sequence

from prl_keras import files

# The extra "audit": module -> its name for pip.
_PACKAGES = {"matplotlib": "matplotlib", "pandas": "pandas", "sklearn": "scikit-learn", "tqdm": "tqdm"}
_REPORT, _LABELS, _TRAINING = "report.html", "labels.csv", ".training"
_ARRAYS, _SHEETS = (".npy", ".npz"), (".ods", ".parquet", ".xls", ".xlsx")  # which it does not read
_DESCRIPTION = """\
Which labels of your data are wrong? Trains two small networks that drop what they suspect, and writes a
report (report.html) and a list of all labels with the suggested ones (labels.csv)."""
_EPILOG = """\
examples:
  python -m prl_keras.audit flowers.csv --label=species
  python -m prl_keras.audit photos        (a folder with one folder of images per class, or with images and a
                                           CSV file with the columns name and label)

If it is stopped, the same command goes on where it was."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the program and returns its exit status; an error is one line on stderr.

    `arguments` are the command line without the program's name; None for that of this process.
    """
    options = parser().parse_args(arguments)
    try:
        _audit(options)
    except KeyboardInterrupt:
        print("\nStopped. The same command goes on where it was.", file=sys.stderr)
        return 130
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def parser() -> argparse.ArgumentParser:
    """The flags."""
    flags = argparse.ArgumentParser(
        "python -m prl_keras.audit", None, _DESCRIPTION, _EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
    )  # fmt: skip
    flags.add_argument("data", type=pathlib.Path, help="a CSV file with a header, or a folder of images")
    flags.add_argument(
        "--label",
        metavar="COLUMN",
        help="the column with the labels; a CSV file needs it (default for the CSV file in a folder of "
        "images: label, or the second column)",
    )
    flags.add_argument(
        "--output_dir",
        type=pathlib.Path,
        help="folder of the results (default: NAME_audit beside NAME.csv or the folder NAME)",
    )
    flags.add_argument("--overwrite", action="store_true", help="replace the results that are there")
    flags.add_argument(
        "--task",
        choices=("auto", "classes", "numbers"),
        default="auto",
        help="what the labels of a CSV file are (default: auto, numbers if there are fractions or more than "
        "30 different integers, else classes)",
    )
    flags.add_argument(
        "--epochs",
        type=_epochs,
        help="passes over the data (default: 20 to 100, the fewer examples the more). Give fewer for a first "
        "look at large data, more if many suggestions are plainly wrong",
    )
    flags.add_argument(
        "--epsilon",
        type=_epsilon,
        default="auto",
        help="share of wrong labels, in (0, 0.5] (default: auto, which estimates it)",
    )
    flags.add_argument(
        "--seed",
        type=_seed,
        default=0,
        help="of the weights and the order of the examples (default: 0)",
    )
    return flags


def _epochs(text):
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number, 1 or more.")
    return int(text)


def _seed(text):
    if not text.isdecimal() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number, 0 to {2**32 - 1}.")
    return int(text)


def _epsilon(text):
    try:
        value = text if text == "auto" else float(text)
        if value == "auto" or 0 < value <= 0.5:
            return value
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} must be auto, or a number in (0, 0.5], such as 0.1.")


def _audit(options):
    missing = [name for module, name in _PACKAGES.items() if not _can_import(module)]
    if missing:
        raise ImportError(f"The audit needs {', '.join(missing)}: pip install {' '.join(missing)}")
    if not options.data.exists():
        raise FileNotFoundError(f"{options.data} does not exist. Give a CSV file or a folder of images.")
    from prl_keras.label_audit import images, tables

    if options.data.is_file() and images.is_image(options.data):
        raise ValueError(f"{options.data} is an image; give the folder that it lies in.")
    _check_kind(options.data)
    data = options.data.resolve()
    name = data.name if data.is_dir() else data.stem
    output = options.output_dir or options.data.parent / f"{name}_audit"
    if options.data.is_dir() and output.resolve().is_relative_to(data):
        raise ValueError(f"--output_dir={output} is in the folder of the images. Take another folder.")
    if data.is_dir():
        if options.task == "numbers":
            raise ValueError("--task=numbers is for a CSV file; a folder of images has classes.")
        images.find_labels(data, options.label)  # wrong flags are named first, but the images not read for it
        _check(output, options.overwrite)
        examples = images.read_images(data, options.label)
    else:
        examples = tables.read_table(data, options.label, options.task)
        _check(output, options.overwrite)
    print(examples.source)
    for note in examples.notes:
        print(f"note: {note}")
    _make(output)
    with files.locked(output):
        _check(output, options.overwrite)  # it may have changed
        _train_and_write(options, examples, output)


def _check_kind(data):
    suffix = data.suffix.lower()
    if not data.is_file() or suffix not in _ARRAYS + _SHEETS:
        return
    instead = "Save the table as CSV, UTF-8."
    if suffix in _ARRAYS:
        instead = "Audit arrays in Python, with prl.audit."
    raise ValueError(f"{data} cannot be read: give a CSV file or a folder of images. {instead}")


def _check(output, overwrite):
    if not overwrite and all((output / name).exists() for name in (_REPORT, _LABELS)):
        raise FileExistsError(
            f"{output} holds a finished audit. Write --overwrite to replace it, or take another --output_dir."
        )


def _can_import(name):
    try:
        importlib.import_module(name)
    except ImportError:
        return False
    return True


def _make(output):
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"The folder {output} cannot be made: {error}. Take another --output_dir.") from error
    if not os.access(output, os.W_OK):
        raise OSError(f"The folder {output} cannot be written to. Take another --output_dir.")


def _train_and_write(options, examples, output):
    from prl_keras.label_audit import results, training

    epochs = options.epochs or training.epochs_for(examples)
    folder = output / _TRAINING
    model, record = training.train(examples, folder, epochs, options.epsilon, options.seed)
    told = None if options.epsilon == "auto" else options.epsilon
    found = results.look(model, record, examples, told)
    results.write_labels(output / _LABELS, found, examples)
    results.write_report(output / _REPORT, found, examples, epochs, told)
    shutil.rmtree(folder, ignore_errors=True)
    print(results.in_words(found, examples))
    for doubt in results.doubts(found, examples):
        print(f"note: {doubt}")
    print(f"Report: {output / _REPORT}\nAll labels: {output / _LABELS}")
