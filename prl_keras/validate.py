"""Checks of a single argument: the error gives its name, the value and what to write instead."""

import numbers
from collections.abc import Mapping
from typing import Any

import numpy as np


def check_fraction(name: str, value: Any) -> None:
    """Rejects anything but a number in `[0, 1)` (ValueError)."""
    if not is_number(value) or not 0 <= value < 1:
        raise ValueError(
            f"{name}={value!r} must be a number in [0, 1), the fraction of examples to drop; write "
            f"{name}=0.3 to drop 30 percent, 0 to drop none. A schedule of the step is a "
            "keras.optimizers.schedules.LearningRateSchedule, such as prl_keras.linear_ramp(0.3, 1000)."
        )


def check_integer(name: str, value: Any, smallest: int = 1) -> int:
    """`value` as an int; a ValueError with name and value if it is not an integer >= `smallest`."""
    if not is_integer(value) or value < smallest:
        raise ValueError(f"{name}={value!r} must be a whole number of at least {smallest}.")
    return int(value)


def is_integer(value: Any) -> bool:
    """Whether a value is an integer, of Python or NumPy; True and False are not."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def check_bool(name: str, value: Any) -> None:
    """Rejects anything but True and False (ValueError)."""
    if not isinstance(value, bool):
        raise ValueError(f"{name}={value!r} must be True or False.")


def is_number(value: Any) -> bool:
    """Whether a value is a real number; True and False are not."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def shortest(value: Any) -> Any:
    """A NumPy number as Python's, in its shortest decimal: numpy.float32(0.3) as 0.3, not 0.30000001.

    Any other value is returned as it is.
    """
    if isinstance(value, np.floating):
        return float(str(value))
    return value.item() if isinstance(value, np.generic) else value


def differences(saved: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    """What of `given` is saved with another value, such as "seed was 0, is now 1"; "" if nothing is."""
    return "; ".join(
        f"{name} was {saved.get(name)!r}, is now {value!r}"
        for name, value in given.items()
        if saved.get(name) != value
    )
