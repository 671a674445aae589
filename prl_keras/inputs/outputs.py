"""Networks with several outputs or losses: the target, loss and weight of each."""

import typing
import warnings
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from prl_keras.inputs import loss_kinds
from prl_keras.inputs.loss_places import Place, at, check_keys, describe, is_nested, keys_of, places, plain
from prl_keras.inputs.shapes import with_last_axis
from prl_keras.keras_gaps.internals import compile_config


class Output(typing.NamedTuple):
    """One loss and what it is computed from.

    Attributes:
        y_true, y_pred: Targets and predictions, tensors `[batch, ...]`; for a loss of a whole tuple or dict
            of outputs a structure of them.
        loss: A `keras.losses.Loss` or a function.
        weight: The loss weight.
        path: The keys that lead to `y_pred` in all the predictions.
        sample_weight: The user's weights for it, or None.
    """

    y_true: Any
    y_pred: Any
    loss: Any
    weight: float = 1.0
    path: tuple[Any, ...] = ()
    sample_weight: Any = None


class OutputLosses:
    """The losses of several outputs, or several losses of one. An example is ranked by their weighted sum.

    Args:
        loss: As for `keras.Model.compile`: one for each output, or a list or a dict of them. An output whose
            loss is None or missing from the dict has no loss.
        loss_weights: A list or a dict of numbers, or None for 1 each.
        names: The names of the outputs in their order, which map dicts to a list of outputs.

    Raises:
        ValueError: if the losses have different reductions.
    """

    def __init__(self, loss: Any, loss_weights: Any = None, names: Sequence[str] | None = None) -> None:
        self.loss = keras.tree.map_structure(keras.losses.get, plain(loss))
        self.loss_weights, self.names = loss_weights, None if names is None else tuple(names)
        reductions = {
            loss_kinds.reduction_of(part) for part in keras.tree.flatten(self.loss) if part is not None
        }
        if len(reductions) != 1:
            raise ValueError(
                f"loss={loss!r}: the losses of all the outputs need one reduction, these have "
                f"{', '.join(sorted(map(str, reductions))) or 'none'}."
            )
        (self.reduction,) = reductions

    def places(self, y_pred: Any) -> list[Place]:
        """Which loss goes with which part of the predictions."""
        return places(self.loss, self.loss_weights, y_pred, self.names)

    def first(self, y_pred: Any) -> Any:
        """The loss of a single output. Of several, Keras 3.15 computes the first alone, and this warns."""
        found = self.places(y_pred)
        if len(found) > 1:
            warnings.warn(
                f"loss={self.loss!r}: for a network with one output Keras computes the first of its losses "
                "alone. Give one loss, a function of (y_true, y_pred) that adds what you want.",
                stacklevel=2,
            )
        return found[0].loss

    def split(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> list[Output]:
        """The losses with their targets and predictions, in the order of `places`.

        Args:
            y_true, y_pred: Structures of tensors, arrays, or other values with a shape.
            sample_weight: One for all the outputs, a structure of them, or None.

        Raises:
            ValueError: with the given keys and the expected ones.
        """
        found = self.places(y_pred)
        is_for_one = len({place.path for place in found}) == 1
        if is_nested(y_true) or not is_nested(y_pred) or is_for_one:
            targets = self._by_place(y_true, y_pred, found, "y")
        else:
            targets = [None] * len(found)
        weights = self._by_place(sample_weight, y_pred, found, "sample_weight")
        outputs = []
        for place, y, given in zip(found, targets, weights):
            if y is None:
                shown = ", ".join(self._show(path) for path, _ in keras.tree.flatten_with_path(y_pred))
                raise ValueError(
                    f"The output {self._show(place.path)} has a loss but no targets: y is "
                    f"{describe(y_true)}, and the outputs are {shown}."
                )
            if is_nested(given):
                raise ValueError(
                    f"sample_weight is {describe(given)} for the output {self._show(place.path)}, whose loss "
                    "takes the whole of it. Give one array of weights for it."
                )
            weight = 1.0 if place.weight is None else place.weight
            outputs.append(Output(y, at(y_pred, place.path), place.loss, weight, place.path, given))
        return outputs

    def _by_place(self, structure, y_pred, found, what):
        """The entry of `structure` for each place: one for all, or a list or a dict by output."""
        if not (is_nested(structure) and is_nested(y_pred)):
            return [structure] * len(found)
        keys = keys_of(y_pred)
        if isinstance(structure, (list, tuple)) and not any(map(is_nested, structure)):
            leaves = [path for path, _ in keras.tree.flatten_with_path(y_pred)]
            paths = {place.path for place in found}
            if len(structure) == len(leaves):
                structure = keras.tree.pack_sequence_as(y_pred, list(structure))
            elif len(structure) == len(paths):  # as in Keras: only for outputs with a loss
                in_order = sorted(paths, key=lambda path: [leaf[: len(path)] for leaf in leaves].index(path))
                return [structure[in_order.index(place.path)] for place in found]
            elif len(structure) < len(keys):
                raise ValueError(f"{what} is {describe(structure)}; the outputs are {keys}.")
        elif isinstance(structure, dict) and not isinstance(y_pred, dict):
            check_keys(structure, self.names or (), what)
            structure = [structure.get(name) for name in self.names or ()]
            structure = keras.tree.pack_sequence_as(y_pred, structure)
        check_keys(structure, keys, what)
        return [_in_containers(at(structure, place.path), at(y_pred, place.path)) for place in found]

    def _show(self, path):
        if self.names and len(path) == 1 and isinstance(path[0], int):
            return repr(self.names[path[0]])
        return repr("/".join(map(str, path)))


def _in_containers(structure, y_pred):
    """The structure with lists for tuples, or the reverse, as the predictions have them."""
    paths = [[path for path, _ in keras.tree.flatten_with_path(each)] for each in (structure, y_pred)]
    is_other = is_nested(structure) and is_nested(y_pred) and paths[0] == paths[1]
    return keras.tree.pack_sequence_as(y_pred, keras.tree.flatten(structure)) if is_other else structure


def loss_of(model: Any, y_pred: Any) -> Any:
    """The compiled loss of a model for real or symbolic predictions.

    `OutputLosses` for several outputs; for one output the loss itself, also if it was given in a list or a
    dict.
    """
    if not is_nested(model.loss) and not is_nested(y_pred):
        return keras.losses.get(model.loss)
    losses = OutputLosses(model.loss, loss_weights_of(model), getattr(model, "output_names", None))
    return losses if is_nested(y_pred) else losses.first(y_pred)


def loss_weights_of(model: keras.Model) -> Any:
    """The loss weights that a model was compiled with."""
    return compile_config(model).config.get("loss_weights")


def split(loss: Any, y_true: Any, y_pred: Any, sample_weight: Any = None) -> list[Output]:
    """`OutputLosses.split`; for a single loss its only `Output`, with weight 1.

    Raises:
        ValueError: for a list or a dict of targets for one output.
    """
    if not is_single(loss, y_pred):
        loss = loss if isinstance(loss, OutputLosses) else OutputLosses(loss)
        return loss.split(y_true, y_pred, sample_weight)
    if is_nested(y_true):
        raise ValueError(f"y is {describe(y_true)}, and the network has one output: give its y as one array.")
    return [Output(y_true, y_pred, loss, sample_weight=sample_weight)]


def without_lists(network: keras.Model, loss: Any, *structures: Any) -> list[Any]:
    """Targets or weights `[y]` or `(y,)` of a network with one output as `y`; all others unchanged."""
    y_pred = symbolic_outputs(network)
    if is_nested(loss if y_pred is None else y_pred):
        return list(structures)
    return [y[0] if _is_list_of_one(y) else y for y in structures]


def _is_list_of_one(y):
    return isinstance(y, (list, tuple)) and len(y) == 1 and hasattr(y[0], "shape")


def is_single(loss: Any, y_pred: Any) -> bool:
    """Whether there is one output with one loss."""
    return not (is_nested(y_pred) or is_nested(loss) or isinstance(loss, OutputLosses))


def with_last_axes(loss: Any, y_pred: Any) -> Any:
    """The predictions; those `[batch]` as `[batch, 1]` if the loss needs it (`shapes.aligned`)."""
    if all(len(t.shape) > 1 for t in keras.tree.flatten(y_pred)):
        return y_pred
    places = loss.places(y_pred) if isinstance(loss, OutputLosses) else [Place((), loss, None)]
    found = {place.path for place in places if loss_kinds.is_mean_of_entries(place.loss)}
    wide = [with_last_axis(t) if path in found else t for path, t in keras.tree.flatten_with_path(y_pred)]
    return keras.tree.pack_sequence_as(y_pred, wide)


def losses_of(loss: Any, y_pred: Any) -> list[Any]:
    """All the losses."""
    return [place.loss for place in loss.places(y_pred)] if isinstance(loss, OutputLosses) else [loss]


def symbolic_outputs(network: keras.Model) -> Any:
    """The output of a built network, a structure of KerasTensors, or None if it is unknown."""
    if not network.built:
        return None
    if isinstance(network, keras.Sequential):
        return network.outputs[0]
    try:
        return network.output
    except (AttributeError, ValueError):
        return None  # a subclass


def expected_outputs(network: keras.Model, x: Any) -> Any:
    """As `symbolic_outputs`; for a Sequential model that is not built yet, what it will give for `x`.

    Args:
        network: The network, which is not changed.
        x: An array or tensor, or a `tf.data.Dataset` of batches of one; for others only a built network's
            outputs are known.
    """
    known = symbolic_outputs(network)
    if isinstance(x, tf.data.Dataset):
        x = x.element_spec[0] if isinstance(x.element_spec, tuple) else None
    shape = getattr(x, "shape", None)
    if known is not None or not isinstance(network, keras.Sequential) or not shape:
        return known
    try:
        return keras.KerasTensor(network.compute_output_shape((None, *shape[1:])))
    except Exception:  # of any layer: the first step shows it
        return None


def symbolic_inputs(network: keras.Model) -> Any:
    """The inputs of a Sequential or Functional model, a structure of KerasTensors; None if unknown."""
    if isinstance(network, keras.Sequential):
        return network.inputs[0] if network.built and network.inputs else None
    try:
        return network.input if network.built else None
    except (AttributeError, ValueError):
        return None  # a subclass
