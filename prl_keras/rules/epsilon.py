"""Epsilon over the optimizer's steps: a number or a schedule."""

import math
import warnings
from typing import Any

import keras

from prl_keras.validate import check_fraction, check_integer

_LOOKS = 8  # how often an epoch's schedule is looked at


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


def epsilon_at(epsilon: Any, step: Any) -> Any:
    """The fraction at an optimizer step: a number as it is, a tensor if epsilon is a schedule."""
    return epsilon(step) if is_schedule(epsilon) else epsilon


def check_epsilon(epsilon: Any) -> None:
    """Rejects anything but a fraction in `[0, 1)` or a schedule (ValueError)."""
    if isinstance(epsilon, str):
        raise ValueError(
            f'epsilon={epsilon!r} must be a number in [0, 1) or a schedule. prl_keras.build takes "auto", '
            "too; a rule takes prl_keras.EstimatedEpsilon() instead."
        )
    if not is_schedule(epsilon):
        check_fraction("epsilon", epsilon)


def is_in_range(name: str, schedule: Any, iterations: Any, steps: int | None) -> bool:
    """Whether a schedule is in `[0, 1)` at steps of the coming epoch: the first, the last and some between.

    Args:
        name: Named in the error.
        schedule: A `LearningRateSchedule`; for anything else the result is True.
        iterations: The optimizer's counter.
        steps: The number of steps of the epoch, or None if unknown.

    Raises:
        ValueError: with step and value, if the schedule is not finite at one of them.
    """
    if not is_schedule(schedule):
        return True
    first, last = int(keras.ops.convert_to_numpy(iterations)), max((steps or 1) - 1, 0)
    values = []
    for step in sorted({first + last * i // _LOOKS for i in range(_LOOKS + 1)}):
        value = schedule(keras.ops.convert_to_tensor(step, iterations.dtype))
        values.append(float(keras.ops.convert_to_numpy(value)))
        if not math.isfinite(values[-1]):
            raise ValueError(
                f"The schedule of the {name}, {type(schedule).__name__}, gives {values[-1]} at step {step}; "
                "it must give a finite number at every step. No step of this epoch was taken."
            )
    return all(0 <= value < 1 for value in values)


def warn_of_half(epsilon: float, stacklevel: int) -> None:
    """Warns of a constant epsilon of 0.5 or more, where the paper's theory ends."""
    if epsilon >= 0.5:
        # Without the value, so that Python shows it once per line of code and not for each epsilon.
        warnings.warn(
            "An epsilon of 0.5 or more drops at least as many examples as it keeps. The paper's theory "
            "assumes that fewer than half of the examples are wrong.",
            stacklevel=stacklevel,
        )
