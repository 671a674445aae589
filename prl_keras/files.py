"""Files that are either there whole or not at all."""

import contextlib
import fcntl
import json
import math
import os
import pathlib
import uuid


@contextlib.contextmanager
def replacing(path):
    """Gives a temporary path beside `path`, and moves it there when the block ends without error.

    The temporary name begins with ".unfinished." and is this call's own, whatever other processes write.

    Raises:
        OSError: naming the path, if it cannot be written: the disk is full, or the folder read-only.
    """
    path = pathlib.Path(path)
    # In front: writers look at the ending.
    temporary = path.with_name(f".unfinished.{uuid.uuid4().hex[:8]}.{path.name}")
    try:
        yield temporary
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # h5py's of a full disk may be either
        raise OSError(
            f"{path} cannot be written: {error}. What was there before is whole. Make room, or take another "
            "folder."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(directory):
    """Holds a folder, which exists, for this process alone while the block runs.

    The lock is the operating system's, on the folder itself: it leaves no file, and ends with the process,
    killed or not. Where a file system has no locks there is none.

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


def write_json(path, value, indent=2):
    """Writes `value` as JSON, atomically; NaN and infinities become null."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(_finite(value), indent=indent, allow_nan=False) + "\n")


def read_json(path):
    """The fields of a JSON file.

    Raises:
        ValueError: naming the file, if it is not JSON.
    """
    try:
        value = json.loads(pathlib.Path(path).read_text())
        if not isinstance(value, dict) or not value:
            raise ValueError("it holds no fields")
        return value
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}. Start anew with --overwrite.") from error


def _finite(value):
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
