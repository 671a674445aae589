"""Networks with several outputs: the target, loss and weight of each prediction."""

import typing
from collections.abc import Sequence
from typing import Any

import keras

from prl_keras.keras_gaps.internals import compile_config

_KINDS = (list, tuple, dict)


class Output(typing.NamedTuple):
    """One output that has a loss.

    Attributes:
        y_true, y_pred: Targets and predictions.
        loss: A `keras.losses.Loss` or a function.
        weight: The loss weight.
        index: Its place in `keras.tree.flatten(y_pred)`.
        sample_weight: The user's weights for it, or None.
    """

    y_true: Any
    y_pred: Any
    loss: Any
    weight: float
    index: int  # type: ignore[assignment]
    sample_weight: Any = None


class OutputLosses:
    """The losses of several outputs. An example is ranked by their weighted sum.

    Args:
        loss: As for `keras.Model.compile`: one for all the outputs, or a list or a dict of them. An output
            whose loss is None or missing from the dict has no loss.
        loss_weights: A list or a dict of numbers, or None for 1 each.
        names: The names of the outputs in their order, which map dicts to a list of outputs.

    Raises:
        ValueError: if the losses have different reductions.
    """

    def __init__(self, loss: Any, loss_weights: Any = None, names: Sequence[str] | None = None) -> None:
        self.loss = keras.tree.map_structure(keras.losses.get, loss)
        self.loss_weights, self.names = loss_weights, None if names is None else tuple(names)
        reductions = {_reduction(part) for part in keras.tree.flatten(self.loss) if part is not None}
        if len(reductions) != 1:
            raise ValueError(
                f"loss={loss!r}: the losses of all the outputs need one reduction, these have "
                f"{', '.join(sorted(map(str, reductions))) or 'none'}."
            )
        (self.reduction,) = reductions

    def split(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> list[Output]:
        """The outputs that have a loss, in the order of `keras.tree.flatten(y_pred)`.

        Args:
            y_true, y_pred: Structures of tensors, arrays, or other values with a shape.
            sample_weight: One for all the outputs, a structure of them, or None.

        Raises:
            ValueError: with the given keys and the expected ones.
        """
        losses = losses_of(self, y_pred)
        weights = self.pack(self.loss_weights, y_pred, "loss_weights")
        given = self.pack(sample_weight, y_pred, "sample_weight")
        has_loss = [loss is not None for loss in losses]
        if isinstance(y_true, (list, tuple)) and len(y_true) == sum(has_loss) < len(losses):
            targets: Any = iter(y_true)  # as in Keras: only for outputs with a loss
            targets = [next(targets) if has else None for has in has_loss]
        elif isinstance(y_true, _KINDS):
            targets = self.pack(y_true, y_pred, "y")
        else:
            targets = [y_true if len(losses) == 1 else None] * len(losses)
        predictions = keras.tree.flatten_with_path(y_pred)
        outputs = []
        for index, (y, loss, weight) in enumerate(zip(targets, losses, weights)):
            path, prediction = predictions[index]
            if isinstance(loss, _KINDS):
                raise ValueError(f"The output {self._show(path)} has several losses; give one.")
            if loss is not None and y is None:
                raise ValueError(
                    f"The output {self._show(path)} has a loss but no targets: y is {_keys(y_true)}, and the "
                    f"outputs are {', '.join(self._show(path) for path, _ in predictions)}."
                )
            if loss is not None:
                weight = 1.0 if weight is None else weight
                outputs.append(Output(y, prediction, loss, weight, index, given[index]))
        return outputs

    def pack(self, structure: Any, y_pred: Any, what: str) -> list[Any]:
        """The entry of `structure` (one for all outputs, a list or a dict) for each output, a flat list."""
        paths = [path or (0,) for path, _ in keras.tree.flatten_with_path(y_pred)]
        tops = order = list(dict.fromkeys(path[0] for path in paths))
        if isinstance(structure, dict) and isinstance(tops[0], int):
            tops = list(self.names or ())
        elif isinstance(structure, (list, tuple)):
            tops = list(range(len(tops)))
        if isinstance(structure, _KINDS):
            given = list(structure) if isinstance(structure, dict) else list(range(len(structure)))
            if not set(given) <= set(tops) or (isinstance(structure, list) and len(given) < len(tops)):
                raise ValueError(
                    f"{what} is {_keys(structure)}; the outputs are "
                    f"{', '.join(map(repr, tops)) or 'unnamed'}."
                )
        return [_follow(structure, (tops[order.index(path[0])], *path[1:])) for path in paths]

    def _show(self, path):
        if self.names and len(path) == 1 and isinstance(path[0], int):
            return repr(self.names[path[0]])
        return repr("/".join(map(str, path)))


def loss_of(model: Any, y_pred: Any) -> Any:
    """The compiled loss of a model for real or symbolic predictions; `OutputLosses` for several outputs."""
    if not keras.tree.is_nested(y_pred) and not keras.tree.is_nested(model.loss):
        return keras.losses.get(model.loss)
    names = getattr(model, "output_names", None)
    return OutputLosses(model.loss, loss_weights_of(model), names)


def loss_weights_of(model: keras.Model) -> Any:
    """The loss weights that a model was compiled with."""
    return compile_config(model).config.get("loss_weights")


def split(loss: Any, y_true: Any, y_pred: Any, sample_weight: Any = None) -> list[Output]:
    """`OutputLosses.split`; for a single loss its only `Output`, with weight 1."""
    if isinstance(loss, OutputLosses):
        return loss.split(y_true, y_pred, sample_weight)
    if keras.tree.is_nested(y_pred) or keras.tree.is_nested(loss):
        return OutputLosses(loss).split(y_true, y_pred, sample_weight)
    return [Output(y_true, y_pred, loss, 1.0, 0, sample_weight)]


def losses_of(loss: Any, y_pred: Any) -> list[Any]:
    """The loss of each entry of `keras.tree.flatten(y_pred)`; None if an output has no loss."""
    return loss.pack(loss.loss, y_pred, "loss") if isinstance(loss, OutputLosses) else [loss]


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


def _follow(structure, path):
    """The entry at a path, or one above it that covers it; None if there is no entry."""
    for key in path:
        if not isinstance(structure, _KINDS):
            return structure
        if isinstance(structure, dict) and key not in structure:
            return None
        structure = structure[key]
    return structure


def _reduction(loss):
    return getattr(loss, "reduction", "sum_over_batch_size")


def _keys(structure):
    if isinstance(structure, dict):
        return "a dict of " + ", ".join(map(repr, structure))
    return f"a list of {len(structure)}" if isinstance(structure, (list, tuple)) else "one array"
