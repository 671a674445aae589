"""The gradient of each example, computed in one of two ways with the same result.

`layerwise` computes it layer by layer where it applies, at about the cost of a plain step. All other
networks use `tf.vectorized_map` over one-example tapes: the forward and backward pass of one example is
vectorized over the batch. In the map, layers with random numbers (dropout) get one seed per example.
Otherwise Keras's seed state would be read once, and every example of the batch would get the same mask.
"""

import functools
import typing
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from prl_keras.inputs.rows import batch_size
from prl_keras.keras_gaps.internals import (
    hidden_logits,
    mask_of,
    operations_of,
    seed_generators,
    set_hidden_logits,
    set_mask,
)
from prl_keras.scores.batch_mixing import check_no_batch_mixing, check_no_state_of_rows
from prl_keras.scores.layerwise import graph

_SAID: weakref.WeakSet[Any] = weakref.WeakSet()  # networks whose warning was given
# network -> {training: `can_be_vectorized`}
_VECTORIZED: weakref.WeakKeyDictionary[Any, dict[bool, bool]] = weakref.WeakKeyDictionary()
_BRANCHES = {"While", "StatelessWhile", "If", "StatelessIf", "Case", "StatelessCase"}
# Operations whose result has a size that depends on the values: it may differ from example to example.
_SIZED_BY_VALUES = {
    *(
        "Where",
        "Unique",
        "UniqueV2",
        "UniqueWithCounts",
        "UniqueWithCountsV2",
        "DynamicPartition",
        "ListDiff",
    ),
    *("StringSplit", "StringSplitV2", "StringNGrams", "UnicodeDecode", "UnicodeDecodeWithOffsets"),
    *("NonMaxSuppression", *(f"NonMaxSuppressionV{i}" for i in range(2, 6))),
}


class Gradients(typing.NamedTuple):
    """The result of `gradients`.

    Attributes:
        y_pred: Predictions `[batch, ...]`.
        norms: float32 `[batch]`, L2 norms over all trainable weights, without `loss_scale`.
        weighted_sum: Function of weights `[batch]` that returns `sum_i weights_i * gradient_i`, times
            `loss_scale`: a list of one tensor per trainable weight, in its shape and dtype (for an
            embedding, layer by layer, `tf.IndexedSlices` as in a plain step).
        is_whole: Whether the sum is a plain step's whole gradient. It is not if layers add losses of their
            own (`add_loss`, activity regularizers), nor if the plain gradient is sparse (embeddings):
            optimizers with state treat a sparse gradient differently.
    """

    y_pred: tf.Tensor
    norms: tf.Tensor
    weighted_sum: Callable[[tf.Tensor], list[Any]]
    is_whole: bool


def gradients(
    losses_of: Callable[[Any, Any], tf.Tensor],
    network: keras.Model,
    x: Any,
    y: Any,
    training: bool = True,
    loss_scale: float | tf.Tensor = 1.0,
) -> Gradients:
    """Norms and weighted sums of every example's gradient, in one forward and backward pass.

    Args:
        losses_of: Function of `(y_true, y_pred)` that returns the losses `[batch]`, each of one example.
        network: A Keras model whose layers treat each example separately.
        x: Inputs `[batch, ...]`, or a structure of them.
        y: Targets `[batch, ...]`, or a structure of them.
        training: Whether the network is called in training mode.
        loss_scale: Factor on each loss, for float16.

    Raises:
        BatchMixingError: if `training` and a trainable batch normalization mixes examples.
    """
    if _applies_layer_wise(network):
        return _gradients_layer_wise(losses_of, network, x, y, training, loss_scale)
    missing = []

    def one_example(example):
        y_pred, gradient, norm, left_out = _one_gradient(losses_of, network, example, training, loss_scale)
        missing.extend(left_out)
        said = [(hidden_logits(t), mask_of(t)) for t in keras.tree.flatten(y_pred)]
        first = keras.tree.map_structure(lambda t: None if t is None else t[0], [y_pred, said])
        return *first, gradient, norm

    y_pred, said, per_example, norms = _map(one_example, _examples(network, x, y, training))
    for t, (logits, mask) in zip(keras.tree.flatten(y_pred), said):
        for give, value in ((set_hidden_logits, logits), (set_mask, mask)):
            if value is not None:
                give(t, value)  # the map loses it, and Keras's losses look for it
    weighted_sum = functools.partial(_weighted_sum, per_example)
    return Gradients(y_pred, norms, weighted_sum, is_whole=not missing)


