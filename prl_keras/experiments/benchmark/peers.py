"""The same work in PyTorch: plain training and PRL(L) by hand, PRL(G) with Opacus, the authors' own code."""

import importlib.util
import math
import pathlib
import sys
import types
from collections.abc import Callable
from typing import Any

from prl_keras.experiments.benchmark.steps import IMAGE_SHAPE, OUTPUTS, Work, core_count, random_data

try:
    import torch
    from opacus.grad_sample import GradSampleModule, GradSampleModuleFastGradientClipping
    from torch import nn
    from torch.nn import functional
except ImportError as error:
    raise ImportError(
        f"Peers need PyTorch and Opacus ({error}): pip install -r requirements-peers.txt"
    ) from error

_DATASET_SIZE = 50_000  # the authors' loss looks up whether each example of the data set is clean


def make_work(case: Any, authors_dir: pathlib.Path | str | None = None) -> Work:
    """The `Work` of a case whose implementation is in `PEERS`: the 9-layer CNN, in PyTorch's fastest layout.

    Args:
        case: A `Case`.
        authors_dir: A checkout of github.com/illidanlab/PRL, for the implementation "authors".

    Raises:
        ValueError: for another network.
        OSError: if `authors_dir` is not a checkout of it.
    """
    if case.network != "cnn9" or case.through_fit:
        raise ValueError(f"{case} has no peer; there is the 9-layer CNN alone, not through fit.")
    torch.set_num_threads(core_count())
    torch.manual_seed(0)
    x, y = random_data(case.batch_size, IMAGE_SHAPE, has_classes=True)
    # The memory order is channels last; the shape is [n, c, h, w].
    x, y = torch.from_numpy(x).to(_device()).permute(0, 3, 1, 2), torch.from_numpy(y).to(_device())
    if case.implementation == "authors":
        step, network = _authors_step(case, x.contiguous(), y, authors_dir)
    else:
        network = cnn9(case.norm).to(_device(), memory_format=torch.channels_last)
        make_step = {
            ("torch", "standard"): standard_step,
            ("torch", "prl_l"): prl_l_step,
            ("opacus", "prl_g"): gradients_step,
            ("opacus_ghost", "prl_g"): ghost_step,
        }[case.implementation, case.method]
        step = make_step(network, x, y, count_kept(case))

    def run(count):
        for _ in range(count):
            loss = step()
        loss.item()  # waits for the device

    return Work(run, 1, sum(p.numel() for p in network.parameters()))


def cnn9(norm: str) -> nn.Sequential:
    """`networks.cnn9` in PyTorch, for images `[n, 3, height, width]` and ten classes."""
    parts, channels = [], IMAGE_SHAPE[-1]
    for filters, padding in [(128, 1)] * 3 + [(256, 1)] * 3 + [(512, 0), (256, 0), (128, 0)]:
        parts.append(nn.Conv2d(channels, filters, 3, padding=padding))
        parts.append(nn.BatchNorm2d(filters) if norm == "batch" else nn.GroupNorm(32, filters))
        parts.append(nn.LeakyReLU(0.01))
        channels = filters
    for end in (18, 9):  # after the sixth and the third convolution
        parts[end:end] = [nn.MaxPool2d(2), nn.Dropout2d(0.25)]
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, OUTPUTS))


def count_kept(case: Any) -> int:
    """The number of examples that `Trim` keeps in a batch."""
    return max(1, math.floor((1 - case.epsilon) * case.batch_size + 1e-6))


def standard_step(
    network: nn.Module, x: torch.Tensor, y: torch.Tensor, kept: int
) -> Callable[[], torch.Tensor]:
    """A function that takes a step of plain training and returns the loss. The next three are alike."""
    del kept
    optimizer = _adam(network)

    def step():
        loss = functional.cross_entropy(network(x), y)
        return _update(loss, optimizer)

    return step


def prl_l_step(network: nn.Module, x: torch.Tensor, y: torch.Tensor, kept: int) -> Callable[[], torch.Tensor]:
    """PRL(L) as one would write it. One forward pass suffices: the logits' gradient is softmax - one-hot."""
    optimizer = _adam(network)
    targets = functional.one_hot(y, OUTPUTS)

    def step():
        logits = network(x)
        norms = torch.linalg.vector_norm(logits.detach().softmax(1) - targets, dim=1)
        chosen = norms.topk(kept, largest=False).indices
        return _update(functional.cross_entropy(logits[chosen], y[chosen]), optimizer)

    return step


