"""Bad input, refused before it can train a wrong model: what was given, what is needed, what to write."""

import typing
import warnings

import keras
import numpy as np
import tensorflow as tf

from prl_keras import outputs

_DATA = "Give (x, y) as arrays, or a tf.data.Dataset, a keras.utils.PyDataset or a generator of batches."
_SPARSE_LOSSES = (
    keras.losses.SparseCategoricalCrossentropy,
    keras.losses.CategoricalGeneralizedCrossEntropy,
)
_SPARSE_FUNCTIONS = (
    keras.losses.sparse_categorical_crossentropy,
    keras.losses.categorical_generalized_cross_entropy,
)
_BINARY_LOSSES = (keras.losses.BinaryCrossentropy, keras.losses.BinaryFocalCrossentropy)
_BINARY_FUNCTIONS = (keras.losses.binary_crossentropy, keras.losses.binary_focal_crossentropy)
_REGRESSION_FUNCTIONS = (
    keras.losses.mean_squared_error,
    keras.losses.mean_absolute_error,
    keras.losses.mean_absolute_percentage_error,
    keras.losses.mean_squared_logarithmic_error,
    keras.losses.huber,
    keras.losses.log_cosh,
)
_REGRESSION_LOSSES = (
    keras.losses.MeanSquaredError,
    keras.losses.MeanAbsoluteError,
    keras.losses.MeanAbsolutePercentageError,
    keras.losses.MeanSquaredLogarithmicError,
    keras.losses.Huber,
    keras.losses.LogCosh,
)


class BatchMixingError(ValueError):
    """A layer mixes the examples of a batch, so that no example has a gradient of its own."""


def check_no_batch_mixing(network):
    """Refuses batch normalization in training mode: PRL(G) is undefined with it.

    A frozen one (`layer.trainable = False`) uses its moving statistics and mixes nothing.

    Raises:
        BatchMixingError: that names the layers and the way out.
    """
    mixing = [
        layer.name
        for layer in network._flatten_layers()
        if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable
    ]
    if mixing:
        raise BatchMixingError(
            "score='gradient' needs the gradient of each example by itself, but batch normalization "
            f"makes an example's output depend on the whole batch. Layers: {', '.join(mixing)}. "
            "Replace them by keras.layers.GroupNormalization, freeze them (layer.trainable = False), "
            "or use score='loss_layer_gradient', which allows batch normalization."
        )


def is_sparse(loss):
    """Whether the loss takes class labels as integers."""
    return isinstance(loss, _SPARSE_LOSSES) or getattr(loss, "fn", loss) in _SPARSE_FUNCTIONS


def is_binary(loss):
    """Whether the loss takes labels 0 and 1 for each output."""
    return isinstance(loss, _BINARY_LOSSES) or getattr(loss, "fn", loss) in _BINARY_FUNCTIONS


def check_shapes(y_true, y_pred, loss):
    """Refuses targets that a loss would broadcast against the predictions.

    Raises:
        ValueError: with both shapes and the fix.
    """
    if keras.tree.is_nested(y_pred) or keras.tree.is_nested(y_true):
        raise ValueError(
            f"Targets came as {type(y_true).__name__} for predictions as {type(y_pred).__name__}. Give the "
            "targets of a network with one output as one array."
        )
    true_shape, pred_shape = tuple(np.shape(y_true)), tuple(y_pred.shape)
    if len(true_shape) == 1 and len(pred_shape) == 2 and pred_shape[1] == 1:
        raise ValueError(
            f"Targets of shape {_show(true_shape)} against predictions of shape {_show(pred_shape)}: "
            "subtracting them would broadcast to a square matrix. Write y[:, None] so that the targets "
            "have the shape of the predictions."
        )
    if is_sparse(loss):
        fits = len(true_shape) == len(pred_shape) - 1 or true_shape[-1:] == (1,)
        need = "one integer label per prediction, shape " + _show(pred_shape[:-1])
    elif getattr(loss, "__module__", "").startswith("keras."):
        fits = len(true_shape) == len(pred_shape) and all(
            None in (true, pred) or true == pred for true, pred in zip(true_shape[1:], pred_shape[1:])
        )
        need = "targets of shape " + _show(pred_shape)
    else:
        return
    if not fits:
        raise ValueError(
            f"Targets of shape {_show(true_shape)} against predictions of shape {_show(pred_shape)}: "
            f"the loss {name_of(loss)} needs {need}. Integer class labels go with "
            "SparseCategoricalCrossentropy, one-hot ones with CategoricalCrossentropy."
        )


def check_one_value_per_example(values, y_pred, loss):
    """Refuses a loss that is already reduced: a scalar cannot rank examples."""
    batch = y_pred.shape[0]
    if len(values.shape) == 0 or (None not in (batch, values.shape[0]) and values.shape[0] != batch):
        raise ValueError(
            f"The loss {name_of(loss)} must give one value per example, shape ({_show_size(batch)},), but "
            f"gave shape {_show(tuple(values.shape))}. Reduce over the last axis only, for example "
            "ops.mean(..., axis=-1), and leave the mean over the batch to Keras."
        )


def check_trainable(model):
    """Refuses a step that has nothing to train."""
    for network in model.networks:
        if not network.trainable_weights:
            raise ValueError(
                f"The network {network.name!r} has no trainable weights. Set network.trainable = True "
                "(and compile again), or use evaluate."
            )


