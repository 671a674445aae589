"""Operations that XLA lacks."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from arrays import assert_all_equal
from keras import layers
from small_classifier import LOSS, X, Y, compiled, network

import prl_keras as prl
from prl_keras.keras_gaps import xla
from prl_keras.scores.loss_layer import loss_layer_score


class AsText(layers.Layer):
    """Through strings and back, which XLA does not know."""

    def call(self, x):
        return x + 0 * tf.stop_gradient(tf.strings.to_number(tf.strings.as_string(x)))


@pytest.mark.fault(18)
class TestXla:
    CALLS = {  # noqa: RUF012
        "fit": lambda model: model.fit(X, Y, shuffle=False, verbose=0),
        "train_on_batch": lambda model: model.train_on_batch(X, Y),
        "evaluate": lambda model: model.evaluate(X, Y, verbose=0),
        "predict": lambda model: model.predict(X, verbose=0),
    }

    @pytest.mark.daily("fit", "evaluate")
    @pytest.mark.parametrize("call", CALLS)
    def test_an_operation_that_it_lacks_is_warned_of_and_done_without_it(self, call):
        model, plain = compiled(network(AsText()), jit_compile=True), compiled(network(AsText()))
        with pytest.warns(UserWarning, match=r"XLA cannot compile .*AsString.*jit_compile=False"):
            self.CALLS[call](model)
        self.CALLS[call](plain)
        assert not model.jit_compile
        assert_all_equal(plain.get_weights(), model.get_weights())
        assert int(model.optimizer.iterations) == int(plain.optimizer.iterations)

    def test_other_errors_stay_errors(self):
        class Fails(layers.Layer):
            def call(self, x):
                with tf.control_dependencies([tf.debugging.assert_less(x, -9.0, "too large")]):
                    return tf.identity(x)

        with pytest.raises(tf.errors.InvalidArgumentError, match="too large"):
            compiled(network(Fails()), jit_compile=False).fit(X, Y, verbose=0)


@pytest.mark.parametrize("jit_compile, expected", [(False, True), (True, False)])
def test_a_step_uses_an_operation_that_it_lacks_only_where_it_is_off(jit_compile, expected):
    traced = []

    def loss(y, y_pred):
        traced.append(xla.is_off())
        return keras.losses.sparse_categorical_crossentropy(y, y_pred, from_logits=True)

    model = prl.RobustModel(network(), "loss", prl.Trim(0.25))
    model.compile("sgd", loss, jit_compile=jit_compile)
    model.fit(X, Y, verbose=0)
    assert set(traced) == {expected}
    assert not xla.is_off()


@pytest.mark.parametrize("jit_compile", [False, True])
def test_norms_of_large_gradients_are_those_of_numpy(jit_compile):
    rng = np.random.default_rng(0)
    logits, y = rng.normal(0, 5, (40, 300)).astype("float32"), rng.integers(0, 300, 40)
    logits[0] = np.where(np.arange(300) == y[0], 60, 0)  # a norm of about 0
    expected = np.exp(logits - np.log(np.exp(logits.astype("float64")).sum(axis=1, keepdims=True)))
    expected[np.arange(40), y] -= 1
    model = compiled(jit_compile=jit_compile)
    norms = xla.without_xla_if_it_cannot(model, lambda: loss_layer_score(y, logits, LOSS))
    np.testing.assert_allclose(norms, np.linalg.norm(expected, axis=1), rtol=1e-5, atol=1e-7)
