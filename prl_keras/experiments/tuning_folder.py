"""The folder of a search: what in it is the search's own, and how another one takes its place."""

import contextlib
import pathlib
import shutil

SETTINGS, BEST, MODEL, TRIALS, TABLE, PICTURE = (
    "search.json", "best.json", "model.keras", "trials.csv", "trials.md", "epsilon.png",
)  # fmt: skip
_OWN = (SETTINGS, BEST, MODEL, TRIALS, TABLE, PICTURE, "oracle.json", "tuner*.json", "trial_*")
# A kill at any time leaves what says how to go on: what moves goes back as it is, what has moved replaces.
_MOVING, _ASIDE, _FORGOTTEN = ".replacing", ".replaced", ".forgotten"


def set_aside(directory):
    """Moves a search's own files out of the way; what else is in the folder stays where it is."""
    directory = pathlib.Path(directory)
    (directory / _MOVING).mkdir(parents=True)
    for path in _own_files(directory):
        path.rename(directory / _MOVING / path.name)
    (directory / _MOVING).rename(directory / _ASIDE)


def put_back(directory):
    """Puts back what was set aside, if anything was, in the place of what came since."""
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
def kept_if_in_vain(directory):
    """If the block raises, `put_back`."""
    try:
        yield
    except BaseException:
        put_back(directory)
        raise


def forget(directory):
    """Removes what was set aside, from one moment to the next."""
    directory = pathlib.Path(directory)
    if (directory / _ASIDE).exists():
        (directory / _ASIDE).rename(directory / _FORGOTTEN)
        shutil.rmtree(directory / _FORGOTTEN, ignore_errors=True)


def remove_unfinished(directory):
    """Removes what processes that were killed had begun to write; no other process may be at work there."""
    for path in pathlib.Path(directory).rglob(".unfinished.*"):
        path.unlink()


def _own_files(directory):
    return [path for pattern in _OWN for path in directory.glob(pattern)]
