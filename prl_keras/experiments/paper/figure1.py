"""The paper's figure 1: what remains of the corrupted data when a filter picks the wrong examples.

It is drawn from a real fit of 80 examples with one input each, `y = theta x`, squared error, so that

    loss_i = (theta x_i - y_i)^2        |d loss_i / d theta| = 2 |x_i| sqrt(loss_i)

The two scores rank differently only if the inputs differ in *scale*: with equal `|x_i|` both filters keep
the same examples and end at the same theta. Here 56 inputs are of ordinary size, 12 tiny and 12 large. An
adversary who knows this replaces the targets of those 24 to pull theta down:

* tiny `x`, target far off: a large loss that hardly depends on theta. A flat curve. Loss filtering
  (self-paced learning, SPL) drops it; gradient filtering (PRL(G)) keeps it, and it does little harm.
* large `x`, target `-0.25 x`: a sharp valley around theta = -0.25, with small losses in it. Starting
  there, SPL keeps it and drops ordinary examples instead; PRL(G) drops it.

Both filters drop 30% of the full batch in every step, which is the share of corrupted examples, and begin
at the same theta. The example shows how loss filtering can fail, not how often. It depends on the start:
beyond the sharp valley, on the side of the clean optimum, SPL also ends near the optimum. PRL(G) ends
there from either side, a little below it, because the flat examples still pull weakly.
"""

import dataclasses
import pathlib
from typing import Any

import keras
import matplotlib
import numpy as np
import tensorflow as tf

import prl_keras as prl
from prl_keras import files

matplotlib.use("Agg")
import matplotlib.pyplot as plt

EPSILON = 0.3
START = -1.0
_METHODS = ("prl_g", "spl")
_ORDINARY, _TINY, _LARGE = 56, 12, 12
_THETAS = np.linspace(-1.4, 3.4, 241)
_CORRUPTED, _CLEAN, _TRUTH, _MEAN = "tab:red", "0.6", "tab:green", "black"


