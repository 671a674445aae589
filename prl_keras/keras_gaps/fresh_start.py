"""A fresh start for a trained model, so that its traced step is reused."""

from typing import Any

from prl_keras.keras_gaps.seeds import seed_states_by_path


def start_as(traced: Any, fresh: Any) -> None:
    """Copies the weights, random states and optimizer of a fresh model into a trained one of its kind."""
    for variable, start in zip(_state(traced), _state(fresh), strict=True):
        variable.assign(start)


def _state(model):
    """All that training changes, including the optimizer's state."""
    if not model.optimizer.built:  # a LossScaleOptimizer would make its variables again
        model.optimizer.build(model.trainable_variables)
    return [*model.weights, *seed_states_by_path(model), *model.optimizer.variables]
