"""What the parts of a check are given: how large they are, where they write, and when they end."""

import dataclasses
import pathlib
import time
from collections.abc import Mapping
from typing import Any

from prl_keras import METHODS
from prl_keras.experiments.paper.tables import TABLES, Row
from prl_keras.experiments.runs.config import RunConfig
from prl_keras.methods import PAPER_METHODS

_TELLING_METHODS = ("standard", "prl_l", "co_prl_l", "spl", "co_teaching")
_TELLING_ROWS = ("CF10-pf-45", "CF10-sym-50", "CF10-sym-70")


@dataclasses.dataclass(frozen=True)
class Size:
    """How large the parts are.

    Attributes:
        name: "paper" or "rehearsal"; the scale of the runs, and the folder of their folders.
        network: The network whose steps are timed; a name in `NETWORKS`.
        batch_size: Of those steps.
        methods: The methods whose steps are timed, the most telling first.
        rounds, least_seconds: As in `measure.timed_rounds`.
        cells: The runs of the paper's table 2, the most telling first.
        most: The most items of the parts "oracle" and "kernels"; None for all.
    """

    name: str
    network: str
    batch_size: int
    methods: tuple[str, ...]
    rounds: int
    least_seconds: float
    cells: tuple[RunConfig, ...]
    most: int | None = None


@dataclasses.dataclass(frozen=True)
class Job:
    """A part's task.

    Attributes:
        size: The `Size`.
        output_dir: The check's folder.
        begun, until: When the check began, and when the part must have ended; `time.monotonic()`.
        attempt: Of this start of the check; unlike that of every other start.
        data_options: Arguments of `load`.
    """

    size: Size
    output_dir: pathlib.Path
    begun: float
    until: float
    attempt: str
    data_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def path(self, part: str) -> pathlib.Path:
        """The file with the items of a part."""
        return self.output_dir / "gpu_check" / f"{part}.json"

    @property
    def runs(self) -> pathlib.Path:
        """The folder of the runs, where `binaries.reproduce` looks for them."""
        return self.output_dir / self.size.name / "runs"

    def say(self, text: str) -> None:
        """Prints a line of progress, with the time since the beginning."""
        print(f"[{time.monotonic() - self.begun:5.0f} s] {text}", flush=True)


def paper_size() -> Size:
    """The size for a GPU: the 9-layer CNN, all methods, table 2 at the paper's scale."""
    suited = [name for name in PAPER_METHODS if "classification" in METHODS[name].tasks]
    timed = sorted(suited, key=lambda name: _rank(name, ("standard", "prl_l", "co_prl_l", "spl", "prl_g")))
    cells = sorted(TABLES[2].configs("paper"), key=_telling)
    return Size("paper", "cnn9", 128, tuple(timed), 5, 0.2, tuple(cells))


def rehearsal_size() -> Size:
    """A size that tries every part on a CPU: a small network, a few items, two short runs on digits."""
    cells = [
        RunConfig("digits", method, "symmetric", 0.4, epochs=20, ramp_epochs=4, network="mlp", train_size=500)
        for method in ("standard", "prl_l")
    ]
    return Size("rehearsal", "strided_cnn", 8, ("standard", "prl_l"), 3, 0.01, tuple(cells), most=2)


def label(config: RunConfig) -> str:
    """A run in a few words, such as "CF10-pf-45, PRL(L), seed 0"."""
    return f"{_row(config)}, {METHODS[config.method].title}, seed {config.seed}"


def _telling(config):
    is_other = config.method not in _TELLING_METHODS
    row, method = _rank(_row(config), _TELLING_ROWS), _rank(config.method, _TELLING_METHODS)
    return config.seed, is_other, row, config.dataset, method


def _row(config):
    return Row(config.dataset, config.corruption, config.epsilon).label


def _rank(value, order):
    return order.index(value) if value in order else len(order)
