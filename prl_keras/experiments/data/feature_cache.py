"""Features that take minutes to compute, kept in a file for the next run."""

import contextlib
import hashlib
import json
import pathlib
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from prl_keras import files
from prl_keras.experiments.data import tfds


def cache_path(
    builder: Any, depends_on: Mapping[str, Any], cache_dir: pathlib.Path | str | None = None
) -> pathlib.Path:
    """The file for the features of a data set: one for each data, `depends_on` and versions.

    `depends_on` is what else the features depend on, in values that JSON can hold. The folder is that of
    `files.cache_folder`.
    """
    everything = {
        **depends_on,
        "source": tfds.describe(builder),
        "splits": {name: (info.num_examples, info.num_bytes) for name, info in builder.info.splits.items()},
        "versions": (keras.__version__, tf.__version__),
    }
    key = hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()[:16]
    return files.cache_folder(cache_dir) / f"{builder.name}-features-{key}.npz"


def cached(
    path: pathlib.Path, names: Sequence[str], compute: Callable[[], Sequence[np.ndarray]]
) -> list[np.ndarray]:
    """The named arrays of a file; if it is missing or damaged, those of `compute`, which are saved.

    A second process waits for the first one's file instead of computing the same. The folder of `path` is
    made if missing. `compute` returns the arrays in the order of `names`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _one_process_at_a_time(path):
        saved = _read(path, names)
        if saved is None:
            saved = list(compute())
            with files.replacing(path) as temporary:
                np.savez(temporary, **dict(zip(names, saved, strict=True)))
    return saved


def _read(path, names):
    if not path.exists():
        return None
    try:
        with np.load(path) as arrays:
            return [arrays[name] for name in names]
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
        warnings.warn(f"{path} is damaged and is made anew: {error}", stacklevel=4)
        return None


@contextlib.contextmanager
def _one_process_at_a_time(path: pathlib.Path) -> Iterator[None]:
    import fcntl

    with open(path.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # freed by the system if the process is killed
        yield
