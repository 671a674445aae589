"""Epsilon over the optimizer's steps: a number or a schedule."""

import warnings
from typing import Any

import keras

from prl_keras.validate import check_fraction, check_integer


def linear_ramp(epsilon: float, steps: int) -> keras.optimizers.schedules.LearningRateSchedule:
    """The paper's drop schedule: rises linearly from 0 to `epsilon` over `steps`, then stays constant.

    Args:
        epsilon: Final fraction to drop, in `[0, 1)`.
        steps: Number of optimizer steps of the rise, at least 1. The paper's code uses 10 epochs.

    Returns:
        A `keras.optimizers.schedules.LearningRateSchedule` for `Trim`.

    Raises:
        ValueError: if epsilon is out of range, or steps is below 1.
    """
    check_fraction("epsilon", epsilon)
    check_integer("steps", steps)
    warn_of_half(epsilon, stacklevel=3)
    return keras.optimizers.schedules.PolynomialDecay(
        initial_learning_rate=0.0, decay_steps=steps, end_learning_rate=epsilon, power=1.0
    )


def is_schedule(epsilon: Any) -> bool:
    """Whether epsilon is a schedule of the optimizer's step."""
    return isinstance(epsilon, keras.optimizers.schedules.LearningRateSchedule)


def check_epsilon(epsilon: Any) -> None:
    """Rejects anything but a fraction in `[0, 1)` or a schedule.

    Raises:
        ValueError: with the value.
    """
    if not is_schedule(epsilon):
        check_fraction("epsilon", epsilon)


def warn_of_half(epsilon: float, stacklevel: int) -> None:
    """Warns of a constant epsilon of 0.5 or more, where the paper's theory ends."""
    if epsilon >= 0.5:
        # Without the value, so that Python shows it once per line of code and not for each epsilon.
        warnings.warn(
            "An epsilon of 0.5 or more drops at least as many examples as it keeps. The paper's theory "
            "assumes that fewer than half of the examples are wrong.",
            stacklevel=stacklevel,
        )
