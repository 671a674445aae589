"""A fresh start for a model that has trained, so that its traced step is used again."""


def start_as(traced, fresh):
    """Copies the weights, random states and optimizer of a fresh model into one that has trained.

    Args:
        traced: A compiled Keras model that has trained.
        fresh: A compiled model of the same kind that has not.
    """
    for variable, start in zip(_state(traced), _state(fresh), strict=True):
        variable.assign(start)


def seed_states_by_path(model):
    """The states of the model's seed generators, a list of variables; Keras counts them as no weights."""
    return [variable for variable in model.variables if variable.path.endswith("seed_generator_state")]


def _state(model):
    """All that training changes, the optimizer's part included."""
    model.optimizer.build(model.trainable_variables)
    return [*model.weights, *seed_states_by_path(model), *model.optimizer.variables]
