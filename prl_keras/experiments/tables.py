"""The paper's tables as lists of runs, and its own numbers.

Figure 2 shows the runs of table 1 over the epochs, figure 3 those of table 2; table 5 repeats table 3.
"""

import dataclasses
import pathlib
import types

import pandas as pd

from prl_keras.experiments.config import RunConfig
from prl_keras.experiments.protocol import PROTOCOLS

_PAPER = pathlib.Path(__file__).parent / "paper"
_SHORT = {"cifar10": "CF10", "cifar100": "CF100", "symmetric": "sym", "pairflip": "pf"}


@dataclasses.dataclass(frozen=True)
class Row:
    """One setting: a data set with a corruption. `epsilon` is the fraction of wrong targets."""

    dataset: str
    corruption: str
    epsilon: float

    @property
    def label(self):
        """As in the paper: "linadv: 10", "CF10-pf-45"; "clean", "CF10-clean" without corruption."""
        percent, is_clean = f"{100 * self.epsilon:.0f}", self.corruption == "none"
        if self.dataset == "celeb_a":
            return "clean" if is_clean else f"{self.corruption}: {percent}"
        dataset, corruption = (_SHORT.get(name, name) for name in (self.dataset, self.corruption))
        return f"{dataset}-clean" if is_clean else f"{dataset}-{corruption}-{percent}"


@dataclasses.dataclass(frozen=True)
class Table:
    """One table of the paper.

    Attributes:
        number: In the paper.
        title: What it shows.
        rows, methods: Its rows, and its columns by their names in `METHODS`.
        epsilon_errors: What is added to epsilon when the method is told; more than one in table 3.
        paper_file: The paper's numbers, a file in the folder paper.
        clean_data: Data sets on which plain training on clean targets is added, to compare with.
        fixed: Fields of `RunConfig` in which the table differs from the data set's protocol.
    """

    number: int
    title: str
    rows: tuple[Row, ...]
    methods: tuple[str, ...]
    paper_file: str
    epsilon_errors: tuple[float, ...] = (0.0,)
    clean_data: tuple[str, ...] = ()
    fixed: types.MappingProxyType = dataclasses.field(default_factory=lambda: types.MappingProxyType({}))

    @property
    def clean_rows(self):
        """A `Row` without corruption for each of `clean_data`."""
        return tuple(Row(dataset, "none", 0.0) for dataset in self.clean_data)

    def paper(self):
        """The paper's numbers, a DataFrame."""
        return pd.read_csv(_PAPER / self.paper_file)

    def configs(self, scale, seeds=None):
        """The runs, a list of `RunConfig`: a pure function of the arguments, without repetitions.

        Args:
            scale: "paper" or "cpu".
            seeds: Integers; None for those of the protocol, 0, 1, .... A seed is that of the network,
                the batches and the corruption.
        """
        found = []
        for row in self.rows + self.clean_rows:
            protocol = PROTOCOLS[row.dataset, scale]
            methods = self.methods if row.epsilon else ("standard",)
            for seed in range(protocol.seeds) if seeds is None else seeds:
                for method in methods:
                    for error in self.epsilon_errors:
                        found.append(_config(row, method, error, seed, protocol, self.fixed))
        return list(dict.fromkeys(found))


def _config(row, method, error, seed, protocol, fixed):
    return RunConfig(
        **{
            "dataset": row.dataset,
            "method": method,
            "corruption": row.corruption,
            "epsilon": row.epsilon,
            "assumed_epsilon": round(row.epsilon + error, 6) if error else None,
            "ramp_epochs": protocol.ramp_epochs(row.corruption),
            "epochs": protocol.epochs,
            "batch_size": protocol.batch_size,
            "learning_rate": protocol.learning_rate,
            "network": protocol.network,
            "train_size": protocol.train_size,
            "test_size": protocol.test_size,
            "seed": seed,
            "noise_seed": seed,
            **fixed,
        }
    )


_FACES = tuple(
    Row("celeb_a", corruption, epsilon)
    for corruption in ("linadv", "signflip", "uninoise", "pairflip", "mixture")
    for epsilon in (0.1, 0.2, 0.3, 0.4)
)
_IMAGES = tuple(
    Row(dataset, corruption, epsilon)
    for dataset in ("cifar10", "cifar100")
    for corruption, epsilons in (("symmetric", (0.3, 0.5, 0.7)), ("pairflip", (0.25, 0.35, 0.45)))
    for epsilon in epsilons
)
_SENSITIVITY = tuple(
    Row(dataset, corruption, epsilon)
    for dataset in ("cifar10", "cifar100")
    for corruption, epsilon in (("pairflip", 0.45), ("symmetric", 0.5), ("symmetric", 0.7))
)
_REGRESSION = ("standard", "normclip", "huber", "min_sgd", "ignormclip", "prl_g", "prl_l", "co_prl_l")
_CLASSIFICATION = (
    "standard", "normclip", "bootstrap", "decouple", "min_sgd", "spl", "prl_l", "co_teaching", "co_prl_l",
)  # fmt: skip

#: Number -> `Table`.
TABLES = types.MappingProxyType(
    {
        table.number: table
        for table in (
            Table(
                1, "R2 on clean test landmarks", _FACES, _REGRESSION, "table1_celeba_r2.csv",
                clean_data=("celeb_a",),
            ),
            Table(
                2, "Accuracy on clean test images", _IMAGES, _CLASSIFICATION, "table2_cifar_accuracy.csv",
                clean_data=("cifar10", "cifar100"),
            ),
            Table(
                3, "Accuracy of Co-PRL(L) told another epsilon", _SENSITIVITY, ("co_prl_l",),
                "table3_sensitivity_accuracy.csv", epsilon_errors=(-0.1, -0.05, 0.0, 0.05, 0.1),
            ),
            Table(
                6, "Seconds per epoch", (Row("cifar10", "pairflip", 0.45),), ("standard", "prl_g", "prl_l"),
                "table6_seconds_per_epoch.csv",
                # Batch norm mixes examples, which PRL(G) cannot have: all three get group norm.
                fixed=types.MappingProxyType({"norm": "group", "epochs": 3, "ramp_epochs": 0}),
            ),
        )
    }
)  # fmt: skip
