"""Files of weights with the states of random layers: without them dropout starts over after a resume."""

_SEED_STATE = "seed_state_"  # in a file of weights


class SavedSeeds:
    """Mixin for a `keras.Model` that has a list of `networks`; Keras itself saves no seed states."""

    def save_own_variables(self, store):
        """`keras.Model.save_own_variables`, and the seed states."""
        super().save_own_variables(store)
        for i, state in enumerate(self._seed_states()):
            store[f"{_SEED_STATE}{i}"] = state

    def load_own_variables(self, store):
        """`keras.Model.load_own_variables`, and the seed states where the file has them."""
        names = list(store.keys())
        super().load_own_variables({name: store[name] for name in names if not name.startswith(_SEED_STATE)})
        for i, state in enumerate(self._seed_states()):
            if f"{_SEED_STATE}{i}" in names:
                state.assign(store[f"{_SEED_STATE}{i}"])

    def _seed_states(self):
        all_layers = [layer for network in self.networks for layer in network._flatten_layers()]
        return [generator.state for layer in all_layers for generator in layer._seed_generators]
