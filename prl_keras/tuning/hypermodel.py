"""`prl_keras.build` as a search space for keras-tuner."""

import copy
import math
import numbers
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import keras
import keras_tuner

import prl_keras as prl
from prl_keras import METHODS
from prl_keras.inputs import loss_kinds
from prl_keras.tuning.checks import settings_of

_ANY_RATE = 0.001  # to look at an optimizer
_Space = float | list[int] | list[float] | tuple[float, float]  # a value, choices, or a range (low, high)


class RobustHyperModel(keras_tuner.HyperModel):
    """`prl_keras.build` as a search space for keras-tuner.

    Each of the five hyperparameters is a fixed value, a list of choices, or a range `(low, high)` to search
    (learning_rate on a logarithmic scale). Trials show the searched ones under these names.

    Args:
        make_network: Function without arguments that returns a fresh Keras model.
        loss: The task's loss, as in `prl_keras.build`.
        metrics: Names of Keras metrics, or functions; no `keras.Metric` objects, whose state trials would
            share.
        method: A name in `METHODS`, or a list; epsilon is searched for methods that drop a fraction.
        epsilon: In `[0, 1)`.
        ramp_epochs: The epochs over which epsilon rises from 0; whole numbers >= 0. 0, the default, is no
            ramp; a fifth of the epochs is better, unless they are few.
        learning_rate: Positive.
        batch_size: Whole numbers >= 1; a range is searched in powers of two.
        train_size: The number of training examples; needed if ramp_epochs is not 0.
        optimizer: Function of the learning rate that returns a Keras optimizer.
        **options: Further arguments of `prl_keras.build`.

    Raises:
        ValueError: naming the hyperparameter, for an invalid value or range.
    """

    def __init__(
        self,
        make_network: Callable[[], keras.Model],
        *,
        loss: keras.losses.Loss | Callable[..., Any] | str,
        metrics: Sequence[Any] = (),
        method: str | list[str] = "prl_l",
        epsilon: _Space = (0.0, 0.6),
        ramp_epochs: _Space = 0,
        learning_rate: _Space = 0.001,
        batch_size: _Space = 128,
        train_size: int | None = None,
        optimizer: Callable[[float], keras.optimizers.Optimizer] = keras.optimizers.Adam,
        **options: Any,
    ) -> None:
        super().__init__()
        if not callable(make_network) or isinstance(make_network, keras.Model):
            raise ValueError(
                f"make_network={make_network!r} must be a function that gives a fresh Keras model."
            )
        if any(isinstance(metric, keras.Metric) for metric in keras.tree.flatten(metrics)):
            raise ValueError(
                "metrics holds a Metric object, which trials would share; write its name or class."
            )
        if "ramp_steps" in options:
            raise ValueError("ramp_steps depends on a trial's batch size; write ramp_epochs and train_size.")
        if isinstance(method, tuple):
            raise ValueError(f"method={method!r} has no values in between; write a list of names.")
        self.make_network, self.loss, self.metrics = make_network, keras.losses.get(loss), metrics
        self.optimizer, self.options, self.train_size = optimizer, options, train_size
        given = {
            "method": (method, str, METHODS.__contains__, f"one of {', '.join(METHODS)}"),
            "epsilon": (epsilon, float, lambda value: 0 <= value < 1, "a number in [0, 1)"),
            "ramp_epochs": (ramp_epochs, int, lambda value: value >= 0, "a whole number >= 0"),
            "learning_rate": (learning_rate, float, lambda value: 0 < value < math.inf, "a positive number"),
            "batch_size": (batch_size, int, lambda value: value >= 1, "a whole number >= 1"),
        }
        self.space = {name: _checked(name, *rule) for name, rule in given.items()}
        if isinstance(batch_size, tuple) and not _powers_of_two(*batch_size):
            raise ValueError(f"batch_size={batch_size!r} has no power of 2 in it; write a list of sizes.")
        if ramp_epochs != 0 and train_size is None:
            raise ValueError("ramp_epochs needs train_size, the number of examples that are trained on.")

    def of_size(self, train_size: int) -> "RobustHyperModel":
        """A copy for another number of training examples, which sets the number of ramp steps."""
        other = copy.copy(self)
        del other.build  # keras-tuner's wrapper around this object's build; __init__ makes a new one
        keras_tuner.HyperModel.__init__(other, self.name, self.tunable)
        other.train_size = train_size
        return other

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that no trial varies: loss, optimizer, options, and with a ramp `train_size`."""
        optimizer = self.optimizer(_ANY_RATE)
        found = {"loss": loss_kinds.name_of(self.loss), "optimizer": type(optimizer).__name__}
        for name, configured in (("loss", self.loss), ("optimizer", optimizer)):
            found |= {f"{name} {key}": value for key, value in (settings_of(configured) or {}).items()}
        found["options"] = repr(self.options)
        return found if self.space["ramp_epochs"] == 0 else {**found, "train_size": self.train_size}

    def values(self, hp: keras_tuner.HyperParameters) -> dict[str, Any]:
        """The five hyperparameters; epsilon and ramp_epochs are 0 for methods that drop no fraction."""
        chosen = {"method": _ask(hp, "method", self.space["method"])}
        for name in ("learning_rate", "batch_size"):
            chosen[name] = _ask(hp, name, self.space[name])
        methods = self.space["method"] if isinstance(self.space["method"], list) else [self.space["method"]]
        dropping = [name for name in methods if METHODS[name].drops_a_fraction]
        chosen |= {"epsilon": 0.0, "ramp_epochs": 0}
        if dropping == methods:
            chosen |= {name: _ask(hp, name, self.space[name]) for name in ("epsilon", "ramp_epochs")}
        elif dropping:
            with hp.conditional_scope("method", dropping):
                asked = {name: _ask(hp, name, self.space[name]) for name in ("epsilon", "ramp_epochs")}
            if chosen["method"] in dropping:
                chosen |= asked
        return chosen

    def build(self, hp: keras_tuner.HyperParameters) -> keras.Model:
        """A compiled model: `prl_keras.build` with the trial's values.

        If epsilon is searched, nothing warns of a value of 0.5 or more.
        """
        chosen = self.values(hp)
        ramp_steps = 0
        if chosen["ramp_epochs"]:
            ramp_steps = chosen["ramp_epochs"] * math.ceil(self.train_size / chosen["batch_size"])
        with warnings.catch_warnings():
            if isinstance(self.space["epsilon"], (list, tuple)):
                warnings.filterwarnings("ignore", message="An epsilon of 0.5 or more")
            return prl.build(
                chosen["method"],
                self.make_network,
                epsilon=chosen["epsilon"],
                ramp_steps=ramp_steps,
                loss=self.loss,
                optimizer=self.optimizer(chosen["learning_rate"]),
                metrics=self.metrics,
                **self.options,
            )

    def fit(
        self, hp: keras_tuner.HyperParameters, model: keras.Model, x: Any, y: Any, **options: Any
    ) -> keras.callbacks.History:
        """`model.fit` with the trial's batch size."""
        return model.fit(x, y, batch_size=self.values(hp)["batch_size"], **options)


