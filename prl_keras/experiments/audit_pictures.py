"""The pictures of an audit, each a PNG in base64, to stand inside an HTML file."""

import base64
import io

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

_BINS = 60


def histogram(table):
    """How many examples have which score, and a line above which they are flagged.

    Args:
        table: Of `prl_keras.audit`.
    """
    scores = table["score"][np.isfinite(table["score"])]
    figure, axis = plt.subplots(figsize=(8, 3), layout="constrained")
    positive = scores[scores > 0]
    is_long = len(positive) and scores.max() > 100 * positive.median()  # losses of targets
    bins = np.geomspace(positive.min(), scores.max(), _BINS) if is_long else _BINS
    axis.hist(scores, bins=bins, color="#8aa4c8")
    if is_long:
        axis.set_xscale("log")
    if table["is_flagged"].any():
        threshold = table["score"][table["is_flagged"]].min()
        axis.axvline(threshold, color="#b00020")
        axis.annotate("flagged", (threshold, 1), (4, -12), xycoords=("data", "axes fraction"),
                      textcoords="offset points", color="#b00020")  # fmt: skip
    axis.set_xlabel("score (higher = more suspect)")
    axis.set_ylabel("examples")
    axis.set_yscale("log")
    return _png(figure)


def confusion(table, names):
    """Given classes by predicted ones, those that agree left out.

    Args:
        table: Of `prl_keras.audit`.
        names: Of the classes.
    """
    counts = np.zeros((len(names), len(names)), int)
    np.add.at(counts, (table["given"], table["predicted"]), 1)
    np.fill_diagonal(counts, 0)
    size = np.clip(0.45 * len(names) + 1.5, 4, 12)
    figure, axis = plt.subplots(figsize=(size + 0.8, size), layout="constrained")
    picture = axis.imshow(counts, cmap="Reds")
    figure.colorbar(picture, ax=axis, shrink=0.8, label="examples")
    if len(names) <= 20:
        axis.set_xticks(range(len(names)), names, rotation=45, ha="right")
        axis.set_yticks(range(len(names)), names)
        for row, column in np.argwhere(counts):
            is_dark = counts[row, column] > counts.max() / 2
            axis.text(column, row, counts[row, column], ha="center", va="center", fontsize=8,
                      color="white" if is_dark else "black")  # fmt: skip
    axis.set_xlabel("predicted")
    axis.set_ylabel("given")
    return _png(figure)


def picture(image):
    """One image `[height, width, channels]`, of 1 or 3 channels in [0, 1]."""
    buffer = io.BytesIO()
    image = np.clip(image, 0, 1)
    plt.imsave(
        buffer, image[..., 0] if image.shape[-1] == 1 else image, cmap="gray", vmin=0, vmax=1, format="png"
    )
    return base64.b64encode(buffer.getvalue()).decode()


def _png(figure):
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    plt.close(figure)
    return base64.b64encode(buffer.getvalue()).decode()
