"""What a search maximizes or minimizes when the validation labels are as wrong as the training labels.

| objective | of the validation examples, labels as given | better |
|---|---|---|
| `val_loss` | mean of the task's loss, whatever loss the method trains on | lower |
| `val_accuracy`, `val_r2_score`, ... | Keras's `evaluate` | higher |
| `val_trimmed_loss` | mean loss of the half with the lowest loss, of each given class | lower |

The trimmed loss drops the same half whatever epsilon a trial trained with. Dropping each trial's own epsilon
would reward those that drop most: the mean over fewer of the lowest losses is lower, whatever the network.
With half, what remains is the objective of least trimmed squares, whose breakdown point is 1/2 (Rousseeuw,
"Least median of squares regression", JASA 1984): as long as fewer than half of the examples are wrong, those
that remain can all be right. Of each given class, since a network that has given up a class would otherwise
have all of it among the dropped.

With classes the loss l is first made `1 - exp(-l)`, in `[0, 1]`: for cross-entropy the probability that the
given label does not get. In a small validation part some class has more than half of its labels wrong by
chance; a cross-entropy of 7 for one of them outweighs all others, and rewards networks that are less sure.
The probability is the mean absolute error, up to a factor, which is tolerant of label noise (Ghosh, Kumar and
Sastry, "Robust loss functions under label noise for deep neural networks", AAAI 2017).
"""

import numpy as np

from prl_keras.inputs import loss_kinds
from prl_keras.scores.loss import per_example_loss

TRIMMED_LOSS = "trimmed_loss"
_KEPT = 0.5  # of the examples; fewer than half are wrong


def trimmed_loss(losses, labels=None):
    """Mean over the lower half of the losses, of each class, then over the classes by their size.

    Args:
        losses: float `[n]`, n >= 1.
        labels: integers `[n]`, the given classes; None for regression, all in one.

    Returns:
        float; NaN if a loss among the kept is.
    """
    losses = np.asarray(losses, np.float64)
    classes = np.zeros(len(losses), int) if labels is None else np.asarray(labels)
    total = kept = 0
    for label in np.unique(classes):
        lowest = np.sort(losses[classes == label])  # NaN last
        lowest = lowest[: max(1, int(_KEPT * len(lowest)))]
        total, kept = total + lowest.sum(), kept + len(lowest)
    return float(total / kept)


def noisy_metrics(model, loss, x, y, batch_size=1024, prefix="val_"):
    """`{prefix + name: value}` of a trained model: the metrics of `evaluate`, and the two losses above.

    Args:
        model: Compiled; a pair's losses are the mean over its networks.
        loss: The task's `keras.losses.Loss`, whatever the model was trained on.
        x, y: Arrays `[n, ...]`, the validation data; or the training data, with another prefix.
        batch_size: At most so many examples at a time.
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


def class_labels(y):
    """The given class of each example, `[n]`; None if y is no class labels."""
    y = np.asarray(y)
    if np.issubdtype(y.dtype, np.integer) and y.size == len(y):
        return y.reshape(-1)
    is_one_hot = y.ndim == 2 and y.shape[1] > 1 and np.all((y == 0) | (y == 1)) and np.all(y.sum(axis=1) == 1)
    return y.argmax(axis=1) if is_one_hot else None
