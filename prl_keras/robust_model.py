"""RobustModel: a Keras model that trains a network on the examples it trusts."""

import keras

from prl_keras.rules import Trim
from prl_keras.weighted_model import WeightedModel


@keras.saving.register_keras_serializable(package="prl_keras")
class RobustModel(WeightedModel):
    """Trains `network`; in every minibatch a rule decides how much each example counts.

    One step, for a batch `(x_i, y_i)` of `n` examples:

        score_i  = score(example i)                    # how suspect
        weight_i = rule(score)_i                       # how much it counts, no gradient
        network <- optimizer(d/d network  1/n sum_i weight_i * sample_weight_i * loss_i)

    The defaults are PRL(L), the paper's algorithm 3; `score="gradient"` is PRL(G), algorithm 2.
    Compile, fit, evaluate, predict and save it as any Keras model; ship `.network`.

    Guarantees, each a test of the same name:

    | in this case | holds |
    |---|---|
    | `epsilon = 0`, `ClipNorm(inf)`, `score=None` | the same weights as plain `fit`, same seed |
    | any batch | one step equals the brute-force loop over examples |
    | several replicas | the rule sees the global batch |
    | `sample_weight`, `class_weight` | multiply the rule's weights and never change the ranking |
    | `sample_weight` 0 | padding: not ranked, not counted |
    | softmax or sigmoid head | ranks as the same network with logits |
    | batch normalization with `score="gradient"` | `BatchMixingError` |
    | `evaluate`, validation | never trimmed |

    `fit` logs the trimmed `loss`, and `loss_all` (over all the examples), `kept_fraction` and
    `score_threshold` (the highest score that still counted), each a mean over the batches.

    Args:
        network: A Keras model with one output.
        score: How suspect an example is: "loss_layer_gradient" (default), "gradient", "loss", a
            function of `(y_true, y_pred)` that gives `[batch]`, or None (every example counts).
            See `prl_keras.scores`.
        rule: `Trim(0.3)` (default), `KeepLowest`, `ClipNorm`, or a function as in
            `prl_keras.rules`. A schedule counts optimizer steps, over all the calls of `fit`.
        recompute: Reserved; must be False.
        microbatch_size: For `score="gradient"`: hold at most so many per-example gradients at a time.
            Norms are then taken in pieces and a second, plain pass makes the step. A knob of memory
            alone: the result is the same, but that dropout draws its masks anew in the second pass.

    Raises:
        ValueError: for an unknown score, a rule that is none, a network that is none.
        BatchMixingError: for `score="gradient"` with batch normalization in training.

    Example:

        model = prl_keras.RobustModel(network, rule=prl_keras.Trim(0.3))
        model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        model.fit(x, noisy_labels, epochs=20)
        model.network.save("network.keras")
    """

    def __init__(
        self,
        network,
        score="loss_layer_gradient",
        rule=Trim(0.3),
        recompute=False,
        microbatch_size=None,
        **kwargs,
    ):
        super().__init__([network], score, rule, recompute, microbatch_size, **kwargs)
        self.network = network

    @property
    def networks(self):
        return [self.network]

    def call(self, inputs, training=None):
        return self.network(inputs, training=training)

    def get_config(self):
        return {
            **super().get_config(),
            "network": keras.saving.serialize_keras_object(self.network),
        }
