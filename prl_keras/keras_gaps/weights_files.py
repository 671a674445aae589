"""Weights files that survive a full disk: HDF5 crashes the process if it cannot write as it closes a file."""

import io
from typing import Any


def weights_in_memory(model: Any) -> io.BytesIO:
    """The content of the file that `model.save_weights` writes."""
    memory = _Memory()
    model.save_weights(memory)
    return memory


class _Memory(io.BytesIO):
    def __str__(self) -> str:  # Keras looks at the end of the name
        return "memory.weights.h5"
