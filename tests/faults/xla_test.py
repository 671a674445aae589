"""Operations that XLA lacks."""

import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from small_classifier import X, Y, compiled, network


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

    @pytest.mark.parametrize("call", CALLS)
    def test_an_operation_that_it_lacks_is_warned_of_and_done_without_it(self, call):
        model, plain = compiled(network(AsText()), jit_compile=True), compiled(network(AsText()))
        with pytest.warns(UserWarning, match=r"XLA cannot compile .*AsString.*jit_compile=False"):
            self.CALLS[call](model)
        self.CALLS[call](plain)
        assert not model.jit_compile
        for a, b in zip(plain.get_weights(), model.get_weights()):
            np.testing.assert_array_equal(a, b)
        assert int(model.optimizer.iterations) == int(plain.optimizer.iterations)

    def test_other_errors_stay_errors(self):
        class Fails(layers.Layer):
            def call(self, x):
                with tf.control_dependencies([tf.debugging.assert_less(x, -9.0, "too large")]):
                    return tf.identity(x)

        with pytest.raises(tf.errors.InvalidArgumentError, match="too large"):
            compiled(network(Fails()), jit_compile=False).fit(X, Y, verbose=0)
