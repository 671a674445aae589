"""Regression on a table of which three targets in ten are wrong.

python -m examples.regress_table

scikit-learn's diabetes data: ten numbers for each of 442 patients, and how their disease went on. In three of
ten training rows the target is a wrong linear function of the row, as after a mistake in joining two tables.
Expect plain training to end below R2 = 0 on clean test rows, and PRL(L), which is told that 30% are wrong,
near what clean targets give. `build("auto")` is not told, and hardly worse. PRL(G) also ends far above plain
training; it is for wrong inputs too.
"""

import os
from collections.abc import Sequence

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import matplotlib.pyplot as plt
import numpy as np
from absl import app
from matplotlib.figure import Figure
from sklearn.datasets import load_diabetes
from sklearn.metrics import r2_score

import prl_keras as prl
from examples import results

# The name in the table -> the method's name in `build`, and its epsilon.
METHODS = {
    "plain": ("standard", None),
    "PRL(L)": ("prl_l", 0.3),
    "PRL(G)": ("prl_g", 0.3),
    "auto": ("auto", None),
    "plain, clean targets": ("standard", None),
}
SHARE_WRONG, TRAINING, SPLITS = 0.3, 300, 3


def make_network() -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((10,)),
            keras.layers.Dense(32, "relu"),
            keras.layers.Dense(32, "relu"),
            keras.layers.Dense(1),
        ]
    )


def run(name: str, split: int, epochs: int) -> tuple[np.ndarray, np.ndarray]:
    """(clean test targets, predicted ones) after one training."""
    keras.utils.set_random_seed(split)
    rng = np.random.default_rng(split)
    x, y = load_diabetes(return_X_y=True)
    order = rng.permutation(len(x))
    x = (x[order] / x.std()).astype("float32")
    y = ((y[order, None] - y.mean()) / y.std()).astype("float32")  # networks learn targets of size 1
    given_y, _ = prl.corrupt("linadv", y[:TRAINING], SHARE_WRONG, rng, x[:TRAINING])
    if name == "plain, clean targets":
        given_y = y[:TRAINING]

    method, epsilon = METHODS[name]
    optimizer = keras.optimizers.Adam(0.002)
    model = prl.build(method, make_network, epsilon=epsilon, loss="mse", optimizer=optimizer)
    model.fit(x[:TRAINING], given_y, epochs=epochs, verbose=0)

    return y[TRAINING:, 0], model.predict(x[TRAINING:], verbose=0)[:, 0]


def draw(pairs: dict[str, tuple[np.ndarray, np.ndarray]]) -> Figure:
    """Predicted against clean test targets, a panel for each method."""
    figure, axes = plt.subplots(
        1, len(pairs), figsize=(2.4 * len(pairs), 2.8), sharey=True, squeeze=False, layout="constrained"
    )
    for axis, (name, (true, predicted)) in zip(axes.flat, pairs.items()):
        axis.plot([-2, 3], [-2, 3], color="#999999", linewidth=1)
        axis.plot(true, predicted, ".", markersize=4, alpha=0.6)
        axis.set(xlim=(-2, 3), ylim=(-3, 4))
        axis.set_title(name, fontsize=10)
    figure.supxlabel("clean test target", fontsize=9)
    axes.flat[0].set_ylabel("predicted", fontsize=9)
    return figure


def main(argv: Sequence[str]) -> None:
    folder = results.make_folder("regress_table", argv)
    methods, splits, epochs = list(METHODS), SPLITS, 50
    if results.SMOKE.value:
        methods, splits = ["plain", "PRL(L)"], 1
    rows, pairs = [], {}
    for name in methods:
        runs = [run(name, split, epochs) for split in range(splits)]
        pairs[name] = runs[0]
        r2 = [r2_score(*pair) for pair in runs]
        rows.append(
            {"method": name, "test R2, mean": float(np.mean(r2)), "lowest": min(r2), "highest": max(r2)}
        )
        print(f"{name}: test R2 of {splits} splits " + ", ".join(f"{value:.3f}" for value in r2), flush=True)
    results.write_picture(folder, "regress_table", draw(pairs))
    results.write_table(folder, rows)


if __name__ == "__main__":
    app.run(main)
