"""The states of random layers, which Keras counts as no weights and saves in no file of weights."""

from prl_keras.keras_gaps.internals import seed_generators

_SEED_STATE = "seed_state_"  # in a file of weights


def seed_states(networks):
    """The states of the seed generators of all the layers of some models, a list of variables."""
    return [generator.state for network in networks for generator in seed_generators(network)]


def save_seeds(networks, store):
    """Writes the seed states into the store of `save_own_variables`: dropout goes on after a resume."""
    for i, state in enumerate(seed_states(networks)):
        store[f"{_SEED_STATE}{i}"] = state


def load_seeds(networks, store):
    """Reads the seed states where the store of `load_own_variables` has them."""
    names = list(store.keys())
    for i, state in enumerate(seed_states(networks)):
        if f"{_SEED_STATE}{i}" in names:
            state.assign(store[f"{_SEED_STATE}{i}"])


def without_seeds(store):
    """The other variables of the store, as a dict."""
    return {name: store[name] for name in list(store.keys()) if not name.startswith(_SEED_STATE)}
