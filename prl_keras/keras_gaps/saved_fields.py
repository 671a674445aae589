"""How a dataclass is saved with a model."""

import dataclasses
from typing import Any, Self

import keras


class SavedFields:
    """Gives a dataclass `get_config` and `from_config`: its fields, with Keras objects in Keras's form."""

    def get_config(self) -> dict[str, Any]:
        names = [field.name for field in dataclasses.fields(self)]  # type: ignore[arg-type]
        return {name: keras.saving.serialize_keras_object(getattr(self, name)) for name in names}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        return cls(**{name: keras.saving.deserialize_keras_object(value) for name, value in config.items()})
