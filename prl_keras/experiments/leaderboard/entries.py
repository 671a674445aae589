"""What the leaderboard compares: entries, data sets, kinds of noise, and the runs of all these."""

import dataclasses
import types
from collections.abc import Iterable
from typing import Any, NamedTuple

from prl_keras.experiments.runs.config import RunConfig
from prl_keras.experiments.runs.threshold_examples import TRAININGS
from prl_keras.methods import AUTO, METHODS

#: Data set -> epochs: enough for plain training to memorize most wrong labels.
EPOCHS = types.MappingProxyType(
    {"digits": 40, "cifar10_features": 30, "scipy_docs": 30, "wine": 40, "breast_cancer": 40}
)
DATA = ("digits", "cifar10_features", "scipy_docs")  # what the leaderboard means over
#: The constants of `EstimatedEpsilon` were chosen on `DATA`; on these nothing was chosen. They are small.
UNSEEN = ("wine", "breast_cancer")
_TWO_CLASSES = ("breast_cancer",)  # half of the labels wrong says nothing of two classes
SEEDS = (0, 1, 2, 3, 4)
_WARM_UP = ("co_teaching_plus", "gmm")  # as their authors do
DEFAULT = "auto"  # `build("auto", ...)`
BASELINE = "standard"  # the entry that all others are compared with


class Noise(NamedTuple):
    """A kind of `prl_keras.corrupt` and the fraction of wrong labels."""

    kind: str
    epsilon: float

    @property
    def label(self) -> str:
        """Such as "symmetric 20", or "clean"."""
        return f"{self.kind} {100 * self.epsilon:.0f}" if self.epsilon else "clean"


NOISES = (
    Noise("symmetric", 0.2),
    Noise("symmetric", 0.5),
    Noise("pairflip", 0.45),
    Noise("instance", 0.2),
    Noise("instance", 0.4),
)
CLEAN = Noise("none", 0.0)


class Setting(NamedTuple):
    """A data set in `EPOCHS` and its noise."""

    dataset: str
    noise: Noise

    @property
    def label(self) -> str:
        """Such as "digits, symmetric 20"."""
        return f"{self.dataset}, {self.noise.label}"


@dataclasses.dataclass(frozen=True)
class Entry:
    """One line of the leaderboard.

    Attributes:
        name: Its name there, without a comma.
        method: A name in `METHODS`.
        told: What the method is told: "true" for the true epsilon, "auto" for `epsilon="auto"`, "nothing" if
            it needs none.
        warms_up: Whether it begins with plain training, for a fifth of the epochs.
        ema: Momentum of the average of the weights that is tested (`RunConfig.ema`); 0 for none.
        aum_cut: Whether what the area under the margin flags is left out (`RunConfig.aum_cut`).
    """

    name: str
    method: str
    told: str = "nothing"
    warms_up: bool = False
    ema: float = 0.0
    aum_cut: bool = False

    @property
    def trainings(self) -> int:
        """The trainings of a run: one, and those that find what to leave out."""
        return 1 + TRAININGS * self.aum_cut

    def config(self, setting: Setting, seed: int) -> RunConfig:
        """The `RunConfig` of this entry in a setting: the paper's MLP, batch size and learning rate.

        Small data have smaller batches.
        """
        kind, epsilon = setting.noise
        told: dict[str, Any] = {"true": None, "auto": "auto", "nothing": 0.0}
        epochs = EPOCHS[setting.dataset]
        return RunConfig(
            dataset=setting.dataset,
            method=self.method,
            corruption=kind,
            epsilon=epsilon,
            assumed_epsilon=told[self.told],
            # As in Han et al. 2018; EstimatedEpsilon does so by itself.
            ramp_epochs=epochs // 5 if self.told == "true" or self.warms_up else 0,
            epochs=epochs,
            batch_size=32 if setting.dataset in UNSEEN else 128,
            network="mlp",
            seed=seed,
            noise_seed=seed,
            ema=self.ema,
            aum_cut=self.aum_cut,
        )


def entries() -> dict[str, Entry]:
    """Name -> `Entry`: every method for classes, variants of plain training, and epsilon="auto"."""
    found = [
        Entry(row.name, row.name, "true" if row.drops_a_fraction else "nothing", row.name in _WARM_UP)
        for row in METHODS.values()
        if "classification" in row.tasks
    ]
    found += [Entry(f"standard EMA {momentum}", "standard", ema=momentum) for momentum in (0.99, 0.999)]
    found += [Entry("standard AUM", "standard", aum_cut=True)]
    found += [Entry(DEFAULT, AUTO, "auto"), Entry("co_prl_l auto", "co_prl_l", "auto")]
    return {entry.name: entry for entry in found}


def settings(datasets: Iterable[str] = DATA) -> list[Setting]:
    """Every data set with every kind of noise that its classes allow, then with clean labels."""
    return [
        Setting(dataset, noise)
        for dataset in datasets
        for noise in (*NOISES, CLEAN)
        if noise.epsilon < 0.5 or dataset not in _TWO_CLASSES
    ]


def configs(
    chosen: Iterable[Entry], within: Iterable[Setting], seeds: Iterable[int] = SEEDS
) -> dict[RunConfig, tuple[str, Setting]]:
    """The runs: `RunConfig` -> (the entry's name, its setting).

    On clean labels the true epsilon is 0, so that entries that are told it are plain training, which is run
    once.
    """
    return {
        entry.config(setting, seed): (entry.name, setting)
        for setting in within
        for entry in chosen
        if setting.noise.epsilon or entry.told != "true"
        for seed in seeds
    }
