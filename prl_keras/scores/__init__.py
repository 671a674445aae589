"""Scores: how suspect is each example of a batch? Higher = more suspect.

Every score is float32 `[batch]`, computed from the unscaled, unweighted loss, and carries no gradient.

With mean squared error, and with two classes, the loss-layer gradient norm is a monotone function of
the loss: PRL(L) and self-paced learning then keep the same examples. They differ from three classes on.

To add a score, write a function of `(y_true, y_pred, loss, sample_weight)` that returns float32 `[batch]`
in a new file here, and add a line to `names.py`. If the network has several outputs, `y_pred` is a structure.
`loss_layer.logits_of` returns the logits of one output, `inputs.class_labels` the given classes, and
`loss.values_of` the values that count. The score "gradient" also needs the network (`Score.needs_network`).
"""

from prl_keras.scores.loss import per_example_loss
from prl_keras.scores.loss_layer import loss_layer_gradient_norm
from prl_keras.scores.names import gradient_norm

__all__ = ["gradient_norm", "loss_layer_gradient_norm", "per_example_loss"]
