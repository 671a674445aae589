"""The test metric of a task: its name and scale in Keras, in the paper's tables and in the pictures."""

import types
from typing import NamedTuple


class Metric(NamedTuple):
    """One test metric.

    Attributes:
        name: Its name in Keras's logs; its column in a history is `test_NAME`.
        title: Its title in pictures, before the unit.
        in_paper: Its name in the paper's tables.
        column: Its name in the files of the paper's numbers.
        unit: The paper's numbers divided by Keras's.
        decimals: Decimals in tables.
        lowest: The lower end of a figure's y axis, in the paper's unit.
    """

    name: str
    title: str
    in_paper: str
    column: str
    unit: int
    decimals: int
    lowest: float


#: Task -> `Metric`.
METRICS = types.MappingProxyType(
    {
        "classification": Metric("accuracy", "test accuracy", "accuracy in percent", "accuracy", 100, 2, 0),
        "regression": Metric("r2_score", "test R2", "R2", "r2", 1, 3, -0.2),
    }
)
