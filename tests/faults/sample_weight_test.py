"""Sample weights and class weights: negative, non-finite, zero, of another shape."""

import keras
import numpy as np
import pytest
from arrays import assert_all_close, assert_all_equal
from small_classifier import LOSS, SOURCES, X, Y, compiled, network, refused

import prl_keras as prl

RNG = np.random.default_rng(0)


@pytest.mark.fault(11)
class TestSampleWeight:
    @pytest.mark.parametrize("bad", [-1.0, np.nan, np.inf])
    def test_that_is_negative_or_not_finite_is_refused(self, bad):
        weight = np.where(np.arange(12) == 5, bad, 1.0).astype("float32")
        model = compiled()
        with refused(model, rf"sample_weight\[5\] is {bad}"):
            model.fit(X, Y, sample_weight=weight, verbose=0)
        with refused(model, rf"sample_weight\[5\] is {bad}"):
            model.train_on_batch(X, Y, sample_weight=weight)
        for source in SOURCES.values():
            with pytest.raises(ValueError, match=f"sample_weight must be .*there is a {bad:g}"):
                compiled().fit(source(X, Y, weight), verbose=0)

    @pytest.mark.parametrize("bad", [-1, np.nan, np.inf])
    def test_that_is_in_integers_or_by_class_or_for_validation_is_refused(self, bad):
        model, of_classes = compiled(), {0: 1.0, 1: bad, 2: 1.0}
        with refused(model, f"class_weight must be .* of class 1 is {bad}"):
            model.fit(X, Y, class_weight=of_classes, verbose=0)
        with refused(model, f"class_weight must be .* of class 1 is {bad}"):
            model.train_on_batch(X, Y, class_weight=of_classes)
        with refused(model, "validation_data: sample_weight must be"):
            model.fit(X, Y, validation_data=(X, Y, np.full(12, float(bad))), verbose=0)
        if bad == -1:
            for source in SOURCES.values():
                with refused(model, r"sample_weight must be .*there is a -1"):
                    model.fit(source(X, Y, np.full(12, -1)), verbose=0)

    def test_of_zeros_and_ones_as_truth_values(self):
        weight, trained = np.arange(12) % 3 > 0, []
        for given in (weight, weight.astype("float32")):
            trained.append(compiled())
            trained[-1].fit(X, Y, sample_weight=given, shuffle=False, verbose=0)
        assert_all_equal(*(model.get_weights() for model in trained))

    def test_of_another_length_or_shape_is_refused(self):
        with pytest.raises(ValueError, match="'sample_weight' sizes: 11"):
            compiled().fit(X, Y, sample_weight=np.ones(11), verbose=0)
        for score in ("loss", "gradient"):
            with pytest.raises(ValueError, match=r"sample_weight of shape \(.*2\) .* losses of shape"):
                compiled(score=score).fit(X, Y, sample_weight=np.ones((12, 2)), verbose=0)

    def test_of_zeros_alone_moves_nothing(self):
        model = compiled()
        before = model.get_weights()
        history = model.fit(X, Y, sample_weight=np.zeros(12), verbose=0).history
        assert history["loss"] == history["loss_all"] == [0.0]
        assert_all_equal(before, model.get_weights())

    def test_one_for_each_step_of_a_sequence_is_that_of_plain_keras(self):
        x, y = RNG.normal(size=(6, 5, 4)).astype("float32"), RNG.integers(0, 3, (6, 5))
        weight = RNG.uniform(0, 2, (6, 5)).astype("float32")
        plain = network(inputs=keras.Input((5, 4)))
        plain.compile(keras.optimizers.SGD(0.1), LOSS)
        model = compiled(network(inputs=keras.Input((5, 4))), rule=prl.Trim(0.0))
        for trained in (plain, model):
            trained.fit(x, y, sample_weight=weight, verbose=0)
        assert_all_close(plain.get_weights(), model.get_weights(), atol=0)
