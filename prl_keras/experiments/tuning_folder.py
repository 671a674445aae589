"""The folder of a search: what in it is the search's own, and how another one takes its place."""

import contextlib
import pathlib
import shutil

SETTINGS, BEST, MODEL, TRIALS, TABLE, PICTURE = (
    "search.json", "best.json", "model.keras", "trials.csv", "trials.md", "epsilon.png",
)  # fmt: skip
_OWN = (SETTINGS, BEST, MODEL, TRIALS, TABLE, PICTURE, "oracle.json", "tuner*.json", "trial_*")
_ASIDE = ".replaced"


def set_aside(directory):
    """Moves a search's own files out of the way; what else is in the folder stays where it is."""
    directory = pathlib.Path(directory)
    shutil.rmtree(directory / _ASIDE, ignore_errors=True)
    (directory / _ASIDE).mkdir(parents=True)
    for path in _own_files(directory):
        path.rename(directory / _ASIDE / path.name)


@contextlib.contextmanager
def kept_if_in_vain(directory):
    """If the block raises, puts back what was set aside, if anything was, in the place of what came since."""
    try:
        yield
    except BaseException:
        aside = pathlib.Path(directory) / _ASIDE
        if aside.exists():
            for path in _own_files(aside.parent):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            for path in list(aside.iterdir()):
                path.rename(aside.parent / path.name)
            aside.rmdir()
        raise


def forget(directory):
    """Removes what was set aside."""
    shutil.rmtree(pathlib.Path(directory) / _ASIDE, ignore_errors=True)


def remove_unfinished(directory):
    """Removes what processes that were killed had begun to write; no other process may be at work there."""
    for path in pathlib.Path(directory).rglob(".unfinished.*"):
        path.unlink()


def _own_files(directory):
    return [path for pattern in _OWN for path in directory.glob(pattern)]
