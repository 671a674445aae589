"""The states of random layers, which Keras does not count as weights and saves in no weights file."""

from collections.abc import Iterable, MutableMapping
from typing import Any

from prl_keras.keras_gaps.internals import seed_generators

_SEED_STATE = "seed_state_"  # in a weights file


def seed_states(networks: Iterable[Any]) -> list[Any]:
    """The state variables of the seed generators of all layers of the models."""
    return [generator.state for network in networks for generator in seed_generators(network)]


def seed_states_by_path(model: Any) -> list[Any]:
    """The state variables of the model's seed generators; Keras does not count them as weights."""
    return [variable for variable in model.variables if variable.path.endswith("seed_generator_state")]


def save_seeds(networks: Iterable[Any], store: MutableMapping[str, Any]) -> None:
    """Writes the seed states into the store of `save_own_variables`, to continue dropout after a resume."""
    for i, state in enumerate(seed_states(networks)):
        store[f"{_SEED_STATE}{i}"] = state


def load_seeds(networks: Iterable[Any], store: MutableMapping[str, Any]) -> None:
    """Reads the seed states from the store of `load_own_variables`, as far as it has them."""
    names = list(store.keys())
    for i, state in enumerate(seed_states(networks)):
        if f"{_SEED_STATE}{i}" in names:
            state.assign(store[f"{_SEED_STATE}{i}"])


def without_seeds(store: MutableMapping[str, Any]) -> dict[str, Any]:
    """The other variables of the store."""
    return {name: store[name] for name in list(store.keys()) if not name.startswith(_SEED_STATE)}
