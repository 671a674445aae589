"""Checks of the arrays of `fit` before training: missing targets, invalid labels, invalid weights."""

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from prl_keras.inputs.outputs import expected_outputs
from prl_keras.inputs.tensors import is_batch
from prl_keras.inputs.valid_labels import labels_of

_DATA = "Give (x, y) as arrays, or a tf.data.Dataset, a keras.utils.PyDataset or a generator of batches."
WEIGHTS = "sample_weight must be finite and at least 0"
_WAY_OUT = "Write 0 for an example that is not to count."


def check_data(model: Any, x: Any, y: Any, may_be_empty: bool = False) -> None:
    """Checks the data of `fit` before training, as far as possible without iterating over them.

    Raises:
        ValueError: for an empty data set, missing targets, or invalid class labels.
    """
    if isinstance(x, tf.data.Dataset):
        if x.cardinality() == 0:
            raise ValueError("The data set is empty (cardinality 0); there is nothing to train on.")
        return
    arrays = keras.tree.flatten(x)
    if x is None or (isinstance(x, list) and not _is_one_for_each_input(model.networks[0], x)):
        raise ValueError(f"x is {'None' if x is None else 'a list; write np.asarray(x)'}. {_DATA}")
    arrays = [array for array in arrays if array is not None]  # an optional input
    if not arrays or not all(hasattr(array, "shape") for array in arrays):
        return  # a generator or a PyDataset: checked batch by batch
    check_targets_given(y)
    if not all(leaf is None or np.ndim(leaf) for leaf in keras.tree.flatten(y)):
        raise ValueError(f"y is a {type(y).__name__}; write np.asarray(y).")
    if not may_be_empty and 0 in [
        leaf.shape[0] for leaf in (arrays[0], *keras.tree.flatten(y)) if leaf is not None
    ]:
        raise ValueError("The data set is empty (0 examples); there is nothing to train on.")
    for labels in labels_of(model, y, expected_outputs(model.networks[0], x)):
        labels.check()


def _is_one_for_each_input(network, x):
    """Whether a list holds arrays, in any structure, and as many as the network has inputs."""
    arrays = keras.tree.flatten(x)
    inputs = getattr(network, "inputs", None) if network.built else None  # a subclass has none
    return all(array is None or hasattr(array, "shape") for array in arrays) and (
        len(arrays) == len(inputs or arrays)
    )


def check_targets_given(y: Any) -> None:
    """Rejects a batch without targets, or with ragged ones (ValueError)."""
    if y is None:
        raise ValueError("The data has no targets y; give (x, y) or (x, y, sample_weight).")
    if any(isinstance(leaf, tf.RaggedTensor) for leaf in keras.tree.flatten(y)):
        raise ValueError(
            "y is a RaggedTensor, and losses of single examples need dense targets. Write y.to_tensor(), and "
            "give the filled-up values a sample_weight of 0."
        )


def check_batched(y: Any) -> None:
    """Rejects the targets, or their specifications, of a single example in place of a batch (ValueError)."""
    for leaf in keras.tree.flatten(y):
        if leaf is not None and not is_batch(leaf):
            raise ValueError(
                "The data set gives single examples (a y without an axis), not batches. Write "
                "dataset.batch(32)."
            )


def check_weights(sample_weight: Any) -> None:
    """Rejects weights, in any structure of arrays, that are negative or non-finite (ValueError)."""
    for weights in keras.tree.flatten(sample_weight):
        weights = np.asarray(weights) if np.ndim(weights) else np.zeros(0)
        if weights.dtype.kind not in "iufb":
            continue  # bfloat16 and the like: Keras casts them
        bad = ~(np.isfinite(weights) & (weights >= 0))
        if bad.any():
            index = tuple(int(i) for i in np.argwhere(bad)[0])
            shown = ", ".join(map(str, index))
            raise ValueError(f"{WEIGHTS}; sample_weight[{shown}] is {weights[index]}. {_WAY_OUT}")


def check_class_weight(class_weight: Mapping[int, float] | None) -> None:
    """Rejects weights of classes that are negative or non-finite (ValueError)."""
    for label, weight in (class_weight or {}).items():
        if not (np.isfinite(weight) and weight >= 0):
            raise ValueError(
                f"class_weight must be finite and at least 0; that of class {label} is {weight}."
            )


def check_dense(x: Any) -> None:
    """Rejects inputs from which no single example can be taken: sparse, ragged, None (ValueError)."""
    for tensor in keras.tree.flatten(x):
        if tensor is None:
            raise ValueError(
                "score='gradient' takes each example by itself, and TensorFlow maps no input that is None. "
                "Give the optional input, or take another score."
            )
        if isinstance(tensor, (tf.SparseTensor, tf.RaggedTensor)):
            name = type(tensor).__name__
            to_dense = "tf.sparse.to_dense(x)" if name == "SparseTensor" else "x.to_tensor()"
            raise ValueError(
                f"score='gradient' takes each example by itself, which a {name} does not give. Make the "
                f"batches dense, dataset.map(lambda x, y: ({to_dense}, y)), or take another score."
            )
