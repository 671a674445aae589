"""The one loss of the paper's comparison that Keras lacks."""

from typing import Any

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="prl_keras")
class Bootstrap(keras.losses.Loss):
    """Hard bootstrapping: cross-entropy with labels mixed with the model's own prediction.

    `loss = beta * CE(y_true, y_pred) + (1 - beta) * CE(argmax(y_pred), y_pred)`, without a gradient through
    the argmax (Reed et al. 2014, "Training deep neural networks on noisy labels with bootstrapping",
    equation 7).

    Args:
        beta: Share of the given label, in `[0, 1]`; 1 is plain cross-entropy. Defaults to 0.8.
        from_logits: Whether `y_pred` holds logits and not probabilities, as in Keras.
        reduction: As for every Keras loss.
        name: Name of the loss.

    Call arguments:
        y_true: Labels `[batch]` or `[batch, 1]`, or one-hot `[batch, classes]`; for a single output per
            example `[batch]` or `[batch, 1]` with values in `[0, 1]`.
        y_pred: `[batch, classes]`, or `[batch, 1]` for two classes.

    Raises:
        ValueError: if beta is outside `[0, 1]`.
    """

    def __init__(
        self,
        beta: float = 0.8,
        from_logits: bool = False,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = "bootstrap",
    ) -> None:
        super().__init__(name=name, reduction=reduction)
        if not 0 <= beta <= 1:
            raise ValueError(f"beta={beta!r} must lie in [0, 1]; the paper's code uses beta=0.8.")
        self.beta = beta
        self.from_logits = from_logits

    def call(self, y_true: Any, y_pred: Any) -> Any:
        classes = y_pred.shape[-1]
        if classes == 1:
            threshold = 0.0 if self.from_logits else 0.5
            predicted = ops.cast(y_pred > threshold, y_pred.dtype)
            cross_entropy = keras.losses.binary_crossentropy
            if len(y_true.shape) < len(y_pred.shape):
                y_true = ops.expand_dims(y_true, -1)
        else:
            if len(y_true.shape) < len(y_pred.shape) or y_true.shape[-1] == 1:
                labels = ops.cast(y_true, "int32")
                labels = ops.reshape(labels, ops.shape(y_pred)[:-1])
                y_true = ops.one_hot(labels, classes, dtype=y_pred.dtype)
            predicted = ops.one_hot(ops.argmax(y_pred, axis=-1), classes, dtype=y_pred.dtype)
            cross_entropy = keras.losses.categorical_crossentropy
        # Cross-entropy is linear in the target, so the two terms are one.
        target = self.beta * y_true + (1 - self.beta) * ops.stop_gradient(predicted)
        return cross_entropy(target, y_pred, from_logits=self.from_logits)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "beta": self.beta, "from_logits": self.from_logits}
