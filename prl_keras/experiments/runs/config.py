"""The config of a run: every choice that its result depends on."""

import dataclasses
import math
import types
import warnings
from collections.abc import Sequence
from typing import Any

from prl_keras import METHODS
from prl_keras.corruption import LABEL_KINDS, TARGET_KINDS
from prl_keras.experiments.data.load import DATASETS
from prl_keras.experiments.runs.networks import NETWORKS, NORMS, PRECISIONS
from prl_keras.validate import check_bool, check_integer, is_number

#: Fields that older runs do not have, and the value that they were made with.
LATER_FIELDS = types.MappingProxyType(
    {"precision": "float32", "recompute": False, "ema": 0.0, "aum_cut": False}
)
_NEED_A_CLASSIFIER = ("confusion",)  # no flags give its probabilities
CORRUPTIONS = tuple(
    kind for kind in dict.fromkeys(("none", *LABEL_KINDS, *TARGET_KINDS)) if kind not in _NEED_A_CLASSIFIER
)


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """One training run.

    Attributes:
        dataset: A name in `DATASETS`.
        method: A name in `prl_keras.METHODS`.
        corruption: A kind of `prl_keras.corrupt` that fits the data set, or "none".
        epsilon: Fraction of the training targets to corrupt, in `[0, 1)`.
        assumed_epsilon: The fraction that the method is told; None for the true one; "auto" for
            `prl_keras.EstimatedEpsilon` with the ramp as its warm-up, a fifth of the epochs if it is 0.
        ramp_epochs: Epochs over which the dropped fraction rises from 0; more than `epochs` gives a warning.
        epochs, batch_size: At least 1.
        learning_rate: Adam's learning rate, positive.
        network: A name in `NETWORKS`, or "auto": small_cnn for images, mlp for vectors.
        norm: "batch", "group", "none", or "auto": none for the mlp; for CNNs batch, or group if the method
            needs per-example gradients.
        train_size, test_size: The number of train and test examples, at least 1, a fixed random choice;
            None for all.
        seed: Seed of initial weights, dropout and the order of the batches, at least 0.
        noise_seed: Seed of the corruption, at least 0.
        precision: "float32", or what the layers compute in while weights and logits stay float32: "bfloat16",
            or "float16", whose loss Keras scales.
        recompute: As in `RobustModel`: a second pass over the kept examples, so that batch norm sees them
            alone. Only methods that drop examples take it.
        ema: If positive, the exponential moving average of the weights is tested and saved (Keras's
            `use_ema`), with this momentum per optimizer step, in `[0, 1)`.
        aum_cut: Whether the examples that the area under the margin flags are left out
            (`threshold_examples.below_threshold`), by two plain trainings before this one. For classes and
            plain training only.

    Raises:
        ValueError: naming the field, the value and the choices.
    """

    dataset: str = "digits"
    method: str = "prl_l"
    corruption: str = "symmetric"
    epsilon: float = 0.3
    assumed_epsilon: float | str | None = None
    ramp_epochs: int = 0
    epochs: int = 30
    batch_size: int = 128
    learning_rate: float = 0.001
    network: str = "auto"
    norm: str = "auto"
    train_size: int | None = None
    test_size: int | None = None
    seed: int = 0
    noise_seed: int = 0
    precision: str = "float32"
    recompute: bool = False
    ema: float = 0.0
    aum_cut: bool = False

    def __post_init__(self) -> None:
        _one_of("dataset", self.dataset, DATASETS)
        _one_of("method", self.method, METHODS)
        _one_of("corruption", self.corruption, CORRUPTIONS)
        _one_of("network", self.network, ("auto", *NETWORKS))
        _one_of("norm", self.norm, ("auto", *NORMS))
        _one_of("precision", self.precision, PRECISIONS)
        for name in ("epsilon", "assumed_epsilon"):
            value = getattr(self, name)
            is_left_out = name == "assumed_epsilon" and value in (None, "auto")
            if not is_left_out and not (is_number(value) and 0 <= value < 1):
                raise ValueError(f"{name}={value!r} must be a number in [0, 1), such as 0.3.")
        if not (is_number(self.learning_rate) and 0 < self.learning_rate < math.inf):
            raise ValueError(
                f"learning_rate={self.learning_rate!r} must be a positive number, such as 0.001."
            )
        for name, smallest in (
            ("epochs", 1), ("batch_size", 1), ("ramp_epochs", 0), ("train_size", 1), ("test_size", 1),
            ("seed", 0), ("noise_seed", 0),
        ):  # fmt: skip
            if getattr(self, name) is not None or name not in ("train_size", "test_size"):
                check_integer(name, getattr(self, name), smallest)
        if not (is_number(self.ema) and 0 <= self.ema < 1):
            raise ValueError(
                f"ema={self.ema!r} must be a number in [0, 1), such as 0.99; 0 averages nothing."
            )
        check_bool("recompute", self.recompute)
        if self.recompute and not METHODS[self.method].drops_a_fraction:
            raise ValueError(
                f"recompute=True is for methods that drop examples, and method={self.method!r} drops no "
                "fraction: leave recompute=False."
            )
        check_bool("aum_cut", self.aum_cut)
        if self.aum_cut and self.method != "standard":
            raise ValueError(
                f"aum_cut=True is for method='standard', and method={self.method!r} handles wrong labels by "
                "itself: leave aum_cut=False."
            )
        if (self.corruption == "none") != (self.epsilon == 0):
            raise ValueError(
                f"corruption={self.corruption!r} and epsilon={self.epsilon!r} do not go together: "
                "corruption='none' needs epsilon=0, and every other corruption a positive epsilon."
            )
        if self.ramp_epochs > self.epochs:
            warnings.warn(
                f"ramp_epochs={self.ramp_epochs} is longer than epochs={self.epochs}: the dropped fraction "
                "never rises to the epsilon that the method is told.",
                stacklevel=3,
            )

    @property
    def fields(self) -> dict[str, Any]:
        """Name and value of the fields, as runs are saved and named: without defaults of `LATER_FIELDS`.

        So runs from before there was a choice keep their names.
        """
        found = dataclasses.asdict(self)
        return {
            name: value
            for name, value in found.items()
            if name not in LATER_FIELDS or value != LATER_FIELDS[name]
        }

    @property
    def told_epsilon(self) -> float | str:
        """The fraction or "auto" that the method is told: `assumed_epsilon`, by default the true epsilon."""
        return self.epsilon if self.assumed_epsilon is None else self.assumed_epsilon

    @property
    def told_error(self) -> float | None:
        """`told_epsilon` minus the true epsilon; None for "auto"."""
        told = self.told_epsilon
        return None if isinstance(told, str) else round(told - self.epsilon, 6)

    def check_task(self, task: str) -> None:
        """Checks that method and corruption fit the data set's task.

        Args:
            task: "classification" or "regression".

        Raises:
            ValueError: naming the field, the value and the choices.
        """
        suited = [name for name, method in METHODS.items() if task in method.tasks]
        kinds = LABEL_KINDS if task == "classification" else TARGET_KINDS
        if self.method not in suited:
            raise ValueError(
                f"method={self.method!r} is not for {task}, the task of dataset={self.dataset!r}; choose "
                f"one of {', '.join(suited)}."
            )
        if self.aum_cut and task != "classification":
            raise ValueError(
                f"aum_cut=True is for classes, and dataset={self.dataset!r} is {task}: leave aum_cut=False."
            )
        if self.corruption not in ("none", *kinds):
            raise ValueError(
                f"corruption={self.corruption!r} is not for {task}, the task of "
                f"dataset={self.dataset!r}; choose one of none, {', '.join(kinds)}."
            )

    def network_and_norm(self, input_shape: Sequence[int]) -> tuple[str, str]:
        """The names of network and norm, with "auto" resolved."""
        network = self.network
        if network == "auto":
            network = "small_cnn" if len(input_shape) == 3 else "mlp"
        norm = self.norm
        if norm == "auto":
            needs_own_gradient = METHODS[self.method].score == "gradient"
            norm = "none" if network == "mlp" else "group" if needs_own_gradient else "batch"
        return network, norm


def _one_of(name, value, choices):
    if value not in choices:
        raise ValueError(f"{name}={value!r} is not known; choose one of {', '.join(choices)}.")
