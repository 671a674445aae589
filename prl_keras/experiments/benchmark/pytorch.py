"""The 9-layer CNN's training step in PyTorch: plain and PRL(L), eager or by `torch.compile`.

It imports nothing of the project, so that it can also run as a program of its own, without TensorFlow: where
both are built for a GPU, they do not always bear each other in one process, and they share out its memory.

    python prl_keras/experiments/benchmark/pytorch.py '{"batch_size": 128, "precision": "bfloat16"}'

The argument holds the arguments of `measure` as JSON, and the last line of the output what it returns.
"""

import json
import math
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional

CHANNELS, SIZE, OUTPUTS = 3, 32, 10  # CIFAR-10's images and classes
_PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def measure(
    batch_size: int = 128,
    norm: str = "batch",
    precision: str = "float32",
    is_compiled: bool = False,
    rounds: int = 5,
    least_seconds: float = 0.2,
) -> dict[str, Any]:
    """Times the step of plain training on a random batch.

    Args:
        norm: "batch" or "group".
        precision: "float32", on a GPU TF32 as in TensorFlow; or "bfloat16", by `torch.autocast`.
        is_compiled: Whether `torch.compile` compiles the network.
        least_seconds: Of each of the rounds.

    Returns:
        dict: `seconds` per step, a list with one for each round; `first_seconds` of the first step;
        `peak`, the peak memory of a step on a GPU in bytes; `device`; `parameters`; `version` of PyTorch.
    """
    prepare()
    network = cnn9(norm).to(device(), memory_format=torch.channels_last)
    images = torch.randn(batch_size, CHANNELS, SIZE, SIZE, device=device())
    x = images.to(memory_format=torch.channels_last)
    y = torch.randint(OUTPUTS, (batch_size,), device=device())
    step = standard_step(torch.compile(network) if is_compiled else network, x, y, batch_size, precision)
    first_seconds = _seconds(step, 1)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    count = max(1, math.ceil(least_seconds / _seconds(step, 1)))
    return {
        "seconds": [_seconds(step, count) / count for _ in range(rounds)],
        "first_seconds": first_seconds,
        "peak": gpu_peak(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
        "parameters": sum(p.numel() for p in network.parameters()),
        "version": torch.__version__,
    }


def prepare() -> None:
    """Sets the seed, and lets a GPU multiply in TF32, as TensorFlow does."""
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")  # convolutions have TF32 by default


def cnn9(norm: str) -> nn.Sequential:
    """`networks.cnn9` in PyTorch, for images `[n, 3, height, width]` and ten classes."""
    parts, channels = [], CHANNELS
    for filters, padding in [(128, 1)] * 3 + [(256, 1)] * 3 + [(512, 0), (256, 0), (128, 0)]:
        parts.append(nn.Conv2d(channels, filters, 3, padding=padding))
        parts.append(nn.BatchNorm2d(filters) if norm == "batch" else nn.GroupNorm(32, filters))
        parts.append(nn.LeakyReLU(0.01))
        channels = filters
    for end in (18, 9):  # after the sixth and the third convolution
        parts[end:end] = [nn.MaxPool2d(2), nn.Dropout2d(0.25)]
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, OUTPUTS))


def standard_step(
    network: nn.Module, x: torch.Tensor, y: torch.Tensor, kept: int, precision: str = "float32"
) -> Callable[[], torch.Tensor]:
    """A function that takes a step of plain training and returns the loss. The other steps are alike."""
    del kept
    optimizer = adam(network)

    def step():
        with _autocast(precision):
            loss = functional.cross_entropy(network(x), y)
        return update(loss, optimizer)

    return step


def prl_l_step(network: nn.Module, x: torch.Tensor, y: torch.Tensor, kept: int) -> Callable[[], torch.Tensor]:
    """PRL(L) as one would write it. One forward pass suffices: the logits' gradient is softmax - one-hot."""
    optimizer = adam(network)
    targets = functional.one_hot(y, OUTPUTS)

    def step():
        logits = network(x)
        norms = torch.linalg.vector_norm(logits.detach().softmax(1) - targets, dim=1)
        chosen = norms.topk(kept, largest=False).indices
        return update(functional.cross_entropy(logits[chosen], y[chosen]), optimizer)

    return step


def gpu_peak() -> int | None:
    """PyTorch's peak memory on the GPU in bytes, or None without a GPU."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None


def device() -> str:
    """The device's name in PyTorch."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def adam(network: nn.Module) -> torch.optim.Optimizer:
    """Adam with the benchmark's learning rate, in its fastest form."""
    return torch.optim.Adam(network.parameters(), lr=0.001, fused=True)


def update(loss: torch.Tensor, optimizer: torch.optim.Optimizer) -> torch.Tensor:
    """Takes the step that minimizes the loss, and returns the loss."""
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach()


def _autocast(precision):
    if precision not in _PRECISIONS:
        raise ValueError(f"precision={precision!r} must be one of {', '.join(_PRECISIONS)}.")
    return torch.autocast(device(), _PRECISIONS[precision], enabled=precision != "float32")


def _seconds(step, count):
    start = time.perf_counter()
    for _ in range(count):
        loss = step()
    loss.item()  # waits for the device
    return time.perf_counter() - start


if __name__ == "__main__":
    print(json.dumps(measure(**json.loads(sys.argv[1]))))
