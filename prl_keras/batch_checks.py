"""Labels and weights of data that come batch by batch, checked on the way, before a step sees them.

TensorFlow refuses a label that is none on a CPU; under XLA, and on a GPU, its loss is NaN and so are all
the weights after the step.
"""

import contextlib
import dataclasses
import re
import types

import keras
import numpy as np
import tensorflow as tf

from prl_keras import checks

_MARK = "prl_keras found in a batch: "


@contextlib.contextmanager
def as_value_errors():
    """What these checks find in the threads that read the data is raised as a `ValueError`."""
    try:
        yield
    except tf.errors.OpError as error:
        found = re.search(_MARK + r"(.*?\.)(?: *[\]\n]|$)", error.message)
        if not found:
            raise
        raise ValueError(found[1]) from None


def checked(x, classes, ignored, is_sparse):
    """The data `x` of `fit`, in which a bad batch is an error (see `as_value_errors`) when it is read.

    Args:
        x: A `tf.data.Dataset`, a `keras.utils.PyDataset` or a generator of batches; anything else is given
            back as it is.
        classes, ignored: As in `checks.check_labels`.
        is_sparse: Whether the targets are class labels.

    Raises:
        ValueError: if a Dataset's labels have a dtype that is not one of integers.
    """
    check = _Check(classes, ignored, is_sparse)
    if isinstance(x, tf.data.Dataset):
        spec = x.element_spec
        if not isinstance(spec, tuple) or len(spec) not in (2, 3):
            return x  # Keras or a check of targets says what it is
        if is_sparse and isinstance(spec[1], tf.TensorSpec):
            checks.check_label_dtype(spec[1].dtype.as_numpy_dtype, spec[1].shape)
        return x.map(check.in_graph, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    if isinstance(x, keras.utils.PyDataset):
        return _CheckedPyDataset(x, check)
    if isinstance(x, types.GeneratorType):
        return (check.in_python(batch) for batch in x)
    return x


def check_weights(sample_weight):
    """Checks all the weights of an array.

    Raises:
        ValueError: with the first that is negative or not finite.
    """
    if sample_weight is None or not hasattr(sample_weight, "shape"):
        return
    weights = np.asarray(sample_weight)
    if weights.dtype.kind not in "iufb":
        return  # bfloat16 and the like: Keras casts them
    bad = ~(np.isfinite(weights) & (weights >= 0))
    if bad.any():
        index = tuple(int(i) for i in np.argwhere(bad)[0])
        shown = ", ".join(map(str, index))
        raise ValueError(f"{_WEIGHTS}; sample_weight[{shown}] is {weights[index]}. {_WAY_OUT}")


_WEIGHTS = "sample_weight must be finite and at least 0"
_WAY_OUT = "Write 0 for an example that is not to count."


@dataclasses.dataclass(frozen=True)
class _Check:
    classes: int | None
    ignored: int | None
    is_sparse: bool

    def in_graph(self, *batch):
        """The batch again, once its labels and weights are checked: part of a `tf.data` pipeline."""
        x, y, weights = (*batch, None)[:3]
        asserts = []
        if self.is_sparse and isinstance(y, tf.Tensor):
            asserts.append(
                _assert_none(y, self._is_bad_label(tf.cast(y, tf.int64)), self._label_message("{}"))
            )
        if isinstance(weights, tf.Tensor) and weights.dtype.is_floating:
            is_bad = ~(tf.math.is_finite(weights) & (weights >= 0))
            asserts.append(_assert_none(weights, is_bad, _weight_message("{}")))
        with tf.control_dependencies(asserts):
            return x, *tf.nest.map_structure(tf.identity, batch[1:])

    def in_python(self, batch):
        """The batch as it is.

        Raises:
            ValueError: with a bad label or weight.
        """
        if not isinstance(batch, (tuple, list)) or len(batch) not in (2, 3):
            return batch
        y, weights = np.asarray(batch[1]) if self.is_sparse else None, (*batch, None)[2]
        if y is not None and y.dtype != object:
            checks.check_label_dtype(y.dtype, y.shape)
            bad = y[self._is_bad_label(y)]
            if bad.size:
                raise ValueError(_MARK + self._label_message(bad.flat[0]))
        weights = np.zeros(0) if weights is None else np.asarray(weights)
        if weights.dtype.kind == "f":
            bad = weights[~(np.isfinite(weights) & (weights >= 0))]
            if bad.size:
                raise ValueError(_MARK + _weight_message(bad.flat[0]))
        return batch

    def _is_bad_label(self, y):
        bad = y < 0
        if self.classes is not None:
            bad |= y >= self.classes
        if self.ignored is not None:
            bad &= y != self.ignored
        return bad

    def _label_message(self, value):
        return f"Class labels must be at least 0{checks.largest_label(self.classes)}; there is a {value}."


def _weight_message(value):
    return f"{_WEIGHTS}; there is a {value}."


def _assert_none(values, is_bad, message):
    bad = tf.boolean_mask(tf.reshape(values, [-1]), tf.reshape(is_bad, [-1]))
    first = tf.concat([bad, tf.zeros([1], values.dtype)], 0)[0]
    return tf.debugging.Assert(tf.size(bad) < 1, [tf.strings.format(_MARK + message, first)])


class _CheckedPyDataset(keras.utils.PyDataset):
    def __init__(self, dataset, check):
        super().__init__(dataset.workers, dataset.use_multiprocessing, dataset.max_queue_size)
        self.dataset, self.check = dataset, check

    @property
    def num_batches(self):
        return self.dataset.num_batches

    def __getitem__(self, index):
        return self.check.in_python(self.dataset[index])

    def on_epoch_begin(self):
        self.dataset.on_epoch_begin()

    def on_epoch_end(self):
        self.dataset.on_epoch_end()
