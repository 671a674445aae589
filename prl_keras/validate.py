"""Checks of a single argument: the error names it, says what was given and what to write."""

import numbers


def check_fraction(name, value):
    """Refuses anything but a number in `[0, 1)`.

    Raises:
        ValueError: with the value and an example.
    """
    if not is_number(value) or not 0 <= value < 1:
        raise ValueError(
            f"{name}={value!r} must be a number in [0, 1), the fraction of examples to drop; write "
            f"{name}=0.3 to drop 30 percent, 0 to drop none. A schedule of the step is a "
            "keras.optimizers.schedules.LearningRateSchedule, such as prl_keras.linear_ramp(0.3, 1000)."
        )


def check_count(name, value, lowest=1):
    """Refuses anything but a whole number of at least `lowest`.

    Raises:
        ValueError: with the value.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < lowest:
        raise ValueError(f"{name}={value!r} must be a whole number of at least {lowest}.")


def check_integer(name, value, smallest):
    """`value` as an int, or a ValueError if it is not an integer >= `smallest`."""
    is_integer = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not is_integer or value < smallest:
        raise ValueError(f"{name}={value!r} must be an integer >= {smallest}.")
    return int(value)


def is_number(value):
    """Whether a value is a real number; True and False are none."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)
