"""Objectives of a search whose validation labels are as wrong as its training labels.

| objective | over the validation examples, labels as given | better |
|---|---|---|
| `val_loss` | mean of the task's loss, even if the method trains on another loss | lower |
| `val_accuracy`, `val_r2_score`, ... | Keras's `evaluate` | higher |
| `val_trimmed_loss` | mean loss of the half with the lowest loss, per given class | lower |

The trimmed loss drops half for every trial. Dropping each trial's own epsilon would reward the trials that
drop most: the mean over fewer of the lowest losses is lower for any network. With half, this is the objective
of least trimmed squares, whose breakdown point is 1/2 (Rousseeuw, "Least median of squares regression", JASA
1984): while fewer than half of the examples are wrong, all the kept ones can be right. It drops half of each
given class; otherwise a network that has given up a class would have all of it dropped.

For classes the loss l is first mapped to `1 - exp(-l)`, in `[0, 1]`: for cross-entropy the probability that
the given label does not get. In a small validation part some class has more than half of its labels wrong by
chance; one cross-entropy of 7 among them outweighs all others and rewards less confident networks. The
probability is, up to a factor, the mean absolute error, which tolerates label noise (Ghosh, Kumar and Sastry,
"Robust loss functions under label noise for deep neural networks", AAAI 2017).
"""

from collections.abc import Callable, Sequence
from typing import Any

import keras_tuner
import numpy as np

from prl_keras.inputs import loss_kinds
from prl_keras.scores.loss import per_example_loss

TRIMMED_LOSS = "trimmed_loss"
_KNOWN = ("val_trimmed_loss", "val_loss", "val_accuracy", "val_r2_score")
_KEPT = 0.5  # the share of kept examples; fewer than half are wrong


def resolve_objective(objective: str | keras_tuner.Objective, metrics: Any = None) -> keras_tuner.Objective:
    """The `keras_tuner.Objective` for a name that tells whether higher is better.

    Args:
        objective: A name, or an Objective, which is returned as it is once its direction is checked.
        metrics: What the model is compiled with. A list of names and functions tells which names there are.

    Raises:
        ValueError: for a name that is not known or not reported, or a direction that looks for the worst.
    """
    if isinstance(objective, keras_tuner.Objective):
        name, given = objective.name, objective.direction
        right = [direction_of(name)] if name in _KNOWN else ["min", "max"]
        if given not in right:
            raise ValueError(f"The direction of {name} is {given!r}; write {' or '.join(map(repr, right))}.")
        return objective
    if not isinstance(objective, str) or not objective.startswith("val_"):
        raise ValueError(
            f"objective={objective!r} must be {', '.join(_KNOWN)}, or a keras_tuner.Objective of a "
            "validation metric."
        )
    direction, reported = direction_of(objective), _names(metrics)
    if reported is not None and objective not in reported:
        raise ValueError(
            f"objective={objective!r} is not reported; write one of {', '.join(reported)}, or add its metric "
            "to metrics=[...] of the hypermodel. If a layer of yours reports it, write "
            f"keras_tuner.Objective({objective!r}, {direction!r})."
        )
    return keras_tuner.Objective(objective, direction)


def _names(metrics):
    """The names of the validation metrics; None if they are not known before the model is evaluated."""
    metrics = [metrics] if isinstance(metrics, str) else metrics
    if not isinstance(metrics, (list, tuple)):
        return None
    names = [metric if isinstance(metric, str) else getattr(metric, "__name__", None) for metric in metrics]
    if None in names or any(isinstance(metric, type) for metric in metrics):
        return None  # a class names its metric itself
    return [f"val_{TRIMMED_LOSS}", "val_loss", *(f"val_{name}" for name in names)]


def direction_of(metric: str) -> str:
    """ "min" or "max", from the name of a known metric."""
    if metric.endswith("loss"):
        return "min"
    if metric.endswith(("accuracy", "r2_score")):
        return "max"
    raise ValueError(
        f"objective={metric!r} is none of {', '.join(_KNOWN)}. If it is a metric of yours, say "
        f"whether higher is better: keras_tuner.Objective({metric!r}, 'max')."
    )


def trimmed_loss(losses: np.ndarray | Sequence[float], labels: np.ndarray | None = None) -> float:
    """Mean over the lower half of each class's losses, classes weighted by their size.

    Args:
        losses: float `[n]`, n >= 1.
        labels: integers `[n]`, the given classes; None for regression: one class.

    Returns:
        float; NaN if a kept loss is NaN.
    """
    losses = np.asarray(losses, np.float64)
    classes = np.zeros(len(losses), int) if labels is None else np.asarray(labels)
    total, kept = 0.0, 0
    for label in np.unique(classes):
        lowest = np.sort(losses[classes == label])  # NaN last
        lowest = lowest[: max(1, int(_KEPT * len(lowest)))]
        total, kept = total + lowest.sum(), kept + len(lowest)
    return float(total / kept)


def noisy_metrics(
    model: Any,
    loss: Callable[..., Any],
    x: np.ndarray,
    y: np.ndarray,
    batch_size: int = 1024,
    prefix: str = "val_",
) -> dict[str, float]:
    """`{prefix + name: value}` for a trained model: the metrics of `evaluate` and the two losses above.

    Args:
        model: A compiled `keras.Model`; for a pair each loss is the mean over its networks.
        loss: The task's `keras.losses.Loss`, even if the model was trained on another loss.
        x: Array `[n, ...]`, the inputs of the validation data; or of the training data, with another prefix.
        y: Array `[n, ...]`, their labels.
        batch_size: The most examples at a time.
    """
    logs = model.evaluate(x, y, batch_size=batch_size, verbose=0, return_dict=True)
    networks = getattr(model, "networks", [model])
    predictions = [network.predict(x, batch_size=batch_size, verbose=0) for network in networks]
    losses = np.stack([per_example_loss(y, predicted, loss) for predicted in predictions])
    labels, bounded = None, losses
    if not loss_kinds.is_regression(loss):
        labels, bounded = class_labels(y), -np.expm1(-losses)
    return {
        **{f"{prefix}{name}": float(value) for name, value in logs.items()},
        f"{prefix}loss": float(np.mean(losses)),
        f"{prefix}{TRIMMED_LOSS}": trimmed_loss(np.mean(bounded, axis=0), labels),
    }


def class_labels(y: np.ndarray) -> np.ndarray | None:
    """The given class of each example, `[n]`; None if y holds no class labels."""
    y = np.asarray(y)
    if np.issubdtype(y.dtype, np.integer) and y.size == len(y):
        return y.reshape(-1)
    is_one_hot = y.ndim == 2 and y.shape[1] > 1 and np.all((y == 0) | (y == 1)) and np.all(y.sum(axis=1) == 1)
    return y.argmax(axis=1) if is_one_hot else None
