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

    from prl_keras.experiments.benchmark import pytorch
except ImportError as error:
    raise ImportError(
        f"Peers need PyTorch and Opacus ({error}): pip install -r requirements-peers.txt"
    ) from error

gpu_peak = pytorch.gpu_peak  # as in `steps`
_DATASET_SIZE = 50_000  # the authors' loss looks up whether each example of the data set is clean


def make_work(case: Any, authors_dir: pathlib.Path | str | None = None) -> Work:
    """The `Work` of a case whose implementation is in `PEERS`: the 9-layer CNN, in PyTorch's fastest layout.

    Raises:
        ValueError: for another network.
        OSError: for the implementation "authors", if `authors_dir` is no checkout of
            github.com/illidanlab/PRL.
    """
    if case.network != "cnn9" or case.through_fit or case.precision != "float32":
        raise ValueError(f"{case} has no peer; there is the 9-layer CNN alone, not through fit, in float32.")
    torch.set_num_threads(core_count())
    pytorch.prepare()
    x, y = random_data(case.batch_size, IMAGE_SHAPE, has_classes=True)
    # The memory order is channels last; the shape is [n, c, h, w].
    device = pytorch.device()
    x, y = torch.from_numpy(x).to(device).permute(0, 3, 1, 2), torch.from_numpy(y).to(device)
    if case.implementation == "authors":
        step, network = _authors_step(case, x.contiguous(), y, authors_dir)
    else:
        network = pytorch.cnn9(case.norm).to(device, memory_format=torch.channels_last)
        make_step = {
            ("torch", "standard"): pytorch.standard_step,
            ("torch", "prl_l"): pytorch.prl_l_step,
            ("opacus", "prl_g"): gradients_step,
            ("opacus_ghost", "prl_g"): ghost_step,
        }[case.implementation, case.method]
        kept = max(1, math.floor((1 - case.epsilon) * case.batch_size + 1e-6))  # as `Trim` does
        step = make_step(network, x, y, kept)

    def run(count):
        for _ in range(count):
            loss = step()
        loss.item()  # waits for the device

    return Work(run, 1, sum(p.numel() for p in network.parameters()))


def gradients_step(
    network: nn.Module, x: torch.Tensor, y: torch.Tensor, kept: int
) -> Callable[[], torch.Tensor]:
    """PRL(G) with Opacus's gradient of every example, in one pass."""
    wrapped, optimizer = GradSampleModule(network, loss_reduction="sum"), pytorch.adam(network)

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
    optimizer = pytorch.adam(network)

    def step():
        losses = functional.cross_entropy(wrapped(x), y, reduction="none")
        losses.sum().backward(retain_graph=True)
        weights = _weights(wrapped.get_norm_sample(), kept)
        optimizer.zero_grad()
        wrapped.disable_hooks()
        loss = pytorch.update(weights @ losses, optimizer)
        wrapped.enable_hooks()
        return loss

    return step


def import_authors(folder: pathlib.Path | str) -> list[types.ModuleType]:
    """The authors' modules `[loss, model]`. Without a GPU, `Tensor.cuda`, which they call, does nothing.

    Raises:
        FileNotFoundError: if the folder is not a checkout of github.com/illidanlab/PRL.
    """
    folder = pathlib.Path(folder)
    for name in ("loss.py", "model.py", "torchdp"):
        if not (folder / name).exists():
            raise FileNotFoundError(
                f"--authors_dir={str(folder)!r} has no {name}; give a checkout of github.com/illidanlab/PRL."
            )
    if not torch.cuda.is_available():
        torch.Tensor.cuda = lambda self, *args, **kwargs: self
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


def _weights(norms, kept):
    """`[n]`: 1 / kept for the examples with the lowest norms, 0 for the others."""
    return torch.zeros_like(norms).scatter(0, norms.topk(kept, largest=False).indices, 1 / kept)


def _authors_step(case, x, y, authors_dir):
    """Their training loop around their `loss_prl_l`: two networks that do not teach each other."""
    loss, model = import_authors(authors_dir)
    networks = [model.CNN(3, OUTPUTS).to(pytorch.device()) for _ in range(2)]
    optimizers = [torch.optim.Adam(network.parameters(), lr=0.001) for network in networks]
    is_clean, indices = torch.ones(_DATASET_SIZE).numpy(), torch.arange(len(y)).numpy()

    def step():
        with torch.no_grad():  # the training accuracy that they log
            for network in networks:
                functional.softmax(network(x), dim=1).argmax(1).eq(y).sum().item()
        *losses, _, _ = loss.loss_prl_l(x, *networks, y, case.epsilon, indices, is_clean, 1.0, OUTPUTS)
        for optimizer, network_loss in zip(optimizers, losses):
            pytorch.update(network_loss, optimizer)
        return losses[0].detach()

    return step, networks[0]


def _import_file(path):
    spec = importlib.util.spec_from_file_location(f"authors_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
