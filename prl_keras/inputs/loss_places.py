"""Which loss goes with which part of the predictions, as Keras reads the `loss` of `compile`.

One loss that is given by itself goes with each output. A loss within a list or a dict goes with the whole
entry at its place, also if this entry is itself a tuple or a dict. Several losses for one output are added.
"""

import typing
from collections.abc import Iterator, Sequence
from typing import Any

import keras

KINDS = (list, tuple, dict)


class Place(typing.NamedTuple):
    """One loss and what it is computed from.

    Attributes:
        path: The keys that lead to its part of the predictions; empty for all of them.
        loss: A `keras.losses.Loss` or a function.
        weight: The loss weight, or None for 1.
    """

    path: tuple[Any, ...]
    loss: Any
    weight: Any


class _Weighted:
    """A loss and its weight as one leaf of a structure."""

    def __init__(self, loss: Any, weight: Any) -> None:
        self.loss, self.weight = loss, weight


def places(loss: Any, loss_weights: Any, y_pred: Any, names: Sequence[str] | None = None) -> list[Place]:
    """The losses of a model in the order in which Keras adds them.

    Args:
        loss, loss_weights: As for `keras.Model.compile`, with losses from `keras.losses.get`.
        y_pred: The predictions, a structure of values with a shape.
        names: The names of the outputs in their order, or None.

    Raises:
        ValueError: for losses or weights that do not fit the predictions.
    """
    loss, loss_weights = plain(loss), plain(loss_weights)
    if isinstance(loss, dict) and not isinstance(y_pred, dict):
        check_keys(loss, names or (), "loss")
        if isinstance(loss_weights, dict):
            check_keys(loss_weights, names or (), "loss_weights")
            loss_weights = [loss_weights.get(name) for name in names or ()]
        loss = [loss.get(name) for name in names or ()]
    weighted = _with_weights(loss, loss_weights)
    if not keras.tree.is_nested(weighted):
        paths = [path for path, _ in keras.tree.flatten_with_path(y_pred)] if is_nested(y_pred) else [()]
        return [Place(path, weighted.loss, weighted.weight) for path in paths]
    return list(_walk(weighted, y_pred, ()))


def is_nested(structure: Any) -> bool:
    """Whether this is a list, a tuple or a dict."""
    return isinstance(structure, KINDS)


def plain(structure: Any) -> Any:
    """The structure in plain lists, tuples and dicts, in place of the ones in which Keras tracks changes."""
    if isinstance(structure, dict):
        return {key: plain(value) for key, value in structure.items()}
    if isinstance(structure, (list, tuple)):
        return (tuple if isinstance(structure, tuple) else list)(map(plain, structure))
    return structure


def at(structure: Any, path: Sequence[Any]) -> Any:
    """The entry at a path, or one above it that covers it; None if there is no entry."""
    for key in path:
        if not is_nested(structure):
            return structure
        has_key = key in structure if isinstance(structure, dict) else key in range(len(structure))
        structure = structure[key] if has_key else None
    return structure


def check_keys(structure: Any, keys: Sequence[Any], what: str) -> None:
    """Rejects a list or a dict with an entry for which there is no output (ValueError)."""
    if not set(keys_of(structure)) <= set(keys):
        shown = ", ".join(map(repr, keys)) or "unnamed"
        raise ValueError(f"{what} is {describe(structure)}; the outputs are {shown}.")


def keys_of(structure: Any) -> list[Any]:
    """The keys of a list, a tuple or a dict."""
    return list(structure) if isinstance(structure, dict) else list(range(len(structure)))


def describe(structure: Any) -> str:
    """A structure in error messages."""
    if isinstance(structure, dict):
        return "a dict of " + ", ".join(map(repr, structure))
    return f"a list of {len(structure)}" if isinstance(structure, (list, tuple)) else "one array"


def _with_weights(loss, loss_weights):
    """The losses as `_Weighted`; as in Keras, weights in another structure go by position."""
    losses, weights = keras.tree.flatten(loss), keras.tree.flatten(loss_weights)
    if loss_weights is None:
        weights = [None] * len(losses)
    if len(losses) != len(weights):
        raise ValueError(
            f"loss_weights={loss_weights!r} has {len(weights)} entries for {len(losses)} losses. Give one "
            "weight for each loss, in the structure of the losses."
        )
    pairs = [None if each is None else _Weighted(each, weight) for each, weight in zip(losses, weights)]
    return keras.tree.pack_sequence_as(loss, pairs)


def _walk(weighted: Any, y_pred: Any, path: tuple[Any, ...]) -> Iterator[Place]:
    """The places of the losses for the part `y_pred` of the predictions, which is at `path`."""
    is_flat = isinstance(weighted, (list, tuple)) and not any(map(is_nested, weighted))
    if is_flat and len(weighted) == len(keras.tree.flatten(y_pred)):  # as in Keras: one for each output
        weighted = keras.tree.pack_sequence_as(y_pred, list(weighted))
    if weighted is None:
        return
    if isinstance(weighted, _Weighted):
        yield Place(path, weighted.loss, weighted.weight)
    elif any(isinstance(weighted, kind) and isinstance(y_pred, kind) for kind in KINDS):
        check_keys(weighted, keys_of(y_pred), "loss")
        for key in keys_of(weighted):
            yield from _walk(weighted[key], y_pred[key], (*path, key))
    elif isinstance(weighted, dict):
        raise ValueError(
            f"loss is {describe(weighted)}, and the outputs at this place are {describe(y_pred)}. Give the "
            "losses in the structure of the outputs."
        )
    else:  # several losses of one output
        for each in weighted:
            yield from _walk(each, y_pred, path)
