"""CoTeachingModel: two networks that select each other's examples."""

import typing
from collections.abc import Callable, Sequence

import keras
import tensorflow as tf

from prl_keras.inputs import outputs
from prl_keras.inputs.shapes import check_classification
from prl_keras.models.configuration import check_pair, check_same_shapes
from prl_keras.models.exchanges import EXCHANGES
from prl_keras.models.settings import Setting
from prl_keras.models.weighted_model import WeightedModel
from prl_keras.rules.trim import Trim
from prl_keras.scores.loss import values_of
from prl_keras.validate import check_integer


@keras.saving.register_keras_serializable(package="prl_keras")
class CoTeachingModel(WeightedModel):
    """Trains two networks on the same batches, each on the examples that the exchange selects for it.

    * `exchange="swap"`: each network trains on the examples that the other network's scores keep (Han et
      al. 2018; the paper's algorithm 4).
    * `exchange="disagreement"`: each network trains on the examples whose predicted class differs between
      the two and that its own scores keep; `score=None` keeps all of them (Malach and Shalev-Shwartz 2017,
      "Decoupling when to update from how to update"). If no prediction differs, the gradient is zero.
    * `exchange="swap_disagreement"`: of the examples whose predicted class differs, each network trains on
      those that the other network's scores keep (Yu et al. 2019, "How does disagreement help generalization
      against label corruption?"). If no prediction differs, the gradient is zero.
    * `exchange="joint"`: both networks train on the examples that the mean of their scores keeps. With
      `score="loss"` and `consistency=Agreement()` this is JoCoR (Wei et al. 2020): an example's loss is
      `(1 - strength) loss + strength (KL(p || q) + KL(q || p))`, and its score in the pair is half of
      `(1 - strength) (loss_a + loss_b) + strength (KL(p || q) + KL(q || p))`.

    The defaults are Co-PRL(L); `score="loss"` is co-teaching; `score=None, exchange="disagreement"` is
    decoupling. One optimizer holds the state of both networks; a `global_clipnorm` clips their joint
    gradient.

    As in the paper, `fit` and `evaluate` report the mean loss of the two networks, and metrics see the
    predictions of both. `predict` returns the mean of the two outputs. Ship `.network_a` or `.network_b`.

    Args:
        network_a: A Keras model.
        network_b: Another, with the same output shape, different initial weights and no shared layer.
        score: As in `RobustModel`.
        rule: As in `RobustModel`.
        exchange: "swap", "disagreement", "swap_disagreement" or "joint".
        recompute: As in `RobustModel`. Both networks score the batch before either trains.
        microbatch_size: As in `RobustModel`.
        unit: As in `RobustModel`.
        consistency: As in `RobustModel`.
        warm_up_steps: Optimizer steps in which every prediction counts as different, at least 0. For these
            steps "swap_disagreement" is "swap", and "disagreement" trains each network on what it keeps.

    Raises:
        ValueError: for networks that are the same or share weights, different output shapes, an
            unknown exchange, `warm_up_steps` with "swap", or as in `RobustModel`.
    """

    network_a: keras.Model
    network_b: keras.Model
    exchange = Setting()
    warm_up_steps = Setting()

    def __init__(
        self,
        network_a: keras.Model,
        network_b: keras.Model,
        score: str | keras.losses.Loss | Callable[..., tf.Tensor] | None = "loss_layer_gradient",
        rule: Callable[..., tf.Tensor] | None = Trim(0.3),
        exchange: str = "swap",
        recompute: bool = False,
        microbatch_size: int | None = None,
        unit: str = "example",
        consistency: typing.Any = None,
        warm_up_steps: int = 0,
        **kwargs: typing.Any,
    ) -> None:
        _check_exchange(exchange, warm_up_steps)
        check_pair(network_a, network_b)
        super().__init__(
            [network_a, network_b], score, rule, recompute, microbatch_size, unit, consistency, **kwargs
        )
        self.network_a, self.network_b = network_a, network_b
        self.exchange, self.warm_up_steps = exchange, warm_up_steps

    def settings_changed(self) -> None:
        _check_exchange(self.exchange, self.warm_up_steps)
        super().settings_changed()

    @property
    def networks(self) -> list[keras.Model]:
        return [self.network_a, self.network_b]

    def call(self, inputs: typing.Any, training: bool | None = None) -> typing.Any:
        a, b = (network(inputs, training=training) for network in self.networks)
        return keras.tree.map_structure(lambda a, b: (a + b) / 2, a, b)

    def get_config(self) -> dict[str, typing.Any]:
        return {
            **super().get_config(),
            "network_a": keras.saving.serialize_keras_object(self.network_a),
            "network_b": keras.saving.serialize_keras_object(self.network_b),
            "exchange": self.exchange,
            "warm_up_steps": self.warm_up_steps,
        }

    def weigh(self, examples: typing.Any) -> list[typing.Any]:
        return EXCHANGES[self.exchange].function(super().weigh, examples)

    def where_networks_differ(self, batch: typing.Any, predictions: Sequence[typing.Any]) -> tf.Tensor | None:
        check_same_shapes(*predictions)
        if not EXCHANGES[self.exchange].compares_predictions:
            return None
        parts = [
            outputs.split(outputs.loss_of(self, y_pred), batch.y, y_pred, batch.sample_weight)
            for y_pred in predictions
        ]
        differs = tf.reduce_any([_differs(*of_output) for of_output in zip(*parts)], axis=0)
        if not self.warm_up_steps:
            return differs
        return differs | (tf.convert_to_tensor(self.optimizer.iterations) < self.warm_up_steps)


def _check_exchange(exchange, warm_up_steps):
    if exchange not in EXCHANGES:
        raise ValueError(f"exchange={exchange!r} is not known; write {' or '.join(map(repr, EXCHANGES))}.")
    check_integer("warm_up_steps", warm_up_steps, 0)
    if warm_up_steps and not EXCHANGES[exchange].compares_predictions:
        raise ValueError(
            f"warm_up_steps={warm_up_steps} delays the comparison of predictions, and exchange={exchange!r} "
            "compares none. Leave warm_up_steps=0."
        )


def _differs(a, b):
    """bool `[n]`: whether two networks' `outputs.Output` differ in any predicted class that counts."""
    classes, other = _predicted_class(a.y_pred, a.loss), _predicted_class(b.y_pred, b.loss)
    _, counts = values_of(a)
    if counts is None:
        return tf.reduce_any(classes != other, axis=1)
    return tf.reduce_any((classes != other) & tf.reshape(counts, tf.shape(classes)), axis=1)


def _predicted_class(y_pred, loss):
    """int64 `[batch, k]`: the index of the largest entry, or whether a single entry is above one half."""
    if y_pred.shape[-1] > 1:
        classes = tf.argmax(y_pred, axis=-1)
    else:
        check_classification(loss, "exchange='disagreement'")
        classes = tf.cast(y_pred > (0.0 if getattr(loss, "from_logits", False) else 0.5), tf.int64)
    return tf.reshape(classes, [tf.shape(y_pred)[0], -1])
