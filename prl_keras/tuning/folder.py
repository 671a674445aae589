"""The folder of a search: which files belong to the search, and how another search replaces them."""

import contextlib
import pathlib
import shutil
from collections.abc import Iterator

SETTINGS, BEST, MODEL, TRIALS, TABLE, PICTURE = (
    "search.json", "best.json", "model.keras", "trials.csv", "trials.md", "epsilon.png",
)  # fmt: skip
_OWN = (SETTINGS, BEST, MODEL, TRIALS, TABLE, PICTURE, "oracle.json", "tuner*.json", "trial_*")
# After a kill at any time the folder name tells what to do: .replacing holds files to move back; .replaced
# holds all the old files, which replace the newer ones; .forgotten is to be removed.
_MOVING, _ASIDE, _FORGOTTEN = ".replacing", ".replaced", ".forgotten"


def set_aside(directory: pathlib.Path | str) -> None:
    """Moves a search's own files out of the way; other files in the folder stay in place."""
    directory = pathlib.Path(directory)
    (directory / _MOVING).mkdir(parents=True)
    for path in _own_files(directory):
        path.rename(directory / _MOVING / path.name)
    (directory / _MOVING).rename(directory / _ASIDE)


def put_back(directory: pathlib.Path | str) -> None:
    """Restores the files that were set aside, if any, and removes the search that came since."""
    directory = pathlib.Path(directory)
    if (directory / _ASIDE).exists():
        for path in _own_files(directory):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        (directory / _ASIDE).rename(directory / _MOVING)
    if (directory / _MOVING).exists():
        for path in list((directory / _MOVING).iterdir()):
            path.rename(directory / path.name)
        (directory / _MOVING).rmdir()
    shutil.rmtree(directory / _FORGOTTEN, ignore_errors=True)


@contextlib.contextmanager
def kept_if_in_vain(directory: pathlib.Path | str) -> Iterator[None]:
    """Calls `put_back` if the block raises."""
    try:
        yield
    except BaseException:
        put_back(directory)
        raise


def forget(directory: pathlib.Path | str) -> None:
    """Removes the files that were set aside; one rename decides, so a kill leaves no half state."""
    directory = pathlib.Path(directory)
    if (directory / _ASIDE).exists():
        (directory / _ASIDE).rename(directory / _FORGOTTEN)
        shutil.rmtree(directory / _FORGOTTEN, ignore_errors=True)


def remove_unfinished(directory: pathlib.Path | str) -> None:
    """Removes files that killed processes began to write; no other process may be using the folder."""
    for path in pathlib.Path(directory).rglob(".unfinished.*"):
        path.unlink()


def _own_files(directory):
    return [path for pattern in _OWN for path in directory.glob(pattern)]
