"""How long a training step of each entry takes, relative to plain training."""

import statistics
import time
from collections.abc import Iterable

import numpy as np
from tqdm import tqdm

from prl_keras.experiments.data.dataset import Dataset
from prl_keras.experiments.leaderboard.entries import BASELINE, NOISES, Entry, Setting, entries
from prl_keras.experiments.runs.models import build_model

_DATASET = "cifar10_features"
_SHAPE, _CLASSES = (10_000, 64), 10  # those of the data set


def relative_costs(chosen: Iterable[Entry], rounds: int = 7) -> dict[str, float]:
    """Entry name -> the time of an epoch relative to plain training of one network, a median over rounds.

    Plain training is always among them.

    In each round every entry trains one epoch of random data with the shapes, the network and the batches of
    the CIFAR-10 features, through `fit`, without validation. The entries take turns in one process, so that
    a machine that slows down slows all of them. A first epoch, not counted, traces the step. An entry of
    several trainings costs their sum.
    """
    named = {BASELINE: entries()[BASELINE], **{entry.name: entry for entry in chosen}}
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal(_SHAPE).astype(np.float32), rng.integers(_CLASSES, size=_SHAPE[0])
    data = Dataset(_DATASET, "classification", x, y, x[:1], y[:1], _CLASSES, "random numbers")
    models = {}
    for name, entry in tqdm(named.items(), desc="trace"):
        config = entry.config(Setting(_DATASET, NOISES[0]), seed=0)
        models[name] = build_model(config, data)
        _epoch(models[name], data, config.batch_size)
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for _ in tqdm(range(rounds), desc="time"):
        for name, model in models.items():
            seconds[name].append(_epoch(model, data, config.batch_size))
    ratios = {
        name: [own / plain for own, plain in zip(times, seconds[BASELINE])] for name, times in seconds.items()
    }
    return {name: named[name].trainings * statistics.median(values) for name, values in ratios.items()}


def _epoch(model, data, batch_size):
    start = time.perf_counter()
    model.fit(data.train_x, data.train_y, batch_size=batch_size, shuffle=False, verbose=0)
    return time.perf_counter() - start