def _checked(name, value, kind, is_good, what):
    """`value`, with each choice or both ends of a range converted to plain Python numbers."""
    several = value if isinstance(value, (list, tuple)) else [value]
    number = {int: numbers.Integral, float: numbers.Real, str: str}[kind]
    is_right = [isinstance(item, number) and not isinstance(item, bool) and is_good(item) for item in several]
    if not several or not all(is_right):
        raise ValueError(f"{name}={value!r} must be {what}, a list of such, or a range (low, high).")
    if isinstance(value, tuple) and (len(value) != 2 or not value[0] < value[1]):
        raise ValueError(f"{name}={value!r} must be a range (low, high) with low < high.")
    converted = [kind(item) for item in several]
    return type(value)(converted) if isinstance(value, (list, tuple)) else converted[0]


def _ask(hp, name, space):
    """The trial's value. A fixed value stays out of keras-tuner, which would count it as a dimension."""
    if isinstance(space, list):
        return hp.Choice(name, space)
    if not isinstance(space, tuple):
        return space
    if name == "batch_size":
        return hp.Choice(name, _powers_of_two(*space))
    if name == "ramp_epochs":
        return hp.Int(name, *space)
    return hp.Float(name, *space, sampling="log" if name == "learning_rate" else "linear")


def _powers_of_two(low, high):
    return [2**i for i in range(math.ceil(math.log2(low)), int(math.log2(high)) + 1)]
