"""Which choices of the published code move PRL(L)? Single changes, and that code itself on the same labels.

The authors' code (github.com/illidanlab/PRL) differs from the paper's text, and from a Keras user's code, in
choices that the paper does not name (`CHANGES`). Here a small network is trained on `cifar10_features` with
45% pairflip, once for each choice, and by the authors' own loss functions in PyTorch.
"""

import dataclasses
import itertools
import json
import pathlib
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pandas as pd
from keras import layers
from tqdm import tqdm

import prl_keras as prl
from prl_keras import files
from prl_keras.experiments.data.batches import shuffled_batches
from prl_keras.experiments.data.load import load
from prl_keras.experiments.markdown import markdown_table, number
from prl_keras.experiments.runs.training import LAST_EPOCHS

EPSILON, EPOCHS, BATCH_SIZE, RAMP_EPOCHS = 0.45, 50, 128, 10
AUTHORS = "the authors' code"
OURS = "none"
#: Change -> what it is. The last is all that are in the published code.
CHANGES = {
    OURS: "our protocol: Adam's epsilon is 1e-7, initial weights are He normal, the short last batch counts",
    "adam": "the mean is divided by the number kept once more, and Adam's epsilon is 1e-8: about 7e-7",
    "weights": "PyTorch's initial weights: uniform up to 1 / sqrt(inputs), biases too",
    "full batches": "the last batch of an epoch, of 16 examples, is left out",
    "ramp": "the dropped fraction rises over 15 epochs instead of 10",
    "recompute": "a second pass over the kept examples: batch norm sees them alone, dropout is drawn anew",
    "all": "adam, weights, full batches and recompute: the published PRL(L)",
}
#: Network -> (batch norm, dropout rate).
NETWORKS = {"mlp": (False, 0.0), "mlp with batch norm and dropout": (True, 0.25)}
#: (method, change) of each case.
CASES = (
    *(("prl_l", change) for change in CHANGES),
    ("prl_l", AUTHORS),
    ("spl", OURS), ("spl", "recompute"), ("spl", AUTHORS),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Case:
    """A training. `change` is a key of `CHANGES` or `AUTHORS`, `network` a key of `NETWORKS`."""

    method: str
    change: str
    network: str
    seed: int

    @property
    def has_effect(self) -> bool:
        """Whether the change can matter: a second pass differs only with batch norm or dropout."""
        return self.change != "recompute" or any(NETWORKS[self.network])


def measure(
    path: pathlib.Path | str, seeds: int = 3, authors_dir: pathlib.Path | str | None = None, **data: Any
) -> pd.DataFrame:
    """Trains the cases that the file lacks, with a progress bar, and returns all as a DataFrame.

    Args:
        path: A file of JSON lines, one per training; a killed measurement continues.
        seeds: The number of seeds; each is that of labels, weights and batches.
        authors_dir: A checkout of github.com/illidanlab/PRL, for the cases with `AUTHORS`, which need
            PyTorch and Opacus. None leaves them out.
        **data: Arguments of `load`.
    """
    path = pathlib.Path(path)
    cases = [
        Case(method, change, network, seed)
        for network in NETWORKS
        for method, change in CASES
        for seed in range(seeds)
    ]
    cases = [case for case in cases if case.has_effect and (authors_dir or case.change != AUTHORS)]
    done = {Case(*(line[name] for name in Case.__dataclass_fields__)) for line in _lines(path)}
    dataset = load("cifar10_features", **data)
    for case in tqdm([case for case in cases if case not in done], unit="training"):
        labels, _ = prl.corrupt(
            "pairflip", dataset.train_y, EPSILON, np.random.default_rng(case.seed), num_classes=10
        )
        arrays = dataset.train_x, labels, dataset.test_x, dataset.test_y
        if case.change == AUTHORS:
            accuracies = _authors(case, arrays, dataset.train_y == labels, authors_dir)
        else:
            accuracies = _ours(case, arrays)
        line = {
            **dataclasses.asdict(case),
            "source": dataset.source,
            "accuracies": [round(value, 3) for value in accuracies],
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [*_lines(path), line]
        with files.replacing(path) as temporary:
            temporary.write_text("".join(json.dumps(one) + "\n" for one in lines))
    return pd.DataFrame(_lines(path))


def in_markdown(found: pd.DataFrame) -> str:
    """A table per network: mean and standard deviation over the seeds of the last ten epochs' mean."""
    found = found.assign(
        last=found["accuracies"].map(lambda values: np.mean(values[-LAST_EPOCHS:])),
        best=found["accuracies"].map(max),
    )
    parts = []
    for network in NETWORKS:
        lines = []
        for method, change in CASES:
            group = found.query("network == @network and method == @method and change == @change")
            if len(group):
                last = f"{number(group['last'].mean(), 1)} ± {number(group['last'].std(), 1)}"
                lines.append([
                    f"{prl.METHODS[method].title}, {change}", number(group["best"].mean(), 1), last,
                    str(len(group)),
                ])  # fmt: skip
        parts += [f"## {network}", markdown_table(["change", "best epoch", "last ten", "seeds"], lines)]
    return "\n\n".join(parts)


def write_page(path: pathlib.Path | str, found: pd.DataFrame) -> pathlib.Path:
    """Writes the page of a measurement: what each change is, and `in_markdown`."""
    changes = "\n".join(f"* {name}: {text}." for name, text in CHANGES.items())
    source = "; ".join(sorted(set(found["source"])))
    text = f"""# Choices of the published code, one at a time

Test accuracy in percent, {EPSILON:.0%} pairflip, {EPOCHS} epochs, on {source}. A
number is the mean over the seeds: of the best epoch, and of the mean over the last ten epochs, here ± the
standard deviation over the seeds (divided by n - 1).
Made by `python -m binaries.published_code --data_dir=DIR --authors_dir=DIR`.

{changes}

"{AUTHORS}" is the loss function of github.com/illidanlab/PRL in PyTorch, on the same labels, in a loop like
theirs. Their SPL has no second pass.

{in_markdown(found)}
"""
    path = pathlib.Path(path)
    with files.replacing(path) as temporary:
        temporary.write_text(text)
    return path


def _lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _has(case, change):
    return case.change == change or (case.change == "all" and change != "ramp")


def _ours(case, arrays):
    """Test accuracy in percent after each epoch."""
    train_x, labels, test_x, test_y = arrays
    keras.utils.set_random_seed(case.seed)
    seeds = itertools.count(2 * case.seed)
    data, steps = shuffled_batches(train_x, labels, BATCH_SIZE, case.seed)
    if _has(case, "full batches"):
        data, steps = data.filter(lambda x, y: len(x) == BATCH_SIZE), len(labels) // BATCH_SIZE
    model = prl.build(
        case.method,
        lambda: _network(case, train_x.shape[1], next(seeds)),
        epsilon=EPSILON,
        ramp_steps=(15 if case.change == "ramp" else RAMP_EPOCHS) * steps,
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        optimizer=keras.optimizers.Adam(0.001, epsilon=7e-7 if _has(case, "adam") else 1e-7),
        metrics=["accuracy"],
        steps_per_execution=steps,
    )
    model.recompute = _has(case, "recompute")
    history = model.fit(
        data, epochs=EPOCHS, steps_per_epoch=steps, shuffle=False, verbose=0,
        validation_data=(test_x, test_y), validation_batch_size=2000,
    )  # fmt: skip
    return [100 * value for value in history.history["val_accuracy"]]


def _network(case, inputs, seed):
    normalizes, dropout = NETWORKS[case.network]
    seeds = iter(np.random.SeedSequence(seed).generate_state(16).tolist())

    def dense(x, units, initializer):
        if not _has(case, "weights"):
            return layers.Dense(units, kernel_initializer=initializer(next(seeds)))(x)
        most = x.shape[-1] ** -0.5
        uniform = [keras.initializers.RandomUniform(-most, most, next(seeds)) for _ in range(2)]
        return layers.Dense(units, kernel_initializer=uniform[0], bias_initializer=uniform[1])(x)

    x = images = keras.Input((inputs,))
    for _ in range(2):
        x = dense(x, 256, keras.initializers.HeNormal)
        if normalizes:
            x = layers.BatchNormalization(momentum=0.9, epsilon=1e-5)(x)
        x = layers.LeakyReLU(negative_slope=0.01)(x)
        if dropout:
            x = layers.Dropout(dropout, seed=next(seeds))(x)
    return keras.Model(images, dense(x, 10, keras.initializers.GlorotUniform))


def _authors(case, arrays, is_clean, authors_dir) -> list[float]:
    """As `_ours`, by the loss functions of the published code and a loop like theirs: the mean of two."""
    from prl_keras.experiments.benchmark import peers  # needs PyTorch
    from prl_keras.experiments.benchmark.peers import nn, torch

    loss, _ = peers.import_authors(authors_dir)
    torch.set_num_threads(1)  # the network is small: several would wait for each other
    torch.manual_seed(case.seed)
    train_x, labels, test_x, test_y = (torch.from_numpy(array) for array in arrays)
    train_x = train_x[:, :, None, None]  # their functions index images
    networks = [_torch_network(nn, case, train_x.shape[1]) for _ in range(2)]
    optimizers = [torch.optim.Adam(network.parameters(), lr=0.001) for network in networks]
    rates = np.full(EPOCHS, EPSILON)
    rates[:RAMP_EPOCHS] = np.linspace(0, EPSILON, RAMP_EPOCHS)
    step: Callable[..., Any] = {"prl_l": loss.loss_prl_l, "spl": loss.loss_spl}[case.method]
    accuracies = []
    for rate in rates[1:]:  # their first epoch is number 1
        for network in networks:
            network.train()
        order = torch.randperm(len(train_x))
        for rows in order[: len(order) // BATCH_SIZE * BATCH_SIZE].split(BATCH_SIZE):
            x, y, about = train_x[rows], labels[rows], (rate, rows.numpy(), is_clean)
            if case.method == "spl":
                losses = step(*(network(x) for network in networks), y, *about)[:2]
            else:
                with torch.no_grad():  # the training accuracy that they log; it moves batch norm
                    _ = [network(x) for network in networks]
                losses = step(x, *networks, y, *about)[:2]
            for optimizer, one in zip(optimizers, losses):
                optimizer.zero_grad()
                one.backward()
                optimizer.step()
        with torch.no_grad():
            predicted = [network.eval()(test_x).argmax(1) for network in networks]
        accuracies.append(float(np.mean([100 * (one == test_y).float().mean().item() for one in predicted])))
    return accuracies


def _torch_network(nn, case, inputs):
    normalizes, dropout = NETWORKS[case.network]
    parts = [nn.Flatten()]
    for size in (inputs, 256):
        parts += [nn.Linear(size, 256), *[nn.BatchNorm1d(256)] * normalizes, nn.LeakyReLU(0.01)]
        parts += [nn.Dropout(dropout)] * bool(dropout)
    return nn.Sequential(*parts, nn.Linear(256, 10))
