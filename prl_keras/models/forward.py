"""A network's forward pass, and the state that it changes."""

import contextlib
import functools
import typing
from collections.abc import Iterator, Sequence

import keras
import tensorflow as tf

from prl_keras.keras_gaps.internals import changed_variables, layers_of
from prl_keras.keras_gaps.other_weights import call_with
from prl_keras.keras_gaps.replicas import everywhere
from prl_keras.keras_gaps.seeds import seed_states
from prl_keras.keras_gaps.synchronized import only_examples_count, synchronized_variables
from prl_keras.scores.gradient import filled_up, first_rows


def forward(
    network: keras.Model,
    x: typing.Any,
    training: bool = True,
    weights: Sequence[tf.Tensor] | None = None,
    is_bad: tf.Tensor | None = None,
) -> typing.Any:
    """The network's predictions on `x`.

    Some layers reject an empty batch. So a replica without examples runs one row of ones, drops its
    prediction and restores the state. (Zeros may be masked, and the mean over no step is NaN.) The row does
    not count in the statistics that replicas share, and these change as on the other replicas. Nor do the
    zeros of a replica whose examples are all bad, unless those of every replica are.

    Args:
        weights: Values to use for `network.trainable_weights`; the call then changes no state.
        is_bad: bool `[batch]`, the non-finite examples, replaced in `x`; None if there are none.

    Raises:
        ValueError: for `weights` if a layer of the network would not use them.
    """
    run = network if weights is None else functools.partial(call_with, network, weights)
    inputs = keras.tree.flatten(x)
    is_dense = all(isinstance(tensor, tf.Tensor) for tensor in inputs)
    if tf.distribute.get_strategy().num_replicas_in_sync == 1 or not is_dense:
        return run(x, training=training)
    rows = tf.shape(inputs[0])[0]
    shared = {id(variable) for variable in synchronized_variables(network)}
    own = [variable for variable in changed_variables(network) if id(variable) not in shared]
    before = [(variable, tf.identity(variable.value)) for variable in own]
    counts = rows > 0
    if is_bad is not None and shared:
        is_none_good = tf.reduce_all(is_bad)
        counts = tf.logical_or(~is_none_good, tf.logical_and(everywhere(is_none_good), counts))
    with only_examples_count(network, counts):
        y_pred = run(filled_up(x, 1, value=1), training=training)
    for variable, value in before:
        variable.assign(tf.where(rows > 0, variable.value, value))
    return keras.tree.map_structure(lambda t: first_rows(t, rows), y_pred)


@contextlib.contextmanager
def state_unchanged(network: keras.Model) -> Iterator[None]:
    """Restores moving statistics, metrics and seeds on exit: only the training pass may change them.

    `keras.StatelessScope` would lose the updates of a layer whose `call` is a `tf.function`: it is traced in
    the scope without them, and is not traced again outside.
    """
    before = state_of(network)
    yield
    put_back(before)


def state_of(network: keras.Model) -> list[tuple[keras.Variable, tf.Tensor]]:
    """A list of `(variable, its value)` for all variables that a forward pass changes."""
    variables = (*seed_states([network]), *changed_variables(network))
    return [(variable, tf.identity(variable.value)) for variable in variables]


def put_back(state: Sequence[tuple[keras.Variable, tf.Tensor]]) -> None:
    """Restores the values that `state_of` returned."""
    for variable, value in state:
        variable.assign(value)


def losses_added(network: keras.Model) -> list[tuple[keras.layers.Layer, list[tf.Tensor]]]:
    """A list of `(layer, the losses that it added in the last forward pass)`.

    All replicas run the same layers, one replica after another wherever they exchange something. The layers
    hold the losses of the replica that ran last, so each pass keeps its own.
    """
    return [(layer, list(layer._losses)) for layer in layers_of(network)]


def put_back_losses(
    losses: Sequence[tuple[keras.layers.Layer, Sequence[tf.Tensor]]], factor: tf.Tensor | None = None
) -> None:
    """Restores the losses that `losses_added` returned, times `factor`, a float scalar or None for 1."""
    for layer, added in losses:
        layer._losses[:] = (
            added if factor is None else [t * tf.cast(factor, keras.ops.dtype(t)) for t in added]
        )
