"""Atomic file writes, a lock on a folder, JSON files, and the cache folder."""

import contextlib
import fcntl
import json
import math
import os
import pathlib
import uuid
from collections.abc import Iterable, Iterator
from typing import Any


def cache_folder(given: str | os.PathLike[str] | None = None) -> pathlib.Path:
    """The folder for what can be made again: the given one, else `$XDG_CACHE_HOME/prl_keras`, else
    `~/.cache/prl_keras`. It may not exist yet.
    """
    if given is None:
        given = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "prl_keras"
    return pathlib.Path(given).expanduser()


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """Yields a temporary path beside `path`, and moves it there if the block ends without an error.

    The temporary name begins with ".unfinished." and is unique to this call, whatever other processes write.

    Raises:
        OSError: with the path, if it cannot be written: the disk is full, or the folder read-only.
    """
    path = pathlib.Path(path)
    # A prefix, because writers look at the suffix.
    temporary = path.with_name(f".unfinished.{uuid.uuid4().hex[:8]}.{path.name}")
    try:
        yield temporary
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # h5py raises either on a full disk
        raise OSError(
            f"{path} cannot be written: {error}. What was there before is whole. Make room, or take another "
            "folder."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(directory: str | os.PathLike[str]) -> Iterator[None]:
    """Holds an existing folder for this process alone while the block runs.

    The operating system locks the folder itself: the lock leaves no file, and ends with the process, even
    a killed one. On a file system without locks nothing is locked.

    Raises:
        FileExistsError: if another process holds it.
    """
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise FileExistsError(
                f"Another process is at work in {directory}. Wait until it has ended, or take another folder "
                "(--output_dir)."
            ) from error
        except OSError:
            pass  # a network file system without locks
        yield
    finally:
        os.close(descriptor)


def write_json(path: str | os.PathLike[str], value: Any, indent: int | None = 2) -> None:
    """Writes `value` as JSON, atomically; NaN and infinities become null."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(_finite(value), indent=indent, allow_nan=False) + "\n")


def read_json(
    path: str | os.PathLike[str],
    fields: Iterable[str] = (),
    remedy: str = "Start anew with --overwrite.",
) -> dict[str, Any]:
    """The fields of a JSON file.

    Args:
        path: The file.
        fields: The names of fields that it must have.
        remedy: The last sentence of the error.

    Raises:
        ValueError: with the path, if the file is not JSON, has no fields or lacks one of `fields`.
    """
    try:
        value = json.loads(pathlib.Path(path).read_text())
        if not isinstance(value, dict) or not value:
            raise ValueError("it holds no fields")
        lacks = [name for name in fields if name not in value]
        if lacks:
            raise ValueError(f"it lacks {', '.join(lacks)}")
        return value
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}. {remedy}") from error


def _finite(value):
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
