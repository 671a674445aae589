"""The classes that a model predicts, in a callback of any training."""

from typing import Any

import keras
import numpy as np


def predicted_classes(model: keras.Model, x: Any, batch_size: int) -> np.ndarray:
    """int `[n]`, the predicted class of each input, in inference mode; of a pair that of its networks' mean.

    Not by `predict`, which would hand a process of a cluster only a part of the examples.
    """
    outputs = [model(x[i : i + batch_size], training=False) for i in range(0, len(x), batch_size)]
    return np.argmax(np.concatenate(outputs), axis=-1)
