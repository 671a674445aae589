"""RobustModel: a Keras model that trains a network on the examples it trusts."""

import keras

from prl_keras.models.weighted_model import WeightedModel
from prl_keras.rules.trim import Trim


@keras.saving.register_keras_serializable(package="prl_keras")
class RobustModel(WeightedModel):
    """Trains `network`; in every minibatch a rule decides how much each example counts.

    One step, for a batch `(x_i, y_i)` of `n` examples:

        score_i  = score(example i)                    # how suspect
        weight_i = rule(score)_i                       # how much it counts, no gradient
        network <- optimizer(d/d network  1/n sum_i weight_i * sample_weight_i * loss_i)

    The defaults are PRL(L), the paper's algorithm 3; `score="gradient"` is PRL(G), algorithm 2.
    Compile, fit, evaluate, predict and save it as any Keras model; ship `.network`.

    Guarantees, each a test:

    | in this case | holds |
    |---|---|
    | `epsilon = 0`, `ClipNorm(inf)`, `score=None` | the same weights as plain `fit`, same seed |
    | any batch | one step equals the brute-force loop over examples |
    | several replicas | the rule sees the global batch |
    | `sample_weight`, `class_weight` | multiply the rule's weights and never change the ranking |
    | `sample_weight` 0 | padding: not ranked, not counted |
    | masked steps, step weights of 0, `ignore_class` | count in nothing, as in Keras's loss |
    | the loss's gradient does not grow with the error | equal scores go by the loss, and are warned of |
    | softmax or sigmoid head | ranks as the same network with logits |
    | batch normalization with `score="gradient"` | `BatchMixingError` |
    | `evaluate`, validation | never trimmed |
    | `recompute` | the same step to rounding, unless the table below tells them apart |
    | NaN or infinity in inputs, targets or the loss of an example | ranked worst, weight 0, no trace |
    | every example is non-finite, or the gradient is | the step is skipped: no state changes |

    `fit` logs the trimmed `loss`, and `loss_all` (over all the examples), `kept_fraction` and
    `score_threshold` (the highest score that still counted), each a mean over the batches, and `nonfinite`,
    the number of examples of the epoch that were not finite, or whose step was skipped for its gradient.
    Of class labels, and a network that is built before `fit`, also `kept_fraction_min_class`, the lowest
    fraction that was kept of a class in the epoch; `kept_by_class`, float `[classes]`, has those of all in
    the last epoch. A class that `Trim` drops whole for an epoch is warned of.
    `epsilon_estimate` is what `fit` made of the last epoch, an `EpsilonEstimate`; where it contradicts the
    epsilon of `Trim` for three epochs there is a warning, and `Trim(EstimatedEpsilon(...))` follows it.
    The metrics of `compile` see a good example of the batch in the place of one that is not finite. A
    `LossScaleOptimizer` looks for gradients that are not finite itself.

    A dropped example is *masked*: it goes the whole way and its loss is multiplied by 0. With
    `recompute=True` all `n` examples go forward to be scored, and the `(1 - epsilon) n` that are kept go
    forward again and backward, alone. A backward pass takes about two forward ones, so the step takes
    `(1 + 3 (1 - epsilon)) / 3` of a plain one: less from epsilon of about 1/3 on, 0.63 at 0.7. With
    `score="gradient"` that holds in microbatches only; else the masked step has no second pass to save.
    What tells the two apart:

    | | masked | `recompute=True` |
    |---|---|---|
    | batch norm: scores, `loss_all`, metrics | statistics of the whole batch | the same |
    | batch norm: gradient, moving averages | of the whole batch, dropped ones included | of the kept alone |
    | dropout: seeds move on | once a step | once a step |
    | dropout: masks of score and gradient | the same ones | each its own |
    | losses that layers add (`add_loss`) | over the whole batch | over the kept; `loss_all`: whole batch |
    | a dropped example that makes the gradient NaN | the step is skipped | leaves no trace |
    | XLA | as compiled | as compiled, if the rule keeps a fixed number; else refused, "auto" is off |

    A rule keeps a fixed number if its epsilon is a number and `min_keep_per_class` is 0. XLA then trains on
    exactly that many rows. Where padding or non-finite examples leave fewer, kept ones go again, with weight
    0.

    If nothing is kept, the whole batch (or replica share) is trained with weight 0.

    **Labels for each step, pixel or attribute.** An example's loss is the mean over its values that count. A
    mask (of `Masking`, `mask_zero`), `ignore_class` or a weight of 0 in `sample_weight` `[batch, steps, ...]`
    makes one not count. How large the other weights are does not reach the ranking. An example of which
    nothing counts is padding. Where some may not count, rules that rank compare gradients times `sqrt(n)` of
    the `n` that do (`scores.loss.root_of_counted`), as the gradient of a mean falls with its length.

    With `unit="element"` the rule ranks and drops the steps, pixels or attributes themselves, those of the
    whole global batch together: `epsilon` is a fraction of the labels, not of the examples. `kept_fraction`,
    `score_threshold`, `nonfinite` and `kept_by_class` are then of elements. A target that is not finite makes
    its own element bad; inputs that are not finite make all of an example's. See `models.elements` for what
    an element is.

    Args:
        network: A Keras model. Of several outputs (a list, a dict or both, with losses and loss weights as
            `compile` takes them) an example's loss is the weighted sum of its losses, and the logits are
            those of all the outputs together.
        score: How suspect an example is: "loss_layer_gradient" (default), "gradient", "loss", a
            `keras.losses.Loss`, a function of `(y_true, y_pred)` that gives `[batch]`, or None (every example
            counts).
            See `prl_keras.scores`.
        rule: `Trim(0.3)` (default), `KeepLowest`, `ClipNorm`, or a function as in
            `prl_keras.rules`. A schedule counts optimizer steps, over all the calls of `fit`.
        recompute: Whether to score first and then train on the kept examples alone, as above. With a
            rule that drops nothing (`ClipNorm`) the result is the same, and costs one more forward pass.
        microbatch_size: For `score="gradient"`: hold at most so many per-example gradients at a time.
            Norms are then taken in pieces and a second, plain pass makes the step. The result is the same,
            but dropout draws its masks anew in the second pass. It has no effect where the norms are taken
            layer by layer (`scores.layerwise`), which holds no gradient of each example.
        unit: What is ranked: "example" (default), or "element", each step, pixel or attribute by itself, as
            above. Elements go with one output, not with `score="gradient"` or `recompute=True`.

    Raises:
        ValueError: for an unknown score, a `rule` that is no rule, a `network` that is no Keras model; from
            `compile` for `jit_compile=True` with `recompute=True` and a rule that keeps no fixed number.
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
        unit="example",
        **kwargs,
    ):
        super().__init__([network], score, rule, recompute, microbatch_size, unit, **kwargs)
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
