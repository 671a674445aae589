"""The pictures of an audit: PNGs in base64 for embedding in HTML.

Tables are those of `prl_keras.audit`; `unit` is what their rows are, in words.
"""

import base64
import html
import io
from collections.abc import Iterable, Sequence
from typing import Any

import matplotlib
import matplotlib.figure  # not pyplot, whose windows and backend are the caller's
import matplotlib.image
import numpy as np

_BINS = 60
_PLOT = {"dpi": 110, "transparent": True}  # the page may be dark
_NOT_COUNTED, _NOT_FLAGGED, _FLAGGED = (255, 255, 255), (200, 200, 200), (176, 0, 32)  # colors of pixels


def histogram(table: Any, unit: str = "examples") -> str:
    """Histogram of the scores, with a line above which examples are flagged."""
    scores = table["score"][np.isfinite(table["score"])]
    figure = matplotlib.figure.Figure(figsize=(8, 3), layout="constrained")
    axis = figure.subplots()
    positive = scores[scores > 0]
    is_long = len(positive) and scores.max() > 100 * positive.median()  # as losses of regression are
    bins = list(np.geomspace(positive.min(), scores.max(), _BINS)) if is_long else _BINS
    axis.hist(scores, bins=bins, color="#8aa4c8")
    if is_long:
        axis.set_xscale("log")
    if table["is_flagged"].any():
        threshold = table["score"][table["is_flagged"]].min()
        axis.axvline(threshold, color="#b00020")
        axis.annotate("flagged", (threshold, 1), (4, -12), xycoords=("data", "axes fraction"),
                      textcoords="offset points", color="#b00020")  # fmt: skip
    axis.set_xlabel("score (higher = more suspect)")
    axis.set_ylabel(unit)
    axis.set_yscale("log")
    return _png(figure.savefig, **_PLOT)


def confusion(table: Any, names: Sequence[str], unit: str = "examples") -> str:
    """Matrix of given by predicted classes, without those that agree."""
    counts = np.zeros((len(names), len(names)), int)
    known = table[table["given"] >= 0]
    np.add.at(counts, (known["given"], known["predicted"]), 1)
    np.fill_diagonal(counts, 0)
    size = np.clip(0.45 * len(names) + 1.5, 4, 12)
    figure = matplotlib.figure.Figure(figsize=(size + 0.8, size), layout="constrained")
    axis = figure.subplots()
    picture = axis.imshow(counts, cmap="Reds")
    figure.colorbar(picture, ax=axis, shrink=0.8, label=unit)
    if len(names) <= 20:
        axis.set_xticks(range(len(names)), names, rotation=45, ha="right")
        axis.set_yticks(range(len(names)), names)
        for row, column in np.argwhere(counts):
            is_dark = counts[row, column] > counts.max() / 2
            axis.text(column, row, counts[row, column], ha="center", va="center", fontsize=8,
                      color="white" if is_dark else "black")  # fmt: skip
    axis.set_xlabel("suggested")
    axis.set_ylabel("given")
    return _png(figure.savefig, **_PLOT)


def picture(image: np.ndarray) -> str:
    """One image `[height, width, channels]` with 1 or 3 channels in [0, 1]."""
    image = np.clip(image, 0, 1)
    image = image[..., 0] if image.shape[-1] == 1 else image
    return _png(matplotlib.image.imsave, image, cmap="gray", vmin=0, vmax=1)


def in_unit_range(image: np.ndarray) -> np.ndarray:
    """An image `[height, width, channels]` of any numbers as float32 in [0, 1].

    Bytes are divided by 255. Other values are rescaled by their minimum and maximum if they exceed [0, 1].
    """
    if image.dtype == np.uint8:
        return image / np.float32(255)
    image = np.nan_to_num(image.astype(np.float32))
    low, high = float(image.min()), float(image.max())
    return image if low >= 0 and high <= 1 else (image - low) / max(high - low, 1e-12)


def class_colors(classes: int) -> np.ndarray:
    """uint8 `[classes, 3]`, a color per class; with more than 20 classes, neighbours look alike."""
    if classes <= 20:
        colors = matplotlib.colormaps["tab10" if classes <= 10 else "tab20"](np.arange(classes))
    else:
        colors = matplotlib.colormaps["turbo"](np.linspace(0, 1, classes))
    return _bytes(colors)


def to_hex(color: Iterable[int]) -> str:
    """Three bytes as a CSS color."""
    return "#" + "".join(f"{part:02x}" for part in color)


def mask(
    shape: Sequence[int],
    places: tuple[np.ndarray, np.ndarray],
    labels: np.ndarray,
    colors: np.ndarray | tuple[float, float],
) -> str:
    """Draws a label per pixel; pixels without a label are white.

    Args:
        shape: Height and width.
        places: Rows and columns of the pixels with a label, int `[k]` each.
        labels: `[k]`, classes or targets.
        colors: For classes, from `class_colors`; for targets, the values drawn dark blue and yellow.
    """
    if isinstance(colors, tuple):
        low, high = colors
        share = np.clip((np.nan_to_num(labels) - low) / max(high - low, 1e-12), 0, 1)
        pixels = _bytes(matplotlib.colormaps["viridis"](share))
    else:
        pixels = colors[labels]
    return _pixels(shape, places, pixels)


def flags(shape: Sequence[int], places: tuple[np.ndarray, np.ndarray], is_flagged: np.ndarray) -> str:
    """Draws which pixels are flagged; arguments as in `mask`."""
    colors = np.array([_NOT_FLAGGED, _FLAGGED], np.uint8)
    return _pixels(shape, places, colors[is_flagged.astype(int)])


def tag(png: str, text: str, kind: str = "") -> str:
    """HTML of a picture, with a description for screen readers and, if given, its CSS class."""
    of_kind = f" class='{kind}'" if kind else ""
    return f"<img{of_kind} alt='{html.escape(text)}' src='data:image/png;base64,{png}'>"


def _bytes(colors):
    return np.round(255 * colors[:, :3]).astype(np.uint8)


def _pixels(shape, places, pixels):
    image = np.full((*shape, 3), _NOT_COUNTED, np.uint8)
    image[places] = pixels
    return _png(matplotlib.image.imsave, image)


def _png(save, *arguments, **options):
    """What a function of Matplotlib saves, in base64."""
    buffer = io.BytesIO()
    save(buffer, *arguments, format="png", **options)
    return base64.b64encode(buffer.getvalue()).decode()