def draw(output_path: pathlib.Path | str, seed: int = 0) -> dict[str, Any]:
    """Fits the toy with both filters and draws the loss curves of the kept and dropped examples at the end.

    Args:
        output_path: The PNG, written atomically. The same seed gives the same bytes.
        seed: Seed of the toy data.

    Returns:
        A dict: `epsilon`, `start`, `clean_optimum`, and for each of "spl" and "prl_g" a dict with `end`,
        `distance` (from the clean optimum), and three numbers about the corrupted examples kept at the end:
        `kept_corrupted` (how many), `largest_gradient_norm` and `largest_curvature` (second derivative of the
        loss), both 0 if there are none.
    """
    toy = make_toy(seed)
    numbers: dict[str, Any] = {"epsilon": EPSILON, "start": START, "clean_optimum": toy.clean_optimum}
    figure, axes = plt.subplots(1, 3, figsize=(13, 5), layout="constrained")
    for axis, method, letter in zip(axes, _METHODS, "ab"):
        end = fit(toy, method)
        scores = {by: score(toy, by, end) for by in _METHODS}
        kept = is_kept(scores[method])
        left = kept & toy.is_corrupted
        numbers[method] = {
            "end": end,
            "distance": abs(end - toy.clean_optimum),
            "kept_corrupted": int(left.sum()),
            "largest_gradient_norm": float(max(scores["prl_g"][left], default=0.0)),
            "largest_curvature": float(max(2 * toy.inputs[left] ** 2, default=0.0)),
        }
        _draw_curves(axis, toy, kept, end)
        _title(axis, f"({letter}) {prl.METHODS[method].title}", numbers[method])
    _draw_ranking(axes[2], toy, scores["spl"], scores["prl_g"])
    axes[2].set_title(f"(c) all examples at theta = {end:.2f}, where\nSPL ended, and what each drops there")
    figure.legend(*axes[1].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    with files.replacing(output_path) as temporary:
        figure.savefig(temporary, format="png", dpi=78)
    plt.close(figure)
    return numbers


@dataclasses.dataclass(frozen=True)
class Toy:
    """One-dimensional regression through the origin; every array is `[n]`.

    Attributes:
        inputs: x.
        clean_targets: About 2 x.
        targets: The training targets.
        is_corrupted: Whether the target was replaced.
    """

    inputs: np.ndarray
    clean_targets: np.ndarray
    targets: np.ndarray
    is_corrupted: np.ndarray

    @property
    def clean_optimum(self) -> float:
        """The least-squares theta on the clean targets of all examples."""
        return float(self.inputs @ self.clean_targets / (self.inputs @ self.inputs))


def make_toy(seed: int) -> Toy:
    """The `Toy` of the module's docstring: 56 ordinary, 12 tiny and 12 large inputs, with random signs."""
    rng = np.random.default_rng(seed)
    n = _ORDINARY + _TINY + _LARGE
    sizes = [rng.uniform(0.5, 1.5, _ORDINARY), rng.uniform(0.02, 0.06, _TINY), rng.uniform(4.5, 5.5, _LARGE)]
    inputs = np.concatenate(sizes) * rng.choice([-1.0, 1.0], n)
    clean_targets = 2.0 * inputs + rng.normal(0.0, 0.3, n)
    targets = clean_targets.copy()
    tiny, large = slice(_ORDINARY, _ORDINARY + _TINY), slice(_ORDINARY + _TINY, n)
    targets[tiny] = -np.sign(inputs[tiny]) * rng.uniform(4.0, 5.0, _TINY)
    targets[large] = -0.25 * inputs[large] + rng.normal(0.0, 0.3, _LARGE)
    return Toy(inputs, clean_targets, targets, np.arange(n) >= _ORDINARY)


def fit(toy: Toy, method: str, start: float = START, steps: int = 200) -> float:
    """The theta after training by `method` ("spl", "prl_g"): `steps` steps of SGD on the full batch."""
    model = _model(method, start)
    full_batch = tf.data.Dataset.from_tensors((toy.inputs[:, None], toy.targets[:, None]))
    model.fit(full_batch.repeat(steps), shuffle=False, verbose=0)
    return float(model.network.get_weights()[0][0, 0])


def score(toy: Toy, method: str, theta: float) -> np.ndarray:
    """The scores by which `method` filters, at `theta`: float32 `[n]`."""
    return prl.score_examples(_model(method, theta), (toy.inputs[:, None], toy.targets[:, None]))


def is_kept(scores: np.ndarray) -> np.ndarray:
    """bool `[n]`: whether the filter keeps the examples with these scores."""
    return np.asarray(prl.Trim(EPSILON)(scores)) > 0


def _model(method, theta):
    def make_network():
        network = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
        network.set_weights([np.full((1, 1), theta, np.float32)])
        return network

    return prl.build(method, make_network, epsilon=EPSILON, loss="mse", optimizer=keras.optimizers.SGD(0.05))


def _losses(thetas, inputs, targets):
    """-> `[len(thetas), n]`."""
    return (np.reshape(thetas, (-1, 1)) * inputs - targets) ** 2


def _draw_curves(axis, toy, kept, end):
    """Draws the loss of each example over theta, the mean of the kept ones, and the mean on clean data."""
    losses = _losses(_THETAS, toy.inputs, toy.targets)
    drawn = toy.is_corrupted | (np.arange(len(kept)) % 3 == 0)
    for chosen, label, style in (
        (~kept & ~toy.is_corrupted, "clean, dropped (every third)", {"color": "0.88", "lw": 0.9}),
        (kept & ~toy.is_corrupted, "clean, kept (every third)", {"color": "0.6", "lw": 0.7}),
        (~kept & toy.is_corrupted, "corrupted, dropped", {"color": "#f4c4c4", "lw": 1}),
        (kept & toy.is_corrupted, "corrupted, kept", {"color": _CORRUPTED, "lw": 1.5}),
    ):
        axis.plot(_THETAS, losses[:, chosen & drawn], **style)
        axis.plot([], [], label=label, **style)
    clean = _losses(_THETAS, toy.inputs, toy.clean_targets).mean(axis=1)
    axis.plot(_THETAS, clean, color=_TRUTH, lw=2.5, ls="--", label="mean of all, were none corrupted")
    axis.axvline(toy.clean_optimum, color=_TRUTH, lw=1, label="clean optimum")
    axis.plot(_THETAS, losses[:, kept].mean(axis=1), color=_MEAN, lw=3, label="mean of the kept")
    height = _losses(end, toy.inputs, toy.targets)[0, kept].mean()
    dot = {"color": _MEAN, "mec": "white", "mew": 1.5, "zorder": 5, "ls": "none", "clip_on": False}
    axis.plot(START, 0, "^", ms=12, label="both start here", **dot)
    axis.plot(end, height, "o", ms=13, label="ends here", **dot)
    axis.set(xlim=(_THETAS[0], _THETAS[-1]), ylim=(0, 28), xlabel="theta", ylabel="loss of each example")


def _title(axis, name, numbers):
    distance, count, norm = (numbers[key] for key in ("distance", "kept_corrupted", "largest_gradient_norm"))
    axis.set_title(
        f"{name}: ends {distance:.2f} from the clean optimum,\n"
        f"keeps {count} corrupted, gradient norms up to {norm:.1f}"
    )


def _draw_ranking(axis, toy, losses, norms):
    """Draws gradient norm against loss, and what each filter drops."""
    for shade, scores, color in ((axis.axvspan, losses, "tab:blue"), (axis.axhspan, norms, "tab:orange")):
        kept = is_kept(scores)
        shade(np.sqrt(scores[kept].max() * scores[~kept].min()), 1e3, color=color, alpha=0.15, lw=0)
    ends = np.array([1e-3, 1e3])
    for chosen, color in ((~toy.is_corrupted, _CLEAN), (toy.is_corrupted, _CORRUPTED)):
        axis.plot(losses[chosen], norms[chosen], "o", color=color, mec="white", mew=0.5, ms=7)
    axis.text(
        0.03, 0.96, "PRL(G) drops", color="tab:orange", va="top", weight="bold", transform=axis.transAxes
    )
    axis.text(0.97, 0.62, "SPL drops", color="tab:blue", ha="right", weight="bold", transform=axis.transAxes)
    axis.plot(ends, 2 * np.sqrt(ends), color="black", lw=1, ls="--")
    note = "were every |x| = 1, all would lie on this line:\nthe same order by loss and by gradient norm"
    arrow = {"arrowstyle": "->", "relpos": (0.1, 1.0)}
    axis.annotate(note, (0.07, 2 * np.sqrt(0.07)), (0.03, 0.03), textcoords="axes fraction", arrowprops=arrow)
    for name, chosen in (("tiny |x|", np.abs(toy.inputs) < 0.1), ("large |x|", np.abs(toy.inputs) > 2)):
        middle = np.median(losses[chosen]), 1.3 * norms[chosen].max()
        axis.text(*middle, name, color=_CORRUPTED, ha="center")
    axis.set(
        xscale="log", yscale="log", xlim=(0.03, 60), ylim=(0.06, 60), xlabel="loss", ylabel="gradient norm"
    )
