"""Arguments that are mixed up or of the wrong kind, refused in a sentence; nothing to train."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from small_classifier import LOSS, X, Y, compiled, network

import prl_keras as prl


def fit_a_pair_that_differs():
    """Networks that the first batch builds."""
    pair = prl.CoTeachingModel(*(keras.Sequential([layers.Dense(outputs)]) for outputs in (3, 4)))
    pair.compile("adam", LOSS)
    pair.fit(X, Y, verbose=0)


@pytest.mark.fault(9)
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: prl.RobustModel(network(), prl.Trim(0.6)), r"is a rule, not a score; write rule=Trim"),
        (lambda: prl.RobustModel(network(), rule=prl.Trim), r"must be a rule such as"),
        (lambda: compiled(rule=lambda s, r, t: tf.reduce_sum(s)).fit(X, Y, verbose=0),
         r"one weight per example, shape \(batch,\), but gave shape \(\)"),
        (lambda: compiled(rule=lambda s, r, t: s[:, None]).fit(X, Y, verbose=0), r"one weight per example"),
        (fit_a_pair_that_differs, r"different output shapes"),
        (lambda: prl.SelectionQuality(X, Y, np.arange(12), 16), r"must be bool"),
        (lambda: compiled().fit(X, np.eye(3)[Y], verbose=0), r"np.argmax\(y, axis=-1\)"),
        (lambda: prl.build("prl_l", network(), epsilon=0.3, loss=LOSS, optimizer="sgd"),
         r"must be a function without arguments"),
        (lambda: prl.scores.per_example_loss(np.ones((4, 1)), tf.ones((4, 3)), "mse"),
         r"\(4, 1\) against predictions of shape \(4, 3\)"),
    ],
)  # fmt: skip
def test_is_refused_in_a_sentence(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.fault(16)
def test_a_network_without_trainable_weights_is_refused():
    model = prl.RobustModel(network())
    model.network.trainable = False
    model.compile("adam", LOSS)
    with pytest.raises(ValueError, match="no trainable weights"):
        model.fit(X, Y, verbose=0)
