"""The guard of a training step: where the step is skipped, nothing moves.

A step is skipped if no ranked example is finite, or if the gradient is not. The guard is a wrapper around the
step, as `optax.apply_if_finite`, but without a condition: a GPU would wait for the host to decide it.
"""

import keras
import tensorflow as tf

from prl_keras.inputs import nonfinite
from prl_keras.keras_gaps.guarded_updates import updates_only_if
from prl_keras.keras_gaps.internals import moving_variables
from prl_keras.keras_gaps.replicas import everywhere, gradients_for_optimizer


class Guard:
    """Made before the forward pass, it applies the gradients after the backward pass, or undoes the step.

    Args:
        networks: The networks whose moving statistics the forward pass moves.
    """

    def __init__(self, networks):
        moving = [variable for network in networks for variable in moving_variables(network)]
        self._before = [(variable, tf.identity(variable.value)) for variable in moving]

    def apply(self, optimizer, gradients, networks, selected):
        """`optimizer.apply_gradients`, if there is an example to learn from and the gradient is finite.

        Otherwise no weight, no moment and no count of the optimizer moves, and moving statistics go back.
        They go back, too, if no example of this replica is finite.

        Args:
            optimizer: A Keras optimizer. A `LossScaleOptimizer` looks for infinities itself, and learns from
                them.
            gradients: For each network a list, one gradient for each trainable weight, of this replica.
            networks: The networks.
            selected: What was `Selected`.

        Returns:
            bool scalar: whether the gradient is finite on all the replicas.
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
        for variable, before in self._before:
            variable.assign(tf.where(has_moved, variable.value, before))
        return is_finite
