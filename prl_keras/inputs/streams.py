"""Checks labels and weights of data that come batch by batch, before a step uses them.

On a CPU TensorFlow rejects an out-of-range label. Under XLA or on a GPU its loss becomes NaN, and so do all
the weights after the step.
"""

import contextlib
import dataclasses
import re
import types
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from prl_keras.inputs.arrays import WEIGHTS, check_batched
from prl_keras.inputs.tensors import NeedsRows, check_rows, message_of_rows, numbers_of_rows, rows_differ

_MARK = "prl_keras found in a batch: "


@contextlib.contextmanager
def as_value_errors() -> Iterator[None]:
    """Raises errors of these checks from the threads that read the data as `ValueError`."""
    try:
        yield
    except tf.errors.OpError as error:
        found = re.search(_MARK + r"(.*?\.)(?: *[\]\n]|$)", error.message)
        if not found:
            raise
        raise ValueError(found[1].replace("\\'", "'")) from None  # TensorFlow escapes quotes


def checked(x: Any, labels_of: Callable[[Any], list[Any]], needs: NeedsRows | None = None) -> Any:
    """The data `x` of `fit`; reading an invalid batch from them raises an error (see `as_value_errors`).

    Args:
        x: A `tf.data.Dataset`, a `keras.utils.PyDataset` or a generator of batches; anything else is
            returned unchanged.
        labels_of: Function of the targets that returns a list of `valid_labels.Labels`.
        needs: What needs each row of every input to be an example, or None.

    Raises:
        ValueError: if a Dataset gives single examples, or its class numbers are not integers.
    """
    check = _Check(labels_of, needs)
    if isinstance(x, tf.data.Dataset):
        spec = x.element_spec
        if not isinstance(spec, tuple) or len(spec) not in (2, 3):
            return x  # Keras or the check of targets rejects it
        check_batched(spec[1])
        for labels in labels_of(spec[1]):
            if isinstance(labels.y, tf.TensorSpec):
                labels.check_dtype()
        in_graph = tf.autograph.experimental.do_not_convert(check.in_graph)
        return x.map(in_graph, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    if isinstance(x, keras.utils.PyDataset):
        return _CheckedPyDataset(x, check)
    if isinstance(x, types.GeneratorType):
        return (check.in_python(batch) for batch in x)
    return x


@dataclasses.dataclass(frozen=True)
class _Check:
    labels_of: Callable[[Any], list[Any]]
    needs: NeedsRows | None

    def in_graph(self, *batch):
        """The batch, after the checks of its rows, labels and weights; part of a `tf.data` pipeline."""
        x, y, weights = (*batch, None)[:3]
        numbers = numbers_of_rows(x, y, weights)
        text = _MARK + message_of_rows(numbers, self.needs)
        shown = tf.strings.format(text, [n for found in numbers.values() for n in found])
        asserts = [tf.debugging.Assert(tf.math.logical_not(rows_differ(numbers, self.needs)), [shown])]
        for labels in self.labels_of(y):
            if isinstance(labels.y, tf.Tensor) and (labels.y.dtype.is_floating or labels.y.dtype.is_integer):
                values = tf.cast(labels.y, tf.float32 if labels.is_shares else tf.int64)
                asserts.append(_assert_none(labels.y, labels.is_bad(values), labels.message("{}")))
        for weight in keras.tree.flatten(weights):
            if isinstance(weight, tf.Tensor) and (weight.dtype.is_floating or weight.dtype.is_integer):
                values = tf.cast(weight, tf.float32)
                is_bad = ~(tf.math.is_finite(values) & (values >= 0))
                asserts.append(_assert_none(weight, is_bad, _weight_message("{}")))
        with tf.control_dependencies(asserts):
            return x, *tf.nest.map_structure(tf.identity, batch[1:])

    def in_python(self, batch):
        """The batch, unchanged, after the same checks (ValueError)."""
        if not isinstance(batch, (tuple, list)) or len(batch) not in (2, 3):
            return batch
        try:
            check_rows(*(*batch, None)[:3], needs=self.needs)
        except ValueError as error:
            raise ValueError(f"{_MARK}{error}") from None
        for labels in self.labels_of(batch[1]):
            y = np.asarray(labels.y)
            if y.dtype != object:
                labels._replace(y=y).check_dtype()
                bad = y[labels.is_bad(y)] if y.dtype.kind in "iufb" else np.zeros(0)
                if bad.size:
                    raise ValueError(_MARK + labels.message(bad.flat[0]))
        for weights in keras.tree.flatten((*batch, None)[2]):
            weights = np.zeros(0) if weights is None else np.asarray(weights)
            if weights.dtype.kind in "fi":
                bad = weights[~(np.isfinite(weights) & (weights >= 0))]
                if bad.size:
                    raise ValueError(_MARK + _weight_message(bad.flat[0]))
        return batch


def _weight_message(value):
    return f"{WEIGHTS}; there is a {value}."


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
