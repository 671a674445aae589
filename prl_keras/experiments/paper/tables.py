"""The paper's tables as lists of runs, and the paper's own numbers.

Figure 2 shows the runs of table 1 over the epochs, figure 3 those of table 2. Table 5 repeats table 3.
"""

import dataclasses
import functools
import pathlib
import types
from collections.abc import Iterable

import pandas as pd

from prl_keras.experiments.data.load import DATASETS
from prl_keras.experiments.paper.protocol import PROTOCOLS, STAND_INS
from prl_keras.experiments.runs.config import RunConfig
from prl_keras.experiments.runs.metrics import METRICS, Metric

_PAPER = pathlib.Path(__file__).parent / "numbers"
_SHORT = {"symmetric": "sym", "pairflip": "pf"}
_no_changes = functools.partial(types.MappingProxyType, {})


@dataclasses.dataclass(frozen=True)
class Row:
    """A data set with a corruption. `epsilon` is the fraction of wrong targets."""

    dataset: str
    corruption: str
    epsilon: float

    @property
    def label(self) -> str:
        """The paper's label: "linadv: 10" or "CF10-pf-45"; "clean" or "CF10-clean" without corruption."""
        percent, is_clean = f"{100 * self.epsilon:.0f}", self.corruption == "none"
        dataset = DATASETS[self.dataset].short
        if not dataset:
            return "clean" if is_clean else f"{self.corruption}: {percent}"
        corruption = _SHORT.get(self.corruption, self.corruption)
        return f"{dataset}-clean" if is_clean else f"{dataset}-{corruption}-{percent}"


@dataclasses.dataclass(frozen=True)
class Table:
    """One table of the paper.

    Attributes:
        number: Its number in the paper.
        title: What it shows.
        rows, methods: Its rows, and its columns as names in `METHODS`. Table 4 has neither: it shows the
            protocols, not runs.
        paper_file: The file in the folder numbers with the paper's numbers.
        metric: The `Metric` of its numbers; None for seconds.
        picture: The file name of its picture, or None.
        figure: The number of the paper's figure that shows its runs over the epochs, or None.
        epsilon_errors: Errors added to the epsilon that the method is told; more than one in table 3.
        clean_data: Data sets for which plain training on clean targets is added as a reference.
        fixed: Fields of `RunConfig` that override the data set's protocol.
        stand_ins: (data set, scale) -> the data set that takes its place, as in `STAND_INS`.
    """

    number: int
    title: str
    rows: tuple[Row, ...]
    methods: tuple[str, ...]
    paper_file: str
    metric: Metric | None = None
    picture: str | None = None
    figure: int | None = None
    epsilon_errors: tuple[float, ...] = (0.0,)
    clean_data: tuple[str, ...] = ()
    fixed: types.MappingProxyType = dataclasses.field(default_factory=_no_changes)
    stand_ins: types.MappingProxyType = dataclasses.field(default_factory=_no_changes)

    @property
    def clean_rows(self) -> tuple[Row, ...]:
        """A `Row` without corruption for each data set in `clean_data`."""
        return tuple(Row(dataset, "none", 0.0) for dataset in self.clean_data)

    def paper(self) -> pd.DataFrame:
        """The paper's numbers."""
        return pd.read_csv(_PAPER / self.paper_file)

    def configs(
        self, scale: str, seeds: Iterable[int] | None = None, precision: str = "float32"
    ) -> list[RunConfig]:
        """The runs, without repetitions. They depend on the arguments alone.

        Args:
            scale: "paper" or "cpu".
            seeds: Integers; None for the protocol's, 0, 1, .... A seed sets the network, the batches and the
                corruption.
            precision: Of every run, as in `RunConfig`.
        """
        found = []
        for row in self.rows + self.clean_rows:
            dataset = self.stand_ins.get((row.dataset, scale), row.dataset)
            protocol = PROTOCOLS[dataset, scale]
            methods = self.methods if row.epsilon else ("standard",)
            for seed in range(protocol.seeds) if seeds is None else seeds:
                for method in methods:
                    for error in self.epsilon_errors:
                        config = _config(row, method, error, seed, protocol)
                        fixed = {**self.fixed, "precision": precision}
                        found.append(dataclasses.replace(config, dataset=dataset, **fixed))
        return list(dict.fromkeys(found))


def _config(row, method, error, seed, protocol):
    return RunConfig(
        dataset=row.dataset,
        method=method,
        corruption=row.corruption,
        epsilon=row.epsilon,
        assumed_epsilon=round(row.epsilon + error, 6) if error else None,
        ramp_epochs=protocol.ramp_epochs(row.corruption),
        epochs=protocol.epochs,
        batch_size=protocol.batch_size,
        learning_rate=protocol.learning_rate,
        network=protocol.network,
        train_size=protocol.train_size,
        test_size=protocol.test_size,
        recompute=method in protocol.recompute,
        seed=seed,
        noise_seed=seed,
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

_ACCURACY, _R2 = METRICS["classification"], METRICS["regression"]
_ROWS = (
    Table(
        1, "R2 on clean test landmarks", _FACES, _REGRESSION, "table1_celeba_r2.csv",
        _R2, "figure2.png", figure=2, clean_data=("celeb_a",),
    ),
    Table(
        2, "Accuracy on clean test images", _IMAGES, _CLASSIFICATION, "table2_cifar_accuracy.csv",
        _ACCURACY, "figure3.png", figure=3, clean_data=("cifar10", "cifar100"), stand_ins=STAND_INS,
    ),
    Table(
        3, "Accuracy of Co-PRL(L) told another epsilon", _SENSITIVITY, ("co_prl_l",),
        "table3_sensitivity_accuracy.csv", _ACCURACY, "table3.png",
        epsilon_errors=(-0.1, -0.05, 0.0, 0.05, 0.1), stand_ins=STAND_INS,
    ),
    Table(4, "Hyperparameters", (), (), "table4_hyperparameters.csv"),
    Table(
        6, "Seconds per epoch", (Row("cifar10", "pairflip", 0.45),), ("standard", "prl_g", "prl_l"),
        "table6_seconds_per_epoch.csv",
        # Batch norm mixes examples, which PRL(G) does not support: all three use group norm.
        fixed=types.MappingProxyType({"norm": "group", "epochs": 3, "ramp_epochs": 0, "recompute": False}),
    ),
)  # fmt: skip

#: Number -> `Table`. The paper's table 5 repeats its table 3.
TABLES = types.MappingProxyType({row.number: row for row in _ROWS} | {5: _ROWS[2]})
