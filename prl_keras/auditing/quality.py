"""How clean is the kept set? Measured during training, on examples with known true labels."""

import typing

import keras
import numpy as np
import tensorflow as tf

from prl_keras.auditing.score_examples import score_examples
from prl_keras.models.in_inference import graph_of_example_weights


class SelectionQuality(keras.callbacks.Callback):
    """Logs precision and recall of the dropped examples on a probe set, after each epoch.

    The rule weights the probe set in batches, in inference mode. Only this callback knows which labels are
    corrupted; the model never sees it. Over all the batches, with `D` the dropped examples (weight 0) and `C`
    the corrupted ones:

        kept_clean     = share of the kept examples that are not corrupted
        drop_precision = |D and C| / |D|
        drop_recall    = |D and C| / |C|

    A share of an empty set is NaN. For a pair, the mean over its networks is logged. With `unit="element"`
    the elements that count take the place of the examples.

    Args:
        x: The inputs of the probe set, arrays `[n, ...]`.
        y: Its targets `[n, ...]`, those that training uses.
        is_corrupted: bool `[n]`, which of these targets are wrong; in the shape of the labels for elements.
        batch_size: The batch size of training; the rule drops its fraction of each batch.

    Raises:
        ValueError: for an empty probe set, different lengths, or an `is_corrupted` that is not bool.
    """

    def __init__(self, x: typing.Any, y: typing.Any, is_corrupted: typing.Any, batch_size: int) -> None:
        super().__init__()
        if not len(x) == len(y) == len(is_corrupted) or len(x) == 0:
            raise ValueError(
                "x, y and is_corrupted need the same number of examples, at least 1; they have "
                f"{len(x)}, {len(y)} and {len(is_corrupted)}."
            )
        if not np.isin(is_corrupted, (0, 1)).all():
            raise ValueError(
                "is_corrupted must be bool, one value per example or element; indices become a mask by "
                "np.isin(np.arange(n), indices)."
            )
        starts = range(0, len(x), batch_size)
        with tf.device("CPU"):  # keeps the probe set out of the accelerator's memory
            self.batches = [
                tuple(tf.convert_to_tensor(part[i : i + batch_size]) for part in (x, y)) for i in starts
            ]
        self.is_corrupted = np.asarray(is_corrupted, bool)

    def on_epoch_end(self, epoch: int, logs: dict[str, typing.Any] | None = None) -> None:
        if logs is not None:
            logs.update(self.measure())

    def measure(self) -> dict[str, float]:
        """The current `kept_clean`, `drop_precision` and `drop_recall` of the model, each in [0, 1] or NaN.

        Raises:
            ValueError: if `is_corrupted` does not have one value for each label that the model ranks.
        """
        per_batch = [[w.numpy() for w in graph_of_example_weights(self.model)(x, y)] for x, y in self.batches]
        weights = np.concatenate(per_batch, axis=1)  # [networks, n], of elements [networks, n, ...]
        if weights[0].size != self.is_corrupted.size:
            raise ValueError(
                f"The model weighs {weights[0].shape}, and is_corrupted has {self.is_corrupted.shape}; give "
                "one value for each of what it ranks."
            )
        counts = self._counts(weights[0].shape)
        is_corrupted = self.is_corrupted.reshape(weights[0].shape)
        shares = [_shares(kept[counts], is_corrupted[counts]) for kept in weights > 0]
        return {name: float(np.mean([share[name] for share in shares])) for name in shares[0]}

    def _counts(self, shape):
        """bool in the given shape, which elements count (are not masked); all True for examples."""
        if self.model.unit == "example" or self.model.score is None:
            return np.ones(shape, bool)
        found = [score_examples(self.model, batch, len(batch[1]), unit="element") for batch in self.batches]
        return ~np.isnan(np.concatenate(found))


def _shares(kept, is_corrupted):
    caught = np.sum(~kept & is_corrupted)
    return {
        "kept_clean": _share(np.sum(kept & ~is_corrupted), np.sum(kept)),
        "drop_precision": _share(caught, np.sum(~kept)),
        "drop_recall": _share(caught, np.sum(is_corrupted)),
    }


def _share(part, whole):
    return part / whole if whole else np.nan
