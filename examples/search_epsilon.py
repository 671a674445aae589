"""Searches epsilon with keras-tuner, where the validation labels are wrong too.

python -m examples.search_epsilon

35% of the labels of 1200 handwritten digits are wrong. Ten trials train PRL(L) with epsilons from 0 to 0.6.
`val_trimmed_loss` judges them: the mean loss of the better half of the held-out labels, which are as wrong as
the others. Expect an epsilon near 0.35 or a little above it, whose network is nearly as good on clean test
images as the best of the trials. The search only sees the noisy labels; the test accuracy is for comparison.

If you stop it and start it again, it goes on.
"""

import os
from collections.abc import Sequence

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import matplotlib.pyplot as plt
import numpy as np
from absl import app
from matplotlib.figure import Figure
from sklearn.datasets import load_digits

import prl_keras as prl
from examples import results
from prl_keras.tuning.hypermodel import RobustHyperModel
from prl_keras.tuning.tuner import make_tuner

TRAINING, TRUE_EPSILON = 1200, 0.35


def make_network() -> keras.Model:
    return keras.Sequential([keras.Input((64,)), keras.layers.Dense(256, "relu"), keras.layers.Dense(10)])


def draw(epsilons: np.ndarray, losses: np.ndarray, accuracies: np.ndarray, best: int) -> Figure:
    """What each trial's epsilon gives: the objective, and the clean test accuracy."""
    figure, axes = plt.subplots(1, 2, figsize=(7.5, 3), layout="constrained")
    order = np.argsort(epsilons)
    for axis, values, name in zip(axes, (losses, accuracies), ("val_trimmed_loss", "clean test accuracy")):
        axis.plot(epsilons[order], values[order], ".-")
        axis.plot(epsilons[best], values[best], "o", markersize=12, fillstyle="none", color="black")
        axis.axvline(TRUE_EPSILON, color="#777777", linestyle="--", linewidth=1)
        axis.set(xlabel="epsilon (dashed: true; ring: found)", title=name)
        axis.grid(alpha=0.3)
    return figure


def main(argv: Sequence[str]) -> None:
    folder = results.make_folder("search_epsilon", argv)
    trials, epochs = (3, 5) if results.SMOKE.value else (10, 20)
    rng = np.random.default_rng(0)
    pixels, digits = load_digits(return_X_y=True)
    order = rng.permutation(len(digits))
    x, y = (pixels[order] / 16).astype("float32"), digits[order]
    test, x, true_y = (x[TRAINING:], y[TRAINING:]), x[:TRAINING], y[:TRAINING]
    noisy_y, _ = prl.corrupt("symmetric", true_y, TRUE_EPSILON, rng)

    hypermodel = RobustHyperModel(
        make_network,
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        method="prl_l",
        epsilon=(0.0, 0.6),  # a range; also for learning_rate, batch_size, ramp_epochs
        learning_rate=0.003,
        batch_size=64,
    )
    tuner = make_tuner(
        "random", hypermodel, "val_trimmed_loss", folder / "search", max_trials=trials, epochs=epochs
    )
    tuner.search(x, noisy_y, test_data=test, verbose=0)

    found = tuner.oracle.get_best_trials(trials)  # the best first
    epsilons = np.array([trial.hyperparameters.get("epsilon") for trial in found])
    losses = np.array([trial.score for trial in found])
    accuracies = np.array([trial.metrics.get_best_value("test_accuracy") for trial in found])
    rows = []
    for name, at in (
        ("found by val_trimmed_loss", 0),
        ("nearest to the true one", int(np.abs(epsilons - TRUE_EPSILON).argmin())),
        ("best on the test images", int(accuracies.argmax())),
        ("lowest tried", int(epsilons.argmin())),
    ):
        row: dict[str, object] = {"trial": name, "epsilon": float(epsilons[at])}
        row |= {"val_trimmed_loss": float(losses[at]), "test accuracy": float(accuracies[at])}
        rows.append(row)
    results.write_picture(folder, "search_epsilon", draw(epsilons, losses, accuracies, 0))
    results.write_table(folder, rows)


if __name__ == "__main__":
    app.run(main)
