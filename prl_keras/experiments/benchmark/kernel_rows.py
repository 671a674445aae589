"""The models whose kernels are counted: plain training, every method, and variants of them."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import keras
from keras import layers

from prl_keras import METHODS, ClipNorm, CoTeachingModel, KeepLowest, RobustModel, Trim, build
from prl_keras.experiments.benchmark.steps import OUTPUTS
from prl_keras.methods import PAPER_METHODS

EPSILON = 0.3
SIZE = 16  # of the images: 32 gives the same counts, 8 fewer
PLAIN, GROUP, TARGETS, TWO = "Standard", "Standard, group norm", "Standard, targets", "Standard, two networks"


@dataclasses.dataclass(frozen=True)
class Row:
    """A model whose step is counted.

    Attributes:
        title: A unique name.
        make: Function without arguments that returns the compiled model.
        baseline: Title of the row that it is compared with.
        has_classes: Whether the batch has class labels; if not, targets `[batch, 10]`.
        is_recorded: Whether a `SelectionRecord` is attached.
    """

    title: str
    make: Callable[[], Any]
    baseline: str = PLAIN
    has_classes: bool = True
    is_recorded: bool = False


def network(norm: str = "batch") -> keras.Model:
    """A small convolutional network: images `[batch, SIZE, SIZE, 3]` to logits `[batch, 10]`."""
    x = inputs = keras.Input((SIZE, SIZE, 3))
    for filters in (16, 32):
        x = layers.Conv2D(filters, 3)(x)
        x = layers.BatchNormalization()(x) if norm == "batch" else layers.GroupNormalization(groups=8)(x)
        x = layers.LeakyReLU()(x)
    return keras.Model(inputs, layers.Dense(OUTPUTS)(layers.GlobalAveragePooling2D()(x)))


def rows() -> list[Row]:
    """All rows: plain training, every method, and other options that change the step."""
    composed = functools.partial(_composed, RobustModel)
    return [
        Row(GROUP, functools.partial(_built, "standard", norm="group"), GROUP),
        Row(TARGETS, functools.partial(_built, "standard", loss="mse"), TARGETS, has_classes=False),
        Row(TWO, _Two, TWO),
        *map(method_row, PAPER_METHODS),
        method_row("prl_l", "recorded", is_recorded=True),
        method_row("prl_g", "recorded", is_recorded=True),
        method_row("co_prl_l", "recorded", is_recorded=True),
        method_row("prl_l", "targets", TARGETS, has_classes=False, loss="mse"),
        method_row("prl_l", "ramp", ramp_steps=100),
        method_row("prl_l", 'epsilon "auto"', epsilon="auto", ramp_steps=100),
        method_row("prl_l", "min_keep_per_class 1", min_keep_per_class=1),
        method_row("prl_l", "recompute", recompute=True, jit_compile=True),
        method_row("prl_g", "recompute", recompute=True, jit_compile=True),
        Row("RobustModel, score None", functools.partial(composed, score=None)),
        Row("PRL(L)'s score, KeepLowest(1)", functools.partial(composed, rule=KeepLowest(1))),
        Row("PRL(L)'s score, ClipNorm(1)", functools.partial(composed, rule=ClipNorm(1.0))),
        Row(
            "Co-PRL(L), by disagreement",
            functools.partial(_composed, CoTeachingModel, exchange="disagreement"),
            TWO,
        ),
    ]


def method_row(
    name: str,
    what: str = "",
    baseline: str | None = None,
    has_classes: bool | None = None,
    is_recorded: bool = False,
    **options: Any,
) -> Row:
    """The `Row` of a method in `METHODS` with options of `build`; `what` describes them in the title."""
    method = METHODS[name]
    norm = "group" if method.score == "gradient" else "batch"
    if has_classes is None:
        has_classes = "classification" in method.tasks
        options |= {} if has_classes else {"loss": "mse"}
    if baseline is None:
        baseline = GROUP if norm == "group" else TWO if method.exchange else PLAIN if has_classes else TARGETS
    title = f"{method.title}, {what}" if what else method.title
    return Row(
        title, functools.partial(_built, name, norm=norm, **options), baseline, has_classes, is_recorded
    )


class _Two:
    """Two plain networks that are trained side by side, in one step."""

    supports_jit, run_eagerly = True, False

    def __init__(self):
        self._models = [_built("standard"), _built("standard")]

    def train_on_batch(self, x, y):
        for model in self._models:
            model.train_on_batch(x, y)

    def train_step(self, data):
        return [model.train_step(data) for model in self._models]


def _built(method, norm="batch", loss=None, epsilon=EPSILON, **options):
    make_network = functools.partial(network, norm)
    optimizer = keras.optimizers.Adam(0.001)
    return build(
        method, make_network, epsilon=epsilon, loss=loss or _cross_entropy(), optimizer=optimizer, **options
    )


def _composed(model_class, rule=Trim(EPSILON), **arguments):
    """A model of parts that together are not in `METHODS`."""
    networks = [network() for _ in range(2 if model_class is CoTeachingModel else 1)]
    model = model_class(*networks, rule=rule, **arguments)
    model.compile(keras.optimizers.Adam(0.001), _cross_entropy())
    return model


def _cross_entropy():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)
