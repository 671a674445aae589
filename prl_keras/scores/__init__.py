"""Scores: how suspect is each example of a batch? Higher = more suspect.

Every score is float32 `[batch]`, computed from the unscaled, unweighted loss, and carries no gradient.

With mean squared error, and with two classes, the loss-layer gradient norm is a monotone function of
the loss: PRL(L) and self-paced learning then keep the same examples. They part from three classes on.

A new score is a file here with a function of `(y_true, y_pred, loss, sample_weight)` that gives float32
`[batch]`, and a line in `names.py`. `y_pred` is a structure where the network has several outputs.
`loss_layer.logits_of` gives the logits of one, `inputs.class_labels` the given classes, `loss.values_of`
which values count. The score "gradient" is another case: it needs the network (`Score.needs_network`).
"""

from prl_keras.scores.loss import per_example_loss
from prl_keras.scores.loss_layer import loss_layer_gradient_norm
from prl_keras.scores.names import gradient_norm

__all__ = ["gradient_norm", "loss_layer_gradient_norm", "per_example_loss"]
