"""Which examples did training suspect and drop, and when? Recorded during training."""

import pathlib
import typing
import warnings
import zipfile
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from prl_keras.files import replacing
from prl_keras.inputs import class_labels
from prl_keras.inputs.batches import batches
from prl_keras.inputs.fingerprints import fingerprints, strides_for
from prl_keras.keras_gaps.replicas import counter

_FEW = 64  # numbers of an example's inputs to hash, if they tell all the examples apart
_LARGEST = float(np.finfo(np.float16).max)
_OTHER = "{} is the record of other data or another kind of model; remove it, or take another path."


class _Damaged(ValueError):
    """A file that cannot be read."""


class SelectionRecord(keras.callbacks.Callback):
    """Records the score, probability and selection of each example during training, for `prl_keras.audit`.

    It records the scores and predictions that the training step computes anyway, with the network's weights
    at that step (results/audit compares rankings).

    Examples are identified by a hash of their content (`fingerprints`), so the pipeline may shuffle.
    Augmentation in the pipeline breaks this (you are warned): put it into layers of the network. Copies of an
    example share their record. With `tf.distribute` each replica records its own share.

    An example is dropped if its weight is 0: because of the rule, because it is non-finite, or, for
    `exchange="disagreement"`, because the two networks agree. Padding counts as not seen. With
    `unit="element"` the score and probability of an example are the means over its elements; it is dropped if
    all its elements are.

    The record takes at most 36 bytes per example, plus less than 9 bytes per example and epoch.

    Args:
        dataset: The training data, in the order of the record: a `tf.data.Dataset` or a
            `keras.utils.PyDataset` of batches, or a tuple of arrays `(x, y)`. It is read once.
        path: An `.npz` file, written atomically after each epoch, or None. Training that resumes at a later
            epoch (`initial_epoch`, `BackupAndRestore`) continues the file, and records later epochs anew
            (you are warned if they are more than one). Training from the first epoch replaces the file.
        batch_size: The batch size for reading a tuple of arrays here.

    Attributes:
        seen: bool `[epochs, n]`, whether an example was trained on in an epoch.
        dropped: bool `[epochs, networks, n]`, whether it was dropped for a network.
        scores: float32 `[epochs, n]`, the model's score, for a pair the mean of both networks. NaN if an
            example was not seen or is non-finite, and everywhere for `score=None`.
        given_probabilities: float16 `[epochs, n]`, the probability of the given class, for a pair the mean of
            both networks. NaN if an example was not seen or is non-finite, and without one class label each.
        margins: float16 `[epochs, n]`, the logit of the given class minus the largest other, for a pair the
            mean of both networks; NaN as in `given_probabilities`, and in files of versions without it.

    Raises:
        ValueError: for an empty data set, missing targets, or a path that is not a record's.
    """

    path: pathlib.Path | None

    def __init__(self, dataset: typing.Any, path: typing.Any = None, batch_size: int = 256) -> None:
        super().__init__()
        self.path = None if path is None else pathlib.Path(path)
        if self.path is not None and (self.path.is_dir() or not self.path.parent.is_dir()):
            raise ValueError(f"path={str(path)!r} must be a file, .npz, in a folder that exists.")
        if self.path is not None and _is_of_other_kind(self.path):
            raise ValueError(f"path={str(path)!r} is there and is no record; take another path.")
        strides: list[int] = []
        found = []
        for x, y in batches(dataset, batch_size):
            strides = strides or strides_for(x, _FEW)
            found.append((fingerprints(x, y, strides), fingerprints(x, y)))
        few, every = (np.concatenate(parts) for parts in zip(*found))
        is_enough = len(np.unique(few)) == len(np.unique(every))
        self._strides = strides if is_enough else []
        self._known, slots = np.unique(few if is_enough else every, return_inverse=True)
        self._slots = slots.astype(np.int32)
        self._scores: list[np.ndarray] = []
        self._probabilities: list[np.ndarray] = []
        self._margins: list[np.ndarray] = []
        self._epochs: list[np.ndarray] = []  # bits `[1 + networks, n]`: seen, and dropped by each network
        self._has_begun = self._has_warned = self._has_scores = self._has_probabilities = False
        self._counts: typing.Any = None

    @property
    def seen(self) -> np.ndarray:
        return self._bits()[:, 0]

    @property
    def dropped(self) -> np.ndarray:
        return self._bits()[:, 1:]

    @property
    def scores(self) -> np.ndarray:
        return np.stack(self._given(self._scores))

    @property
    def given_probabilities(self) -> np.ndarray:
        return np.stack(self._given(self._probabilities))

    @property
    def margins(self) -> np.ndarray:
        return np.stack(self._given(self._margins))

    def set_model(self, model: keras.Model) -> None:
        is_attached = model is self._model and getattr(model, "selection_record", None) is self
        if self._epochs and self._model not in (None, model):
            raise ValueError("This is the record of another model; make a new SelectionRecord for this one.")
        self.check_kind(model)
        super().set_model(model)
        if not hasattr(model, "record_selection"):
            raise ValueError(
                f"{type(model).__name__} drops no examples; SelectionRecord goes with RobustModel and "
                "CoTeachingModel."
            )
        self._has_begun = False
        if is_attached:
            return  # the traced step counts into the same variable
        with model.distribute_strategy.scope():
            self._sorted = tf.constant(self._known)
        # A row for each known example and a last one for all others.
        shape = [len(self._known) + 1, 4 + len(model.networks)]
        self._counts = counter(model.distribute_strategy, shape)
        model.record_selection(None)  # a traced step may count into another variable
        model.record_selection(self)

    def update(self, batch: typing.Any, passes: Sequence[typing.Any], selected: typing.Any) -> None:
        """Counts a batch, as an observer of the training step (`models.step_metrics.StepMetrics`)."""
        x, y = batch.given
        hashes = fingerprints(x, y, self._strides)
        rows = tf.minimum(tf.searchsorted(self._sorted, hashes), len(self._known) - 1)
        rows = tf.where(tf.gather(self._sorted, rows) == hashes, rows, len(self._known))
        scores = [p.scores for p in passes if p.scores is not None]
        of_classes = [p for p in passes if p.probabilities is not None]
        likely = [class_labels.of_given(batch.labels, p.probabilities) for p in of_classes]
        margins = [class_labels.margins(batch.labels, p.y_pred, p.loss) for p in of_classes]
        self._has_scores, self._has_probabilities = bool(scores), bool(likely)
        examples = batch.of_examples
        counted = tf.cast(examples.is_ranked, tf.float32)
        of_class = batch
        if batch.examples is not None and likely:  # an element may have no class
            of_class = batch._replace(is_ranked=batch.is_ranked & (batch.labels >= 0))
        found = ((batch, scores), (of_class, likely), (of_class, margins))
        means = [_mean_of_good([by.by_example(part) for part in parts], examples) for by, parts in found]
        kept = [batch.by_example(tf.cast(weights > 0, tf.float32)) for weights in selected.weights]
        columns = [counted, *means, *(counted * tf.cast(each == 0, tf.float32) for each in kept)]
        columns = tf.stack(columns, axis=1)
        if tf.distribute.get_strategy().num_replicas_in_sync == 1:
            self._counts.scatter_add(tf.IndexedSlices(columns, rows))
        else:
            self._counts.assign_add(tf.math.unsorted_segment_sum(columns, rows, len(self._known) + 1))

    def on_train_begin(self, logs: dict[str, typing.Any] | None = None) -> None:
        if self.model.selection_record is not self:
            raise ValueError(
                "Two SelectionRecords were given to one fit, which has one; leave out the others."
            )

    def on_epoch_begin(self, epoch: int, logs: dict[str, typing.Any] | None = None) -> None:
        if not self._has_begun:
            self._go_on_at(epoch)
            while len(self._epochs) < epoch:  # epochs without a record: nothing was seen
                self._append(np.zeros(self._counts.shape))
        self._has_begun = True
        self._counts.assign(tf.zeros_like(self._counts))

    def _go_on_at(self, epoch):
        """Keeps the epochs before `epoch`, of the file if there is one: the others are trained again."""
        if self.path is not None and self.path.exists() and not self._epochs:
            self._check_file(is_needed=bool(epoch))
        if epoch and self.path is not None and self.path.exists():
            self.load()
        if epoch and len(self._epochs) > epoch + 1:  # one more may be of a training that was killed
            warnings.warn(
                f"{self.path or 'SelectionRecord'} has {len(self._epochs)} epochs, and training goes on "
                f"after {epoch}: epochs {epoch + 1} to {len(self._epochs)} are recorded anew. To keep them, "
                "stop now and give fit a new SelectionRecord, with another path.",
                stacklevel=3,
            )
        if epoch:
            for part in (self._epochs, self._scores, self._probabilities, self._margins):
                del part[epoch:]

    def _check_file(self, is_needed):
        """Rejects the file of other data or another kind of model, which an epoch would replace."""
        try:
            self._read()
        except _Damaged:
            if is_needed:
                raise

    def on_epoch_end(self, epoch: int, logs: dict[str, typing.Any] | None = None) -> None:
        counts = tf.convert_to_tensor(self._counts).numpy()
        self._warn_of_unknown(counts[-1, 0], counts[:, 0].sum())
        self._append(counts)
        if self.path is not None and self.model.distribute_strategy.extended.should_checkpoint:
            self._write()

    def _append(self, counts):
        """Adds an epoch from the counts of each known example."""
        seen, score, probability, margin, *dropped = counts[self._slots].T
        with np.errstate(invalid="ignore"):
            self._scores.append(_finite(score / seen, self._has_scores))
            likely = probability / seen
            likely = _finite(likely, self._has_probabilities & (likely >= 0))  # else `class_labels.UNKNOWN`
            self._probabilities.append(likely.astype(np.float16))
            margin = np.clip(_finite(margin / seen, np.isfinite(likely)), -_LARGEST, _LARGEST)
            self._margins.append(margin.astype(np.float16))
        self._epochs.append(np.packbits([seen > 0, *(2 * column > seen for column in dropped)], axis=1))

    def _bits(self):
        bits = np.stack(self._given(self._epochs))
        return np.unpackbits(bits, axis=2, count=len(self._slots)).astype(bool)

    def _given(self, epochs):
        if not epochs:
            raise ValueError("Nothing is recorded yet; give this callback to fit.")
        return epochs

    def _warn_of_unknown(self, unknown, seen):
        if unknown and not self._has_warned:
            self._has_warned = True
            warnings.warn(
                f"{unknown / seen:.0%} of the examples that were trained on are not in the data of "
                "SelectionRecord, and are not recorded. Give it the data of fit, and put augmentation into "
                "layers of the network: what is changed on the way is another example.",
                stacklevel=3,
            )

    def _write(self):
        with replacing(self.path) as temporary, open(temporary, "wb") as file:
            np.savez(
                file, known=self._known, slots=self._slots, epochs=self._epochs, scores=self._scores,
                probabilities=self._probabilities, margins=self._margins,
            )  # fmt: skip

    def check_same(self, dataset: typing.Any, batch_size: int = 256) -> None:
        """Rejects a data set other than that of this record, or in another order (ValueError)."""
        found = np.concatenate([fingerprints(x, y, self._strides) for x, y in batches(dataset, batch_size)])
        if not np.array_equal(found, self._known[self._slots]):
            raise ValueError(
                f"The record is of {len(self._slots)} other examples, or in another order, than the "
                f"{len(found)} of this data set. Give the data that SelectionRecord was made with; a data "
                "set that shuffles has another order each time."
            )

    def check_kind(self, model: keras.Model) -> None:
        """Rejects a model with another number of networks (ValueError). A plain Keras model is accepted."""
        networks, recorded = getattr(model, "networks", None), self._epochs and len(self._epochs[0]) - 1
        if recorded and networks is not None and recorded != len(networks):
            kinds = {1: "a RobustModel", 2: "a CoTeachingModel"}
            raise ValueError(
                f"The record is of {kinds.get(recorded)} and the model is {kinds.get(len(networks))}: "
                "another kind of model. Give the model that was trained with the record, or make a new "
                "SelectionRecord."
            )

    def load(self, epochs: int | None = None) -> typing.Self:
        """Loads the file at `path`, its first `epochs` epochs or all, and returns this record.

        Raises:
            FileNotFoundError: if the file does not exist.
            ValueError: if there is no path, or the file is damaged or the record of other data or another
                kind of model.
        """
        if self.path is None:
            raise ValueError("This record has no file; write SelectionRecord(dataset, path).")
        if not self.path.exists():
            raise FileNotFoundError(f"{self.path} does not exist, so there is no record to load.")
        bits, numbers = self._read()
        self._epochs = list(bits[:epochs])
        self._scores, self._probabilities, self._margins = (list(part[:epochs]) for part in numbers)
        return self

    def _read(self):
        """-> (bits `[epochs, 1 + networks, ...]`, [scores, probabilities, margins]) of the file."""
        try:
            with zipfile.ZipFile(self.path) as archive, np.load(self.path) as saved:
                if archive.testzip() is not None:
                    raise ValueError("a part of it is changed")
                data, bits = (saved["known"], saved["slots"]), saved["epochs"]
                numbers = [saved["scores"], saved["probabilities"]]
                has_margins = "margins" in saved  # not in the files of earlier versions
                numbers.append(saved["margins"] if has_margins else np.full_like(numbers[1], np.nan))
            if any(part.shape != (len(bits), *data[1].shape) for part in numbers) or bits.ndim != 3:
                raise ValueError("its parts do not go together")
        except (OSError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile) as error:
            raise _Damaged(f"{self.path} is damaged: {error}. Remove it to record anew.") from error
        is_same = all(map(np.array_equal, data, (self._known, self._slots)))
        if not is_same or (self._counts is not None and bits.shape[1] != self._counts.shape[1] - 3):
            raise ValueError(_OTHER.format(self.path))
        return bits, numbers


def _finite(values, is_there):
    """The values, with NaN where they are non-finite or not there."""
    return np.where(is_there & np.isfinite(values), values, np.float32(np.nan))


def _mean_of_good(parts, batch):
    """The mean over the networks, float32 `[batch]`; non-finite for bad examples, 0 for padding or no parts.

    A division by 0 makes bad examples non-finite, so a good batch contains no infinity.
    """
    if not parts:
        return tf.zeros_like(batch.is_bad, tf.float32)
    mean = tf.add_n(parts) / (len(parts) * tf.cast(~batch.is_bad, tf.float32))
    return tf.where(batch.is_ranked, mean, 0.0)


def _is_of_other_kind(path):
    """Whether the file exists and is not a record. An empty or truncated file may have been one."""
    if not path.exists() or not path.stat().st_size:
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return not {"known.npy", "slots.npy", "epochs.npy"} <= set(archive.namelist())
    except (zipfile.BadZipFile, NotImplementedError):
        with open(path, "rb") as file:
            return file.read(2) != b"PK"
