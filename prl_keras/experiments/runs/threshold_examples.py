"""The cut of the area under the margin: two trainings with threshold examples say which labels are wrong."""

import dataclasses
from typing import Any

import numpy as np

import prl_keras as prl
from prl_keras.experiments.runs.models import build_model, fit, recordable

#: An example is flagged if its margin is below this percentile of the threshold examples' margins.
PERCENTILE = 99
TRAININGS = 2


def below_threshold(config: Any, data: Any, targets: Any) -> dict[str, np.ndarray]:
    """How far each example's area under the margin is below the cut, which needs no epsilon.

    Pleiss et al. 2020, "Identifying mislabeled data using the area under the margin ranking", section 3.2:
    `n / (c + 1)` threshold examples get a class of their own, so all their labels are wrong, and their
    margins show what the margins of wrong labels are. Each of two trainings has other threshold examples,
    and does not judge them.

    Args:
        config: `RunConfig`. A method that is told a fraction of wrong labels is told the larger one, with the
            threshold examples.
        data: `Dataset` of `c` classes and `n` training examples, at least two of each class.
        targets: int `[n]`, the labels to judge.

    Returns:
        dict: "all epochs", "first third", "last third" -> float32 `[n]`, the cut less the mean margin of
        these epochs; positive for flagged examples. The mean over all epochs is the area under the margin.
    """
    size = len(targets) // (data.num_outputs + 1)
    order = np.random.default_rng(config.seed).permutation(len(targets))
    share = size / len(targets)  # more labels that are wrong
    told = config.told_epsilon
    if not isinstance(told, str):
        told = round(told * (1 - share) + share, 6)
    clean = dataclasses.replace(config, corruption="none", epsilon=0, assumed_epsilon=told)
    below: dict[str, list[np.ndarray]] = {}
    for examples in (order[:size], order[size : 2 * size]):
        labels = np.array(targets)
        labels[examples] = data.num_outputs
        part = dataclasses.replace(data, train_y=labels, num_outputs=data.num_outputs + 1)
        model = recordable(build_model(clean, part))
        record = prl.SelectionRecord((data.train_x, labels))
        fit(model, data.train_x, labels, config, [record])
        for name, margins in means_over_epochs(record.margins).items():
            margins = np.percentile(margins[examples], PERCENTILE) - margins
            margins[examples] = np.nan
            below.setdefault(name, []).append(margins)
    return {name: np.nanmean(both, axis=0) for name, both in below.items()}


def third(epochs: Any) -> int:
    """The number of epochs in a third of `epochs`, at least 1."""
    return max(1, round(len(epochs) / 3))


def means_over_epochs(values: np.ndarray) -> dict[str, np.ndarray]:
    """Which epochs -> float32 `[n]`, the mean of the values `[epochs, n]` over them."""
    size = third(values)
    epochs = {"all epochs": values, "first third": values[:size], "last third": values[-size:]}
    return {name: part.mean(axis=0, dtype="float32") for name, part in epochs.items()}
