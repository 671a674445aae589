"""CoTeachingModel: two networks that choose each other's examples."""

import keras
import tensorflow as tf

from prl_keras.inputs import outputs
from prl_keras.inputs.shapes import check_classification
from prl_keras.models.configuration import check_pair, check_same_shapes
from prl_keras.models.exchanges import EXCHANGES
from prl_keras.models.weighted_model import WeightedModel
from prl_keras.rules.trim import Trim
from prl_keras.scores.loss import values_of


@keras.saving.register_keras_serializable(package="prl_keras")
class CoTeachingModel(WeightedModel):
    """Trains two networks on the same batches, each on the examples that the exchange gives it.

    * `exchange="swap"`: each network trains on what the other network's scores keep (Han et al. 2018;
      the paper's algorithm 4).
    * `exchange="disagreement"`: each trains on the examples whose predicted class differs between the
      two, kept by its own scores; with `score=None` on all of those (Malach and Shalev-Shwartz 2017,
      "Decoupling when to update from how to update"). Where none differs, the gradient is zero.

    The defaults are Co-PRL(L); `score="loss"` is co-teaching; `score=None,
    exchange="disagreement"` is decoupling. One optimizer holds the state of both networks; a
    `global_clipnorm` clips their joint gradient.

    `fit` and `evaluate` report the mean of the two networks (their losses; metrics see both
    networks' predictions), as the paper does. `predict` gives the mean of the two outputs. Ship
    `.network_a` or `.network_b`.

    Args:
        network_a, network_b: Two Keras models with the same output shape, different initial weights
            and no shared layer.
        score, rule, recompute, microbatch_size, unit: As in `RobustModel`. With `recompute=True` both
            networks score the batch before either trains on what the exchange gives it.
        exchange: "swap" or "disagreement".

    Raises:
        ValueError: for networks that are the same or share weights, for different output shapes, an
            unknown exchange, or as in `RobustModel`.
    """

    def __init__(
        self,
        network_a,
        network_b,
        score="loss_layer_gradient",
        rule=Trim(0.3),
        exchange="swap",
        recompute=False,
        microbatch_size=None,
        unit="example",
        **kwargs,
    ):
        if exchange not in EXCHANGES:
            raise ValueError(
                f"exchange={exchange!r} is not known; write {' or '.join(map(repr, EXCHANGES))}."
            )
        check_pair(network_a, network_b)
        super().__init__([network_a, network_b], score, rule, recompute, microbatch_size, unit, **kwargs)
        self.network_a, self.network_b = network_a, network_b
        self.exchange = exchange

    @property
    def networks(self):
        return [self.network_a, self.network_b]

    def call(self, inputs, training=None):
        a, b = (network(inputs, training=training) for network in self.networks)
        return keras.tree.map_structure(lambda a, b: (a + b) / 2, a, b)

    def network_loss(self, network, x, y, y_pred, sample_weight):
        # compute_loss adds the regularizers of both networks; each has its own alone.
        other = self.network_b if network is self.network_a else self.network_a
        loss = super().network_loss(network, x, y, y_pred, sample_weight)
        return loss - sum((self._aggregate_additional_loss(extra) for extra in other.losses), start=0.0)

    def get_config(self):
        return {
            **super().get_config(),
            "network_a": keras.saving.serialize_keras_object(self.network_a),
            "network_b": keras.saving.serialize_keras_object(self.network_b),
            "exchange": self.exchange,
        }

    def weigh(self, examples):
        return EXCHANGES[self.exchange].function(super().weigh, examples)

    def where_networks_differ(self, batch, predictions):
        check_same_shapes(*predictions)
        if not EXCHANGES[self.exchange].compares_predictions:
            return None
        parts = [
            outputs.split(outputs.loss_of(self, y_pred), batch.y, y_pred, batch.sample_weight)
            for y_pred in predictions
        ]
        return tf.reduce_any([_differs(*of_output) for of_output in zip(*parts)], axis=0)


def _differs(a, b):
    """bool `[n]`: whether two networks' `outputs.Output` differ in a class that counts."""
    classes, other = _predicted_class(a.y_pred, a.loss), _predicted_class(b.y_pred, b.loss)
    _, counts = values_of(a)
    if counts is None:
        return tf.reduce_any(classes != other, axis=1)
    return tf.reduce_any((classes != other) & tf.reshape(counts, tf.shape(classes)), axis=1)


def _predicted_class(y_pred, loss):
    """int64 `[batch, ...]`, flattened: the largest entry, or the side of one half for a single one."""
    if y_pred.shape[-1] > 1:
        classes = tf.argmax(y_pred, axis=-1)
    else:
        check_classification(loss, "exchange='disagreement'")
        classes = tf.cast(y_pred > (0.0 if getattr(loss, "from_logits", False) else 0.5), tf.int64)
    return tf.reshape(classes, [tf.shape(y_pred)[0], -1])