def check_rule_gave_one_weight_each(rule, weights):
    """Refuses a rule whose result is not a vector over the batch."""
    if len(weights.shape) != 1:
        raise ValueError(
            f"The rule {rule!r} must give one weight per example, shape (batch,), but gave shape "
            f"{_show(tuple(weights.shape))}."
        )


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
    bad = y < 0 if classes is None else (y < 0) | (y >= classes)
    if ignored is not None:
        bad &= y != ignored
    if bad.any():
        index = int(np.argmax(bad.reshape(len(y), -1).any(axis=1)))
        value = y.reshape(len(y), -1)[index].tolist()
        raise ValueError(
            f"Class labels must be at least 0{largest_label(classes)}; y[{index}] is "
            f"{value[0] if len(value) == 1 else value}."
            " Renumber the labels from 0, or give the network more outputs."
        )


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


def check_compiled(model):
    """Refuses a model that was not compiled with a loss."""
    if not model.compiled or getattr(model, "loss", None) is None:
        raise ValueError(
            f"{type(model).__name__} ranks examples by their loss and was compiled without one. Write "
            "model.compile(optimizer='adam', loss=...) with a Keras loss before training."
        )
    keras.tree.map_structure(keras.losses.get, model.loss)


def check_targets_given(y):
    """Refuses a batch without targets."""
    if y is None:
        raise ValueError("The data has no targets y; give (x, y) or (x, y, sample_weight).")


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
    if x is None or (isinstance(x, list) and not all(hasattr(array, "shape") for array in arrays)):
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
        if is_sparse(part.loss)
    ]


def check_weight_shape(weight_shape, loss_shape):
    """Refuses a user's weights that Keras would broadcast against the losses `[batch, ...]`."""
    padded = (*loss_shape, *[1] * (len(weight_shape) - len(loss_shape)))
    if not all(size in (None, 1, have) or have is None for size, have in zip(weight_shape, padded)):
        raise ValueError(
            f"sample_weight of shape {_show(weight_shape)} does not go with losses of shape "
            f"{_show(loss_shape)}: give one weight for each example, or one for each of its losses."
        )


def check_no_masks(predictions):
    """Refuses masks of several outputs, which Keras would divide each by its own number of values."""
    if any(getattr(y_pred, "_keras_mask", None) is not None for y_pred in predictions):
        raise ValueError(
            "With several outputs, of which one is masked, neither recompute=True nor several replicas give "
            "the step of one device. Leave recompute=False and one replica, or give weights for each step."
        )


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


def check_pair(network_a, network_b):
    """Refuses two networks that are not two, or cannot be compared."""
    if network_a is network_b:
        raise ValueError(
            "network_a and network_b are the same object; co-teaching needs two networks that differ "
            "in their initial weights. Build the network twice."
        )
    shared = {id(v) for v in network_a.variables} & {id(v) for v in network_b.variables}
    if shared:
        raise ValueError(
            f"network_a and network_b share {len(shared)} variables; build each from layers of its own."
        )
    weights = list(zip(network_a.trainable_weights, network_b.trainable_weights))
    if weights and all(a.shape == b.shape and np.array_equal(a, b) for a, b in weights):
        warnings.warn(
            "network_a and network_b have the same initial weights: without dropout they will stay the "
            "same and choose the same examples. Give their initializers different seeds.",
            stacklevel=4,
        )
    if network_a.built and network_b.built:
        _check_equal_shapes(*(getattr(network, "output_shape", None) for network in (network_a, network_b)))


def check_same_shapes(*predictions):
    """Refuses a pair that predicts different things, as seen from its first batch."""
    _check_equal_shapes(
        *(keras.tree.map_structure(lambda t: tuple(t.shape), y_pred) for y_pred in predictions)
    )


def _check_equal_shapes(a, b):
    if a != b:
        raise ValueError(
            f"The two networks have different output shapes, {a} and {b}; they must predict the same thing."
        )


def is_regression(loss):
    """Whether it is one of Keras's losses for real-valued targets."""
    return isinstance(loss, _REGRESSION_LOSSES) or getattr(loss, "fn", loss) in _REGRESSION_FUNCTIONS


def check_classification(loss, what):
    """Refuses a regression loss for something that compares predicted classes."""
    if is_regression(loss):
        raise ValueError(
            f"{what} compares predicted classes, and the loss {name_of(loss)} is one for regression. For "
            "regression use PRL(L): score='loss_layer_gradient' with Trim."
        )


def name_of(loss):
    return getattr(loss, "name", None) or getattr(loss, "__name__", repr(loss))


def check_scope(model):
    """Refuses networks and optimizers of different `tf.distribute` strategies.

    Raises:
        ValueError: that says what to make where.
    """
    values = [variable.value for network in model.networks for variable in network.variables]
    of_optimizer = [variable.value for variable in model.optimizer.variables]
    values += [value for value in of_optimizer if isinstance(value, tf.distribute.DistributedValues)]
    if not all(map(model.distribute_strategy.extended.variable_created_in_scope, values)):
        raise ValueError(
            "The networks, the model and its optimizer were not made in the scope of one tf.distribute "
            "strategy. Make all of them, and compile, within `with strategy.scope():`."
        )


def _show(shape):
    return "(" + ", ".join(map(_show_size, shape)) + ("," if len(shape) == 1 else "") + ")"


def _show_size(size):
    return "batch" if size is None else str(size)
