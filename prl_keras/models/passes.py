"""One network's pass over a batch: predictions and scores first, then, given weights, the gradient.

`forward_pass` chooses one of three kinds. A `TapePass` is the ordinary forward and backward pass. A
`RecomputePass` scores with a forward pass only and then runs a `TapePass` on the kept examples. A
`PerExamplePass` computes both the norms of every example's gradient and their weighted mean, so PRL(G) needs
no second pass.
"""

import typing

import keras

from prl_keras.inputs import loss_kinds, outputs
from prl_keras.keras_gaps import own_methods
from prl_keras.keras_gaps.internals import changed_variables
from prl_keras.models.forward import put_back, state_of, state_unchanged
from prl_keras.models.pass_kinds import Pass, PerExamplePass, RecomputePass, TapePass
from prl_keras.models.ranked import losses_of, ranked_predictions, share_of_one
from prl_keras.scores.gradient import can_be_vectorized, gradient_norms
from prl_keras.scores.layerwise import graph
from prl_keras.scores.loss import targets_of
from prl_keras.scores.names import resolve


def forward_pass(
    model: keras.Model, network: keras.Model, batch: typing.Any
) -> TapePass | RecomputePass | PerExamplePass:
    """Runs `network` forward in training mode.

    Returns:
        A pass with the network's `predictions` and the ranked predictions `y_pred`. Its methods take the
        batch that is ranked: `score(batch)` sets `scores` (float32 `[n]`, or None if `model.score` is None);
        `loss_with(batch, weights, factors)` returns the loss (call it before `backward`, which may replace
        the losses that layers add); `backward(batch, weights, factors)` returns `(loss, gradients)`. The
        weights `[n]` are the rule's. The user's `sample_weight` and `factors`, one per output or None,
        multiply them.
    """
    norms = None
    if resolve(model.score).needs_network:
        fits_memory = model.microbatch_size is None or graph.applies(network)
        if not model.recompute and fits_memory and _can_be_one_pass(model, network, batch):
            before = state_of(network)
            in_one = PerExamplePass(model, network, batch)
            if in_one.is_whole:
                return in_one
            put_back(before)
        with state_unchanged(network):
            norms = _norms(model, network, batch, loss_scale=share_of_one(model, batch.x))
    return (RecomputePass if model.recompute else TapePass)(model, network, batch, norms)


class InferencePass(Pass):
    """A network's predictions and scores in inference mode (no dropout, moving statistics)."""

    def run(self, batch: typing.Any) -> None:
        self.predictions = self.network(batch.x, training=False)
        self.y_pred = ranked_predictions(self.model, batch.y, self.predictions)

    def score(self, batch: typing.Any) -> None:
        if resolve(self.model.score).needs_network:
            self.norms = _norms(self.model, self.network, batch, training=False)
        super().score(batch)


def _norms(model, network, batch, **options):
    """The norms of the gradients of a batch's examples; `options` as in `gradient_norms`."""
    targets = targets_of(batch.y, batch.sample_weight)
    options["by_example"] = loss_kinds.is_by_example(model.loss)
    return gradient_norms(losses_of(model), network, batch.x, targets, model.microbatch_size, **options)


def _can_be_one_pass(model, network, batch):
    """Whether one pass can give both the norms and the step.

    The loss must be a mean over the batch with one weight per example, of losses that depend on one example
    each, and have no term of consistency. If the network is vectorized, its forward pass must not update
    statistics or metrics: `tf.vectorized_map` loses the update.
    """
    losses = [keras.losses.get(loss) for loss in keras.tree.flatten(model.loss) if loss is not None]
    has_own_loss = any(own_methods.defines(each, "compute_loss") for each in (model, network))
    if has_own_loss or model.consistency is not None or keras.tree.is_nested(batch.sample_weight):
        return False
    shape = () if batch.sample_weight is None else batch.sample_weight.shape
    is_mean = (
        all(loss_kinds.reduction_of(loss) in ("sum_over_batch_size", "mean") for loss in losses)
        and loss_kinds.is_by_example(model.loss)
        and (keras.tree.is_nested(outputs.symbolic_outputs(network)) or not outputs.loss_weights_of(model))
        and (len(shape) < 2 or (len(shape) == 2 and shape[-1] == 1))
    )
    if not is_mean or graph.applies(network):
        return is_mean
    is_moved = bool(changed_variables(network))
    return not is_moved and can_be_vectorized(losses_of(model), network, batch.x, (batch.y,))