def gradient_norms(
    losses_of: Callable[[Any, Any], tf.Tensor],
    network: keras.Model,
    x: Any,
    y: Any,
    microbatch_size: int | None = None,
    training: bool = True,
    loss_scale: float | tf.Tensor = 1.0,
    by_example: bool = True,
) -> tf.Tensor:
    """Only the norms of `gradients`, float32 `[batch]`, for at most `microbatch_size` examples at a time.

    Where `layerwise` applies, memory grows with the activations and not with the gradients, so the whole
    batch is computed at once.

    With `by_example=False` the losses may look at the whole batch. An example's gradient is then the part
    of the gradient of all the losses that goes through the example's own prediction. The parts of a batch
    add up to its gradient. (Dropout draws new masks for this prediction.)
    """
    if _applies_layer_wise(network):
        return gradients(losses_of, network, x, y, training, loss_scale).norms

    if not by_example:
        y = _upstream(losses_of, network, x, y, training, loss_scale)
        losses_of = _linearized

    def one_example(example):
        return _one_gradient(losses_of, network, example, training, loss_scale)[2]

    examples = _examples(network, x, y, training)
    if not can_be_vectorized(losses_of, network, x, y, training):
        warnings.warn(
            f"{network.name!r} cannot be vectorized over the batch (recurrent layers can with unroll=True; "
            "EinsumDense and attention can on a GPU; boolean_mask and text splitting can in the data's "
            "pipeline): the gradient norms are taken one example after the "
            "other, which is slow.",
            stacklevel=2,
        )
        return tf.map_fn(one_example, examples, fn_output_signature=tf.float32)
    if microbatch_size is None:
        return _map(one_example, examples)

    given, examples = batch_size(x), filled_up(examples, 1)  # map_fn needs at least one piece
    batch = batch_size(examples)
    pieces = -(-batch // microbatch_size)
    # Static shapes for XLA: the last piece repeats the last example.
    places = tf.reshape(tf.minimum(tf.range(pieces * microbatch_size), batch - 1), [-1, microbatch_size])

    def one_piece(places):
        return _map(one_example, keras.tree.map_structure(lambda t: tf.gather(t, places), examples))

    norms = tf.map_fn(one_piece, places, parallel_iterations=1, fn_output_signature=tf.float32)
    return tf.reshape(norms, [-1])[:given]


def can_be_vectorized(
    losses_of: Callable[[Any, Any], tf.Tensor], network: keras.Model, x: Any, y: Any, training: bool = True
) -> bool:
    """Whether `tf.vectorized_map` can convert the network and returns correct numbers.

    It cannot convert the loops of recurrent layers, the branches of `tf.cond`, nor operations such as
    `tf.boolean_mask` and the splitting of strings (`_SIZED_BY_VALUES`). For EinsumDense and
    attention it turns the product of `[1, steps, p]` with a matrix into one of `[batch, 1, steps, p]`: on a
    CPU, TensorFlow 2.21 then returns wrong numbers or overwrites memory (tensorflow#117700).
    """
    known = _VECTORIZED.setdefault(network, {})
    if training not in known:
        operations = _operations_of_one(losses_of, network, x, y, training)
        on_cpu = not tf.config.list_physical_devices("GPU")
        known[training] = not any(
            operation.type in _BRANCHES | _SIZED_BY_VALUES or (on_cpu and _is_uneven_product(operation))
            for operation in operations
        )
    return known[training]


def _operations_of_one(losses_of, network, x, y, training):
    """The operations of one example's gradient."""
    seeds = [tf.TensorSpec([2], tf.int32) for _ in seed_generators(network)] if training else []
    examples = keras.tree.map_structure(lambda t: tf.TensorSpec(t.shape[1:], t.dtype), [x, y])

    @functools.partial(tf.function, autograph=False)
    def norm(x, y, seeds):
        return _one_gradient(losses_of, network, (x, y, seeds), training, 1.0)[2]

    return operations_of(norm.get_concrete_function(*examples, seeds).graph)


def _is_uneven_product(operation):
    if operation.type not in ("BatchMatMul", "BatchMatMulV2", "BatchMatMulV3"):
        return operation.type == "Einsum"
    ranks = {t.shape.rank for t in operation.inputs}
    return len(ranks) > 1 or None in ranks


def filled_up(examples: Any, rows: int | tf.Tensor, value: float = 0) -> Any:
    """Pads a structure of tensors `[batch, ...]` with `value` to at least `rows` rows."""
    missing = tf.maximum(rows - batch_size(examples), 0)

    def padded(t):
        constant = tf.cast(value, t.dtype) if value else 0
        return tf.pad(t, [[0, missing]] + [[0, 0]] * (len(t.shape) - 1), constant_values=constant)

    return keras.tree.map_structure(padded, examples)


def first_rows(y_pred: tf.Tensor, batch: int | tf.Tensor) -> tf.Tensor:
    """`y_pred[:batch]`, with the hidden logits and the mask that Keras's losses look for on it."""
    first = y_pred[:batch]
    for find, give in ((hidden_logits, set_hidden_logits), (mask_of, set_mask)):
        value = find(y_pred)
        if value is not None:
            give(first, value[:batch])
    return first


def _applies_layer_wise(network):
    """Whether `layerwise` applies; if not, warns once per network and gives the reason."""
    obstacle = graph.obstacle(network)
    if obstacle is not None and network not in _SAID:
        _SAID.add(network)
        warnings.warn(
            f"The per-example gradients of {network.name!r} are taken by tf.vectorized_map, which holds a "
            f"gradient for every example (see microbatch_size), not layer by layer: {obstacle}.",
            stacklevel=2,
        )
    return obstacle is None


def _gradients_layer_wise(losses_of, network, x, y, training, loss_scale):
    batch = batch_size(x)
    x, y = filled_up((x, y), 1)  # on an empty batch TensorFlow's convolutions return their inputs' shape
    rows = batch_size(x)
    output_gradients = functools.partial(_output_gradients, losses_of, y, loss_scale)
    y_pred, norms, sum_of_rows = graph.gradients(output_gradients, network, x, training, loss_scale)
    y_pred = first_rows(y_pred, batch)

    def weighted_sum(weights):
        return sum_of_rows(tf.pad(weights, [[0, rows - batch]]))

    return Gradients(y_pred, norms[:batch], weighted_sum, is_whole=True)


def _weighted_sum(per_example, weights):
    """An example of weight 0 adds nothing, even if its gradient is infinite."""
    shaped = [tf.reshape(tf.cast(weights, g.dtype), [-1] + [1] * (len(g.shape) - 1)) for g in per_example]
    return [tf.reduce_sum(tf.math.multiply_no_nan(g, w), axis=0) for g, w in zip(per_example, shaped)]


def _output_gradients(losses_of, y, loss_scale, y_pred):
    """-> (`_outputs` of the predictions, the gradients of the sum of the losses with respect to them).

    The losses see the whole batch, as in a plain step.
    """
    outputs = _outputs(y_pred)
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(outputs)
        losses = losses_of(y, y_pred) * loss_scale
    return outputs, tape.gradient(losses, outputs, unconnected_gradients=tf.UnconnectedGradients.ZERO)


def _outputs(y_pred):
    """What the losses depend on: the predictions, and the logits that Keras keeps of them."""
    tensors = keras.tree.flatten(y_pred)
    logits = [hidden_logits(t) for t in tensors]
    return [t for t in (*tensors, *logits) if t is not None and t.dtype.is_floating]


def _upstream(losses_of, network, x, y, training, loss_scale):
    """The gradients of a batch's losses with respect to its `_outputs`, as targets for `_linearized`."""
    batch = batch_size(x)
    x, y = filled_up((x, y), 1)
    with keras.StatelessScope():
        y_pred = network(x, training=training)
    gradients = _output_gradients(losses_of, y, loss_scale, y_pred)[1]
    precise = [t if t.dtype == tf.float64 else tf.cast(t, tf.float32) for t in gradients]
    return [(t / tf.cast(loss_scale, t.dtype))[:batch] for t in precise]


def _linearized(upstream, y_pred):
    """A loss `[batch]` whose gradient with respect to the `_outputs` is `upstream`."""
    products = [tf.cast(t, d.dtype) * d for t, d in zip(_outputs(y_pred), upstream)]
    return sum(tf.reduce_sum(t, axis=range(1, len(t.shape))) for t in products)


def _one_gradient(losses_of, network, example, training, loss_scale):
    """-> (predictions [1, ...], gradients, norm, added losses and sparse gradients) of this example."""
    x, y, seeds = example
    x, y = keras.tree.map_structure(lambda t: tf.expand_dims(t, 0), (x, y))
    # Stateless: each example starts from its own seed and does not change the network's state.
    seeded = zip(seed_generators(network), seeds)
    states = [(g.state, tf.cast(seed, g.state.dtype)) for g, seed in seeded]
    scope = keras.StatelessScope(states, collect_losses=True)
    with tf.GradientTape() as tape:
        with scope:
            y_pred = network(x, training=training)
        loss = losses_of(y, y_pred)[0] * loss_scale
    # A layer that assigns a weight in its call computes with the new value.
    new = [scope.get_current_value(weight) for weight in network.trainable_weights]
    used = [w.value if value is None else value for w, value in zip(network.trainable_weights, new)]
    gradient = tape.gradient(loss, used, unconnected_gradients=tf.UnconnectedGradients.ZERO)
    sparse = [g for g in gradient if isinstance(g, tf.IndexedSlices)]
    gradient = [tf.convert_to_tensor(g) for g in gradient]
    squares = [tf.reduce_sum(tf.square(tf.cast(g, tf.float32) / loss_scale)) for g in gradient]
    return y_pred, gradient, tf.sqrt(tf.add_n(squares)), [*scope.losses, *sparse]


def _map(one_example, examples):
    """`tf.vectorized_map`, also for batches of 0 and 1, which are filled up to 2.

    The loops that it falls back to need a first iteration. Its `tf.squeeze`, which Keras's `Add` calls,
    drops the batch axis too if its size is 1.
    """
    batch = batch_size(examples)
    mapped = tf.vectorized_map(one_example, filled_up(examples, 2))
    return keras.tree.map_structure(lambda t: None if t is None else t[:batch], mapped)


def _examples(network, x, y, training):
    """-> (x, y, seeds), the arguments of the map; seeds holds int32 `[batch, 2]` for each seed generator."""
    check_no_state_of_rows(network, "score='gradient'")
    if not training:
        return x, y, []
    check_no_batch_mixing(network, x)
    draw = functools.partial(
        tf.random.stateless_uniform, [batch_size(x), 2], minval=0, maxval=2**31 - 1, dtype=tf.int32
    )
    return x, y, [draw(tf.cast(generator.next(), tf.int64)) for generator in seed_generators(network)]
