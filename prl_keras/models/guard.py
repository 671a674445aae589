"""The guard of a training step: a skipped step changes no state.

A step is skipped if no ranked example is finite, or if the gradient is non-finite. The guard wraps the step
like `optax.apply_if_finite`, but without a condition: a GPU would wait for the host to decide it.
"""

import typing
from collections.abc import Sequence

import keras
import tensorflow as tf

from prl_keras.inputs import nonfinite
from prl_keras.keras_gaps.guarded_updates import choose, updates_only_if
from prl_keras.keras_gaps.internals import assigned_weights, moving_variables
from prl_keras.keras_gaps.replicas import everywhere, gradients_for_optimizer
from prl_keras.keras_gaps.synchronized import synchronized_variables


class Guard:
    """Applies the gradients after the backward pass, or undoes the step. Create it before the forward pass.

    Args:
        networks: The networks; their forward pass updates moving statistics, and may assign weights.
    """

    def __init__(self, networks: Sequence[keras.Model]) -> None:
        moving = [variable for network in networks for variable in moving_variables(network)]
        shared = [variable for network in networks for variable in synchronized_variables(network)]
        assigned = [variable for network in networks for variable in assigned_weights(network)] + shared
        ids = {id(variable) for variable in shared}
        self._moving = [(v, tf.identity(v.value)) for v in moving if id(v) not in ids]
        self._assigned = [(variable, tf.identity(variable.value)) for variable in assigned]

    def apply(
        self,
        optimizer: keras.optimizers.Optimizer,
        gradients: Sequence[Sequence[typing.Any]],
        networks: Sequence[keras.Model],
        selected: typing.Any,
    ) -> tf.Tensor:
        """Calls `optimizer.apply_gradients` if `selected.is_any_good` and the gradient is finite.

        Otherwise no weight and no variable of the optimizer changes, and the moving statistics are restored.
        They are also restored if no example of this replica is finite, unless the replicas share them.

        Args:
            optimizer: A Keras optimizer. A `LossScaleOptimizer` checks for infinities itself, and adapts its
                scale to them.
            gradients: Per network a list of this replica's gradients, one per trainable weight.

        Returns:
            bool scalar, whether the gradient is finite on all the replicas. Always True for a
            `LossScaleOptimizer`.
        """
        gradients = [gradient for of_network in gradients for gradient in of_network]
        weights = [weight for network in networks for weight in network.trainable_weights]
        is_finite = tf.constant(True)
        if not isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
            is_finite = everywhere(nonfinite.are_finite(gradients))
        is_applied = tf.logical_and(is_finite, selected.is_any_good)
        gradients = gradients_for_optimizer(gradients, optimizer)
        if not optimizer.built:
            optimizer.build(weights)
        with updates_only_if(is_applied, [*weights, *optimizer.variables]):
            optimizer.apply_gradients(zip(gradients, weights))
        has_moved = tf.logical_and(is_applied, selected.is_any_good_here)
        for is_changed, variables in ((has_moved, self._moving), (is_applied, self._assigned)):
            for variable, before in variables:
                variable.assign(choose(is_changed, variable.value, before))
        return is_finite
