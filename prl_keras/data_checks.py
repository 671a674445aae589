"""The data of `fit`, refused before they can train a wrong model: none, no targets, bad labels or weights."""

import typing

import keras
import numpy as np
import tensorflow as tf

from prl_keras import loss_kinds, outputs

_DATA = "Give (x, y) as arrays, or a tf.data.Dataset, a keras.utils.PyDataset or a generator of batches."
WEIGHTS = "sample_weight must be finite and at least 0"
_WAY_OUT = "Write 0 for an example that is not to count."


def check_data(model, x, y, may_be_empty=False):
    """Checks the data of `fit` before training, as far as they can be seen without iterating.

    Raises:
        ValueError: for an empty data set, missing targets, or bad class labels.
    """
    if isinstance(x, tf.data.Dataset):
        if x.cardinality() == 0:
            raise ValueError("The data set is empty (cardinality 0); there is nothing to train on.")
        return
    arrays = keras.tree.flatten(x)
    if x is None or (isinstance(x, list) and not _is_one_for_each_input(model.networks[0], x)):
        raise ValueError(f"x is {'None' if x is None else 'a list; write np.asarray(x)'}. {_DATA}")
    if not arrays or not all(hasattr(array, "shape") for array in arrays):
        return  # a generator or a PyDataset: seen batch by batch
    check_targets_given(y)
    if not all(leaf is None or hasattr(leaf, "shape") for leaf in keras.tree.flatten(y)):
        raise ValueError(f"y is a {type(y).__name__}; write np.asarray(y).")
    if not may_be_empty and 0 in [
        leaf.shape[0] for leaf in (arrays[0], *keras.tree.flatten(y)) if leaf is not None
    ]:
        raise ValueError("The data set is empty (0 examples); there is nothing to train on.")
    for labels in labels_of(model, y):
        check_labels(*labels)


def _is_one_for_each_input(network, x):
    inputs = getattr(network, "inputs", None) if network.built else None  # a subclass knows none
    return all(hasattr(array, "shape") for array in x) and len(x) == len(inputs or x)


def check_targets_given(y):
    """Refuses a batch without targets."""
    if y is None:
        raise ValueError("The data has no targets y; give (x, y) or (x, y, sample_weight).")


def check_labels(y, classes, ignored=None):
    """Checks all the class labels of an array before training starts.

    Args:
        y: Integer labels, an array of shape `[n]` or `[n, 1]`.
        classes: Number of classes, or None if not yet known.
        ignored: A label that the loss passes over (`ignore_class`), or None.

    Raises:
        ValueError: with the first bad index and value.
    """
    y = np.asarray(y)
    check_label_dtype(y.dtype, y.shape)
    bad = is_bad_label(y, classes, ignored)
    if bad.any():
        index = int(np.argmax(bad.reshape(len(y), -1).any(axis=1)))
        value = y.reshape(len(y), -1)[index].tolist()
        raise ValueError(
            f"Class labels must be at least 0{largest_label(classes)}; y[{index}] is "
            f"{value[0] if len(value) == 1 else value}."
            " Renumber the labels from 0, or give the network more outputs."
        )


def is_bad_label(y, classes, ignored):
    """bool in the shape of `y`, an array or a tensor of integers; the others as in `check_labels`."""
    bad = y < 0
    if classes is not None:
        bad |= y >= classes
    if ignored is not None:
        bad &= y != ignored
    return bad


def check_label_dtype(dtype, shape):
    """Refuses labels `[n, ...]` that are not integers."""
    dtype = np.dtype(dtype)
    if dtype.kind in "iu":
        return
    if dtype.kind in "USO":
        way = "Write np.unique(y, return_inverse=True)[1] to number the names."
    elif len(shape) > 1 and shape[-1] != 1:
        way = "One-hot labels go with CategoricalCrossentropy, or write np.argmax(y, axis=-1)."
    else:
        way = "Write y.astype('int64') if its values are class numbers."
    raise ValueError(f"Class labels must be integers; y has dtype {dtype}. {way}")


def largest_label(classes):
    """What an error message says of the largest label that `classes` outputs (or None) allow."""
    return "" if classes is None else f", and at most {classes - 1} for {classes} outputs"


class Labels(typing.NamedTuple):
    """Class labels of one output, how many classes it tells apart, a label passed over; None if not known."""

    y: typing.Any
    classes: int | None
    ignored: int | None


def labels_of(model, y):
    """The class labels in the targets, a list of `Labels`: those of the outputs whose loss takes integers.

    Args:
        model: A compiled `WeightedModel`.
        y: A structure of anything: arrays, tensors, specifications.
    """
    y_pred = outputs.symbolic_outputs(model.networks[0])
    if y_pred is None and (keras.tree.is_nested(y) or keras.tree.is_nested(model.loss)):
        return []  # which target goes with which loss is known in the first step
    parts = outputs.split(outputs.loss_of(model, y_pred), y, y_pred)
    return [
        Labels(
            part.y_true,
            None if part.y_pred is None else part.y_pred.shape[-1],
            getattr(part.loss, "ignore_class", None),
        )
        for part in parts
        if loss_kinds.is_sparse(part.loss)
    ]


def check_weights(sample_weight):
    """Checks all the weights of an array, or of a structure of arrays.

    Raises:
        ValueError: with the first that is negative or not finite.
    """
    for weights in keras.tree.flatten(sample_weight):
        weights = np.asarray(weights) if hasattr(weights, "shape") else np.zeros(0)
        if weights.dtype.kind not in "iufb":
            continue  # bfloat16 and the like: Keras casts them
        bad = ~(np.isfinite(weights) & (weights >= 0))
        if bad.any():
            index = tuple(int(i) for i in np.argwhere(bad)[0])
            shown = ", ".join(map(str, index))
            raise ValueError(f"{WEIGHTS}; sample_weight[{shown}] is {weights[index]}. {_WAY_OUT}")


def check_dense(x):
    """Refuses inputs of which no single example can be taken."""
    for tensor in keras.tree.flatten(x):
        if isinstance(tensor, (tf.SparseTensor, tf.RaggedTensor)):
            name = type(tensor).__name__
            to_dense = "tf.sparse.to_dense(x)" if name == "SparseTensor" else "x.to_tensor()"
            raise ValueError(
                f"score='gradient' takes each example by itself, which a {name} does not give. Make the "
                f"batches dense, dataset.map(lambda x, y: ({to_dense}, y)), or take another score."
            )
