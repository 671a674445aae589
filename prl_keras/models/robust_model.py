"""RobustModel: a Keras model that trains a network on the examples it trusts."""

import typing
from collections.abc import Callable

import keras

from prl_keras.models.weighted_model import WeightedModel
from prl_keras.rules.trim import Trim


@keras.saving.register_keras_serializable(package="prl_keras")
class RobustModel(WeightedModel):
    """Trains `network` under wrong labels: in every minibatch a rule weights each example.

    One step, for a batch `(x_i, y_i)` of `n` examples:

        score_i  = score(example i)                    # how suspect
        weight_i = rule(score)_i                       # how much it counts, no gradient
        network <- optimizer(d/d network  1/n sum_i weight_i * sample_weight_i * loss_i)

    The defaults are PRL(L), the paper's algorithm 3; `score="gradient"` is PRL(G), algorithm 2.
    Compile, fit, evaluate, predict and save it like any Keras model; ship `.network`.

    A test checks each of these guarantees:

    | in this case | holds |
    |---|---|
    | `epsilon = 0`, `ClipNorm(inf)`, `score=None` | the same weights as plain `fit`, same seed |
    | any batch | one step equals the brute-force loop over examples |
    | several replicas | the rule sees the global batch |
    | `sample_weight`, `class_weight` | multiply the rule's weights and never change the ranking |
    | `sample_weight` 0 | padding: not ranked, not counted |
    | masked steps, step weights of 0, `ignore_class` | not counted, as in Keras's loss |
    | the loss's gradient does not grow with the error | the loss breaks ties; many ties give a warning |
    | softmax or sigmoid head | same ranking as the network with logits |
    | batch normalization with `score="gradient"` | `BatchMixingError` |
    | `evaluate`, validation | never trimmed |
    | `recompute` | the same step to rounding, except for the differences in the table below |
    | a non-finite input, target or loss | ranked worst, weight 0; batch norm sees a copy of a good one |
    | every example is non-finite, or the gradient is | the step is skipped: no state changes |

    `fit` logs the trimmed `loss`, `loss_all` (over all examples), `kept_fraction` and `score_threshold` (the
    highest kept score), each a mean over the batches. It also logs `nonfinite`, the number of examples of the
    epoch that were non-finite or whose step was skipped for its gradient. For class labels and a network
    built before `fit` it logs `kept_fraction_min_class`, the lowest kept fraction of a class in the epoch;
    `kept_by_class`, float `[classes]`, holds the kept fraction of every class in the last epoch. `fit` warns
    if `Trim` drops a whole class for an epoch. `epsilon_estimate` is the `EpsilonEstimate` of the last epoch;
    `fit` warns if it contradicts the epsilon of `Trim` for three epochs, and `Trim(EstimatedEpsilon(...))`
    follows it. The metrics of `compile` see a good example in place of a non-finite one. A
    `LossScaleOptimizer` checks for non-finite gradients itself.

    A dropped example is *masked*: it is computed forward and backward, and its loss is multiplied by 0. With
    `recompute=True` all `n` examples are scored in a forward pass, and only the `(1 - epsilon) n` kept ones
    go forward again and backward. A backward pass costs about two forward passes, so the step costs
    `(1 + 3 (1 - epsilon)) / 3` of a plain one: less from an epsilon of about 1/3 on, 0.63 at 0.7. With
    `score="gradient"` this saving needs microbatches, or a loss of your own. A masked step with a loss of
    Keras or prl_keras has no second pass to save. (Your own loss may look at the whole batch, so Keras's call
    of it makes the step: the norms come first, and a plain pass follows.)
    The two differ as follows:

    | | masked | `recompute=True` |
    |---|---|---|
    | batch norm: scores, `loss_all`, metrics | statistics of the whole batch | the same |
    | batch norm: gradient, moving averages | of the whole batch, dropped ones included | of the kept ones |
    | dropout: seeds advance | once a step | once a step |
    | dropout: masks of score and gradient | the same | different |
    | your own loss, which may look at the batch | sees the whole batch | sees the kept ones |
    | losses that layers add (`add_loss`) | over the whole batch | over the kept; `loss_all`: whole batch |
    | a dropped example that makes the gradient NaN | the step is skipped | no effect |
    | XLA | as compiled | as compiled if the kept number is fixed; else rejected, "auto" is off |

    A rule keeps a fixed number if its epsilon is a number and `min_keep_per_class` is 0. XLA then trains on
    exactly that many rows. If padding or non-finite examples leave fewer, kept rows repeat with weight 0.

    If nothing is kept, the whole batch (or replica share) is trained with weight 0.

    **Labels for each step, pixel or attribute.** An example's loss is the mean over its values that count. A
    mask (`Masking`, `mask_zero`), `ignore_class` or a weight of 0 in `sample_weight` `[batch, steps, ...]`
    excludes a value; the size of other weights does not affect the ranking. An example without a value that
    counts is padding. The gradient of a mean shrinks with its length. So if some values may not count, rules
    that rank compare gradient norms times `sqrt(n)`, where `n` is the number of values that count
    (`scores.loss.root_of_counted`).

    With `unit="element"` the rule ranks and drops steps, pixels or attributes, all those of the global batch
    together: `epsilon` is a fraction of the labels, not of the examples. `kept_fraction`, `score_threshold`,
    `nonfinite` and `kept_by_class` then count elements. A non-finite target makes its own element bad;
    non-finite inputs make all elements of the example bad. `models.elements` defines an element.

    Args:
        network: A Keras model. With several outputs (a list, a dict or both, with losses and loss weights as
            `compile` takes them) an example's loss is the weighted sum of its losses, and its logits are
            those of all the outputs together.
        score: How suspect an example is: "loss_layer_gradient" (default), "gradient", "loss", "sever",
            "distance_to_median", a `keras.losses.Loss`, a function of `(y_true, y_pred)` that gives
            `[batch]`, or None (every example counts). See `prl_keras.scores`.
        rule: `Trim(0.3)` (default), `KeepLowest`, `ClipNorm`, or a function as in
            `prl_keras.rules`. A schedule counts optimizer steps, over all the calls of `fit`.
        recompute: Whether to score first and then train on the kept examples only, as above. With a
            rule that drops nothing (`ClipNorm`) the result is the same and costs one more forward pass.
        microbatch_size: For `score="gradient"`, the most per-example gradients in memory at a time. Norms are
            then computed in pieces, and a second, plain pass makes the step. The result is the same, but
            dropout draws new masks in the second pass. It has no effect if the norms are computed layer by
            layer (`scores.layerwise`), which holds no per-example gradient.
        unit: What is ranked: "example" (default), or "element", each step, pixel or attribute. Elements need
            a single output, and exclude `score="gradient"` and `recompute=True`.
        consistency: A term in each example's loss that compares the prediction with another one, or None
            (default): `EarlyLearning()`, or for a pair `Agreement()`; see `models.consistency`. It needs one
            class label per example. `loss` and `loss_all` include it, the loss of `evaluate` does not.

    Raises:
        ValueError: for an unknown score, an invalid `rule`, or a `network` that is not a Keras model; from
            `compile` for `jit_compile=True` with `recompute=True` and a rule without a fixed kept number.
        BatchMixingError: for `score="gradient"` with batch normalization in training mode.

    Example:

        model = prl_keras.RobustModel(network, rule=prl_keras.Trim(0.3))
        model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        model.fit(x, noisy_labels, epochs=20)
        model.network.save("network.keras")
    """

    network: keras.Model

    def __init__(
        self,
        network: keras.Model,
        score: str | keras.losses.Loss | Callable[..., typing.Any] | None = "loss_layer_gradient",
        rule: Callable[..., typing.Any] | None = Trim(0.3),
        recompute: bool = False,
        microbatch_size: int | None = None,
        unit: str = "example",
        consistency: typing.Any = None,
        **kwargs: typing.Any,
    ) -> None:
        super().__init__([network], score, rule, recompute, microbatch_size, unit, consistency, **kwargs)
        self.network = network

    @property
    def networks(self) -> list[keras.Model]:
        return [self.network]

    def call(self, inputs: typing.Any, training: bool | None = None) -> typing.Any:
        return self.network(inputs, training=training)

    def get_config(self) -> dict[str, typing.Any]:
        return {
            **super().get_config(),
            "network": keras.saving.serialize_keras_object(self.network),
        }
