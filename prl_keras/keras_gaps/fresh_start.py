"""A fresh start for a model that has trained: its traced step serves another training from the beginning."""


def start_as(traced, fresh):
    """Gives a model that has trained the start of one that has not, and saves another trace.

    Args:
        traced: A compiled Keras model that has trained.
        fresh: A compiled model of the same kind that has not; its weights, random states and optimizer are
            copied.
    """
    for variable, start in zip(_state(traced), _state(fresh), strict=True):
        variable.assign(start)


def seed_states(model):
    """The states of the model's seed generators, a list of variables; Keras counts them as no weights."""
    return [variable for variable in model.variables if variable.path.endswith("seed_generator_state")]


def _state(model):
    """All that training changes, the optimizer's part included."""
    model.optimizer.build(model.trainable_variables)
    return [*model.weights, *seed_states(model), *model.optimizer.variables]
