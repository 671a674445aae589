"""What a subclassed network defines beside `call`: losses, metrics, steps.

Keras calls these methods of the model that `fit` was called on, not those of a network inside it.
"""

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import keras

_LENT = ("_compile_loss", "loss", "optimizer")  # what Keras's `compile` sets, and a `compute_loss` may use
_NOT_USED = ("train_step", "test_step")


def defines(model: keras.Model, method: str) -> bool:
    """Whether the model has its own version of a method of `keras.Model`."""
    found = getattr(model, method)
    return getattr(found, "__func__", found) is not getattr(keras.Model, method)


def compute_loss(network: keras.Model, model: keras.Model, *batch: Any, training: bool) -> Any:
    """The loss by the network's `compute_loss`, with what `model` was compiled with.

    Args:
        network: A network of `model`; it may be the model itself.
        *batch: `x, y, y_pred, sample_weight`.
        training: Not passed to a method that does not take it.
    """
    with _compiled_as(network, model):
        return network._compute_loss(*batch, training=training)


def compute_metrics(network: keras.Model, *batch: Any) -> dict[str, Any]:
    """The logs of the network's own `compute_metrics`, for `x, y, y_pred, sample_weight`; else no logs."""
    return network.compute_metrics(*batch) if defines(network, "compute_metrics") else {}


def own_metrics(network: keras.Model) -> list[keras.metrics.Metric]:
    """The metrics that a network holds, without those of its own `compile` and of its layers."""
    is_own = type(network).metrics is not keras.Model.metrics
    compiled = [
        network._loss_tracker,
        network._compile_metrics,
        *getattr(network._compile_loss, "metrics", ()),
    ]
    known = {id(metric) for metric in compiled}
    return [m for m in (network.metrics if is_own else network._metrics) if id(m) not in known]


def warn_of_unused(network: keras.Model) -> None:
    """Warns about steps of a network that training in another model does not call."""
    unused = [method for method in _NOT_USED if defines(network, method)]
    if unused:
        warnings.warn(
            f"{type(network).__name__} has its own {' and '.join(unused)}, which RobustModel and "
            "CoTeachingModel do not call: they have their own steps. Write what it does into call, "
            "compute_loss, compute_metrics or predict_step, which they do call.",
            stacklevel=5,
        )


@contextlib.contextmanager
def _compiled_as(network: keras.Model, model: keras.Model) -> Iterator[None]:
    """Lends the compiled loss and optimizer of `model` to a network that is not compiled so."""
    before = {name: network.__dict__[name] for name in _LENT if name in network.__dict__}
    network.__dict__.update({name: model.__dict__[name] for name in _LENT if name in model.__dict__})
    try:
        yield
    finally:
        for name in _LENT:
            network.__dict__.pop(name, None)
        network.__dict__.update(before)
