"""Cleans the labels of a data set: audit, look, fix, train again.

python -m examples.clean_my_labels

A fifth of the labels of 1000 handwritten digits is wrong. `build("auto")` trains a model that drops the most
suspect labels; it knows neither the share of wrong labels nor a clean one. Its audit flags the labels to look
at. Here nobody looks: the true labels stand in for a person, for the flagged images alone. Expect almost all
wrong labels among the flagged ones, and plain training on the fixed labels nearly as good as on true ones.

runs/clean_my_labels/report.html shows what a person would see: open it in a browser.
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
from prl_keras.reports import report_examples

TRAINING, SHARE_WRONG, SHOWN = 1000, 0.2, 20
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def make_network() -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((64,)),
            keras.layers.Dense(256, "relu"),
            keras.layers.Dense(256, "relu"),
            keras.layers.Dense(10),
        ]
    )


def plain_accuracy(x: np.ndarray, y: np.ndarray, test: tuple[np.ndarray, np.ndarray], epochs: int) -> float:
    """Test accuracy after plain training."""
    keras.utils.set_random_seed(0)
    network = make_network()
    network.compile("adam", LOSS, metrics=["accuracy"])
    network.fit(x, y, epochs=epochs, verbose=0)
    return network.evaluate(*test, verbose=0)[1]


def draw(images: np.ndarray, table, true_y: np.ndarray) -> Figure:
    """The most suspect images, each with its given and its suggested label."""
    figure, axes = plt.subplots(2, SHOWN // 2, figsize=(9.5, 2.8), layout="constrained")
    for axis, row in zip(axes.flat, table.sort_values("rank").index):
        given, suggested = table.loc[row, ["given", "predicted"]].astype(int)
        axis.imshow(images[row].reshape(8, 8), cmap="gray_r")
        color = "#b3261e" if given != true_y[row] else "#1b6e35"
        axis.set_title(f"{given}, or {suggested}?", fontsize=9, color=color)
        axis.axis("off")
    figure.suptitle(
        "The most suspect labels: given, or suggested? (red: the given label is wrong)", fontsize=10
    )
    return figure


def main(argv: Sequence[str]) -> None:
    folder = results.make_folder("clean_my_labels", argv)
    epochs = 20 if results.SMOKE.value else 60
    rng = np.random.default_rng(0)
    pixels, digits = load_digits(return_X_y=True)
    order = rng.permutation(len(digits))
    x, y = (pixels[order] / 16).astype("float32"), digits[order]
    test, x, true_y = (x[TRAINING:], y[TRAINING:]), x[:TRAINING], y[:TRAINING]
    given_y, _ = prl.corrupt("symmetric", true_y, SHARE_WRONG, rng)

    # Audit: train robustly, and rank the labels.
    keras.utils.set_random_seed(0)
    model = prl.build("auto", make_network, loss=LOSS, optimizer="adam", metrics=["accuracy"])
    record = prl.SelectionRecord((x, given_y))
    model.fit(x, given_y, epochs=epochs, verbose=0, callbacks=[record])
    table = prl.audit(model, (x, given_y), record)

    # Look: at the report, and in it at the flagged labels alone.
    estimate = prl.estimate_epsilon(model, (x, given_y))
    images = x.reshape(-1, 8, 8, 1)
    report = report_examples(table, folder / "report.html", estimate, images, title="Which digits are wrong?")
    results.write_picture(folder, "clean_my_labels", draw(x, table, true_y))

    # Fix: what a person who looks at the flagged images would write.
    looked_at = table["is_flagged"].to_numpy()
    fixed_y = np.where(looked_at, true_y, given_y)

    # Train again.
    rows = []
    for name, labels in (("as given", given_y), ("fixed", fixed_y), ("true", true_y)):
        rows.append(
            {
                "labels": name,
                "wrong labels": int((labels != true_y).sum()),
                "looked at": int(looked_at.sum()) if name == "fixed" else "-",
                "test accuracy, plain training": plain_accuracy(x, labels, test, epochs),
            }
        )
    robust = model.evaluate(*test, verbose=0, return_dict=True)["accuracy"]
    print(
        f"About {estimate.estimate:.0%} of the labels seem wrong, {estimate.low:.0%} to {estimate.high:.0%}. "
        f"The model that found them has a test accuracy of {robust:.3f}. See {report}."
    )
    results.write_table(folder, rows)


if __name__ == "__main__":
    app.run(main)
