"""The cases of each benchmark suite, and their baselines."""

import dataclasses
import functools
import itertools

from prl_keras import METHODS, KeepLowest, Trim
from prl_keras.methods import PAPER_METHODS

SUITES = ("step", "methods", "batch", "width", "mlp", "record", "memory", "element")
PEERS = ("torch", "opacus", "opacus_ghost", "authors")
EPSILONS = (0.1, 0.3, 0.45, 0.7)
BATCH_SIZES = (64, 128, 256, 512)
WIDTHS = (128, 256, 512, 1024, 2048)
_WIDEST = 4224  # 20 million weights
_PEER_TITLES = {
    "torch": "PyTorch",
    "opacus": "Opacus",
    "opacus_ghost": "Opacus (ghost)",
    "authors": "authors'",
}


@dataclasses.dataclass(frozen=True)
class Case:
    """One way to take a training step.

    Attributes:
        method: A name in `METHODS`.
        epsilon: Fraction dropped, in `[0, 1)`; 0 for methods that drop nothing.
        recompute, microbatch_size: As in `RobustModel`.
        network: A name in `NETWORKS`, or "tagger" for sequences (`steps.TAGS`).
        norm: "batch", "group" or "none".
        batch_size: Examples per step.
        width: Units of both hidden layers of an mlp; None for the default network.
        is_subclass: Whether the network is hidden in a subclass of `keras.Model`. PRL(G) cannot see its
            layers then, so it computes the gradients example by example.
        is_recorded: Whether `fit` has a `SelectionRecord`.
        is_compiled: Whether XLA compiles the step; None for a GPU only.
        through_fit: Whether the steps are those of `fit` over a data set; if not, of one batch in memory.
        unit: As in `RobustModel`.
        implementation: "prl_keras", or a name in `PEERS`.
        precision: "float32", "bfloat16" or "float16": what the layers compute in. Weights are float32.
    """

    method: str = "standard"
    epsilon: float = 0.0
    recompute: bool = False
    microbatch_size: int | None = None
    network: str = "cnn9"
    norm: str = "batch"
    batch_size: int = 128
    width: int | None = None
    is_subclass: bool = False
    is_recorded: bool = False
    is_compiled: bool | None = None
    through_fit: bool = False
    unit: str = "example"
    implementation: str = "prl_keras"
    precision: str = "float32"

    @property
    def baseline(self) -> "Case":
        """The case of plain training that this case is compared with: PyTorch's for peers."""
        return Case(
            network=self.network,
            norm=self.norm,
            batch_size=self.batch_size,
            width=self.width,
            is_compiled=self.is_compiled,
            through_fit=self.through_fit,
            implementation="prl_keras" if self.implementation == "prl_keras" else "torch",
            precision=self.precision,
        )

    @property
    def session(self) -> "Case":
        """Our baseline. Cases with the same one are measured in turns."""
        return dataclasses.replace(self.baseline, implementation="prl_keras")

    @property
    def network_count(self) -> int:
        """The number of networks that a step trains; the baseline's seconds are multiplied by it."""
        return 2 if METHODS[self.method].exchange or self.implementation == "authors" else 1

    @property
    def title(self) -> str:
        """The case without its setting, such as "PRL(L), recompute, epsilon 0.45"."""
        peer = _PEER_TITLES.get(self.implementation)
        parts = [
            METHODS[self.method].title if peer is None else f"{peer} {METHODS[self.method].title}",
            "recompute" * self.recompute,
            f"microbatches of {self.microbatch_size}" if self.microbatch_size else "",
            "by vectorized_map" * self.is_subclass,
            "recorded" * self.is_recorded,
            "by element" * (self.unit == "element"),
            f"epsilon {self.epsilon:g}" if self.epsilon else "",
            "two networks" if self.network_count == 2 else "",
        ]
        return ", ".join(part for part in parts if part)

    @property
    def setting(self) -> str:
        """The rest, such as "cnn9, batch norm, batch 128"."""
        width = f" of width {self.width}" if self.width else ""
        norm = "" if self.norm == "none" else f", {self.norm} norm"
        return f"{self.network}{width}{norm}, batch {self.batch_size}" + (
            f", {self.precision}" * (self.precision != "float32")
            + ", XLA" * bool(self.is_compiled)
            + ", fit" * self.through_fit
        )


