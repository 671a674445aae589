"""A data set: train and test arrays."""

import dataclasses
from typing import Any

import numpy as np

from prl_keras.validate import check_integer


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Train and test arrays with clean targets.

    Attributes:
        name: its key in `DATASETS`.
        task: "classification" or "regression".
        train_x, test_x: float32 `[n, ...]`.
        train_y, test_y: int64 labels `[n]`, or float32 targets `[n, q]`.
        num_outputs: number of classes, or q.
        source: one line that describes the data that were really read.
        class_names: a string for each class, by default its number; empty for regression.
    """

    name: str
    task: str
    train_x: np.ndarray
    train_y: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray
    num_outputs: int
    source: str
    class_names: tuple[str, ...] = ()

    def __post_init__(self):
        if self.task == "classification" and not self.class_names:
            object.__setattr__(self, "class_names", tuple(map(str, range(self.num_outputs))))

    def subset(self, train_size: int | None = None, test_size: int | None = None) -> "Dataset":
        """A `Dataset` with fewer examples: the first ones of a fixed permutation.

        A larger subset of a part therefore contains every smaller one.

        Args:
            train_size, test_size: integer >= 1; None for all examples, in their order.

        Raises:
            ValueError: for an invalid size, or one larger than the part.
        """
        parts: dict[str, Any] = {}
        for part, size in (("train", train_size), ("test", test_size)):
            x, y = getattr(self, f"{part}_x"), getattr(self, f"{part}_y")
            if size is None:
                continue
            if check_integer(f"{part}_size", size, 1) > len(x):
                raise ValueError(
                    f"{part}_size={size} is more than the {len(x)} {part} examples of {self.name}: give at "
                    "most as many, or None for all."
                )
            rows = np.random.default_rng(0).permutation(len(x))[:size]
            parts |= {f"{part}_x": x[rows], f"{part}_y": y[rows]}
        return dataclasses.replace(self, **parts)