def gradients_step(
    network: nn.Module, x: torch.Tensor, y: torch.Tensor, kept: int
) -> Callable[[], torch.Tensor]:
    """PRL(G) with Opacus's gradient of every example, in one pass."""
    wrapped, optimizer = GradSampleModule(network, loss_reduction="sum"), _adam(network)

    def step():
        loss = functional.cross_entropy(wrapped(x), y, reduction="sum")
        loss.backward()
        parameters = list(network.parameters())
        norms = torch.stack([p.grad_sample.flatten(1).norm(dim=1) for p in parameters]).norm(dim=0)
        weights = _weights(norms, kept)
        for p in parameters:
            p.grad = torch.tensordot(weights, p.grad_sample, dims=1)
        optimizer.step()
        wrapped.zero_grad(set_to_none=True)  # also removes the gradients of the examples
        return loss

    return step


def ghost_step(network: nn.Module, x: torch.Tensor, y: torch.Tensor, kept: int) -> Callable[[], torch.Tensor]:
    """PRL(G) with Opacus's ghost clipping: a backward pass for the norms, another for the weighted loss."""
    wrapped = GradSampleModuleFastGradientClipping(network, loss_reduction="sum", use_ghost_clipping=True)
    optimizer = _adam(network)

    def step():
        losses = functional.cross_entropy(wrapped(x), y, reduction="none")
        losses.sum().backward(retain_graph=True)
        weights = _weights(wrapped.get_norm_sample(), kept)
        optimizer.zero_grad()
        wrapped.disable_hooks()
        loss = _update(weights @ losses, optimizer)
        wrapped.enable_hooks()
        return loss

    return step


def import_authors(folder: pathlib.Path | str) -> list[types.ModuleType]:
    """The authors' modules `[loss, model]`.

    Raises:
        FileNotFoundError: if the folder is not a checkout of github.com/illidanlab/PRL.
    """
    folder = pathlib.Path(folder)
    for name in ("loss.py", "model.py", "torchdp"):
        if not (folder / name).exists():
            raise FileNotFoundError(
                f"--authors_dir={str(folder)!r} has no {name}; give a checkout of github.com/illidanlab/PRL."
            )
    # model.py imports torchvision, but its CNN does not use it.
    torchvision: Any = types.ModuleType("torchvision.models")
    torchvision.resnet18 = None
    for name in ("torchvision", "torchvision.models"):
        sys.modules.setdefault(name, torchvision)
    sys.path.insert(0, str(folder))  # where loss.py finds torchdp
    try:
        return [_import_file(folder / name) for name in ("loss.py", "model.py")]
    finally:
        sys.path.remove(str(folder))


def gpu_peak() -> int | None:
    """PyTorch's peak memory on the GPU in bytes, or None without a GPU."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None


def _device():
    return "cuda" if torch.cuda.is_available() else "cpu"


def _adam(network):
    return torch.optim.Adam(network.parameters(), lr=0.001, fused=True)


def _weights(norms, kept):
    """`[n]`: 1 / kept for the examples with the lowest norms, 0 for the others."""
    return torch.zeros_like(norms).scatter(0, norms.topk(kept, largest=False).indices, 1 / kept)


def _update(loss, optimizer):
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach()


def _authors_step(case, x, y, authors_dir):
    """Their training loop around their `loss_prl_l`: two networks that do not teach each other."""
    loss, model = import_authors(authors_dir)
    if not torch.cuda.is_available():
        torch.Tensor.cuda = lambda self, *args, **kwargs: self
    networks = [model.CNN(3, OUTPUTS).to(_device()) for _ in range(2)]
    optimizers = [torch.optim.Adam(network.parameters(), lr=0.001) for network in networks]
    is_clean, indices = torch.ones(_DATASET_SIZE).numpy(), torch.arange(len(y)).numpy()

    def step():
        with torch.no_grad():  # the training accuracy that they log
            for network in networks:
                functional.softmax(network(x), dim=1).argmax(1).eq(y).sum().item()
        *losses, _, _ = loss.loss_prl_l(x, *networks, y, case.epsilon, indices, is_clean, 1.0, OUTPUTS)
        for optimizer, network_loss in zip(optimizers, losses):
            _update(network_loss, optimizer)
        return losses[0].detach()

    return step, networks[0]


def _import_file(path):
    spec = importlib.util.spec_from_file_location(f"authors_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