def suite_cases(suite: str, peers: bool = False, authors: bool = False) -> list[Case]:
    """The cases of a suite without repetitions, grouped by session, the baseline first.

    Args:
        suite: A name in `SUITES`.
            step     one step of the 9-layer CNN, by every code path
            methods  every method, with and without recompute, over epsilon, at batch 64
            batch    the 9-layer CNN over the batch size
            width    a fully connected network over its width
            mlp      the fully connected network for landmarks, through `fit`
            record   a small convolutional network with and without a `SelectionRecord`, through `fit`
            memory   a fully connected network of 20 million weights, with and without XLA
            element  tags of sequences, ranked by sequence and by element
        peers: Whether to add the same work in PyTorch and Opacus; for "step" only.
        authors: Whether to add the paper's authors' PRL(L); for "step" only.

    Raises:
        ValueError: for an unknown suite, or peers with a suite other than "step".
    """
    if suite not in SUITES:
        raise ValueError(f"suite={suite!r} is unknown; write one of {', '.join(SUITES)}.")
    if (peers or authors) and suite != "step":
        raise ValueError(f"suite={suite!r} has no peers; they go with --suite=step.")
    cases = _SUITES[suite]()
    if peers:
        for norm in ("batch", "group"):
            cases.append(Case(norm=norm, implementation="torch"))
        cases.append(Case("prl_l", 0.45, implementation="torch"))
        cases += [
            Case("prl_g", 0.45, norm="group", implementation=name) for name in ("opacus", "opacus_ghost")
        ]
    if authors:
        cases.append(Case("prl_l", 0.45, implementation="authors"))
        cases.append(Case(implementation="torch"))
    sessions = list(dict.fromkeys(case.session for case in cases))
    return sorted(dict.fromkeys(sessions + cases), key=lambda case: sessions.index(case.session))


def _step():
    return [
        Case("prl_l", 0.45),
        *(Case("prl_l", epsilon, recompute=True) for epsilon in EPSILONS),
        Case("co_prl_l", 0.45),
        Case("co_prl_l", 0.45, recompute=True),
        *(
            Case("prl_g", 0.45, microbatch_size=size, norm="group", is_subclass=is_subclass)
            for is_subclass, size in itertools.product((False, True), (None, 32))
        ),
    ]


def _methods():
    cases = []
    for name in PAPER_METHODS:
        row = METHODS[name]
        norm = "group" if row.score == "gradient" else "batch"
        rule = row.rule and row.rule(0.0)
        epsilons = EPSILONS if isinstance(rule, Trim) else (0.0,)
        # Where nothing is dropped, nothing is saved.
        recomputes = (False, True) if isinstance(rule, (Trim, KeepLowest)) else (False,)
        cases += [
            Case(name, epsilon, recompute, norm=norm, batch_size=64)  # half the time of 128
            for recompute, epsilon in itertools.product(recomputes, epsilons)
        ]
    return cases


def _batch():
    return [
        case
        for size in BATCH_SIZES
        for case in (
            Case("prl_l", 0.45, batch_size=size),
            Case("prl_l", 0.45, recompute=True, batch_size=size),
            Case("co_prl_l", 0.45, batch_size=size),
            Case("prl_g", 0.45, norm="group", batch_size=size),
        )
    ]


def _width():
    setting = functools.partial(Case, network="mlp", norm="none", batch_size=512)
    return [setting(name, 0.45, width=width) for width in WIDTHS for name in ("prl_l", "prl_g")]


def _mlp():
    setting = functools.partial(Case, network="mlp", norm="none", batch_size=512, through_fit=True)
    return [
        setting("prl_l", 0.4),
        setting("prl_l", 0.4, is_recorded=True),
        setting("prl_l", 0.4, recompute=True),
        setting("co_prl_l", 0.4),
        setting("prl_g", 0.4),
    ]


def _record():
    setting = functools.partial(Case, network="small_cnn", norm="group", through_fit=True)
    return [
        setting(name, 0.4, is_recorded=is_recorded)
        for name in ("prl_l", "co_prl_l")
        for is_recorded in (False, True)
    ]


def _memory():
    setting = functools.partial(Case, network="mlp", norm="none", batch_size=32)
    return [  # the narrow network shows the memory that tracing and compiling take alone
        setting(name, 0.4, width=width, is_compiled=is_compiled)
        for is_compiled in (None, True)
        for width in (64, _WIDEST)
        for name in ("prl_l", "spl")
    ]


def _element():
    setting = functools.partial(Case, network="tagger", norm="none", batch_size=32)
    return [
        setting("spl", 0.2, unit="element"),
        setting("prl_l", 0.2, unit="element"),
        setting("prl_l", 0.2),
        setting("co_prl_l", 0.2, unit="element"),
    ]


_SUITES = {
    "step": _step,
    "methods": _methods,
    "batch": _batch,
    "width": _width,
    "mlp": _mlp,
    "record": _record,
    "memory": _memory,
    "element": _element,
}
