"""`model.rule = ...` after the construction: in effect from the next step on, or an error."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import prl_keras as prl

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(40, 6)).astype("float32"), RNG.integers(0, 3, 40)


def network(seed=0):
    keras.utils.set_random_seed(seed)
    return keras.Sequential([keras.Input((6,)), layers.Dense(3)])


def compiled(model, **options):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.5), loss, **options)
    return model


def robust(*args, **options):
    return compiled(prl.RobustModel(network(), *args, **options))


def kept(model, **options):
    return model.fit(X, Y, batch_size=40, verbose=0, **options).history["kept_fraction"]


SECOND = {
    "rule": dict(rule=prl.Trim(0.5)),
    "rule_without_epsilon": dict(rule=prl.KeepLowest(3)),
    "score": dict(score="loss"),
    "own_score": dict(score=lambda y, y_pred: -y_pred[:, 0]),
    "recompute": dict(recompute=True),
    "score_and_rule": dict(score="gradient", rule=prl.ClipNorm(0.1)),
}


@pytest.mark.daily("own_score")
@pytest.mark.fault(29)
@pytest.mark.parametrize("changes", SECOND.values(), ids=SECOND)
def test_the_next_fit_is_that_of_a_model_built_so(changes):
    assigned, built = robust(), robust()
    for model in (assigned, built):
        model.fit(X, Y, batch_size=40, verbose=0)
    again = prl.RobustModel(built.network, **changes)
    again.compile(built.optimizer, built.loss)
    assigned.example_weights(tf.constant(X), tf.constant(Y))
    for name, value in changes.items():
        setattr(assigned, name, value)
    for model in (assigned, again):
        model.fit(X, Y, batch_size=40, verbose=0)
    np.testing.assert_array_equal(assigned.network.get_weights()[0], again.network.get_weights()[0])
    weights = [model.example_weights(tf.constant(X), tf.constant(Y))[0] for model in (assigned, again)]
    np.testing.assert_array_equal(*weights)


@pytest.mark.fault(29)
def test_the_exchange_of_a_pair():
    pairs = [compiled(prl.CoTeachingModel(network(0), network(1))) for _ in range(2)]
    other = compiled(prl.CoTeachingModel(network(0), network(1), exchange="disagreement"))
    pairs[1].make_train_function()  # as an earlier fit does
    pairs[1].exchange = "disagreement"
    for pair in (*pairs, other):
        pair.fit(X, Y, batch_size=40, verbose=0)
    first, assigned, built = (pair.get_weights()[0] for pair in (*pairs, other))
    np.testing.assert_array_equal(assigned, built)
    assert np.any(first != assigned)


class Curriculum(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        self.model.rule = prl.Trim(0.1 * epoch)


@pytest.mark.daily("True")
@pytest.mark.fault(29)
@pytest.mark.parametrize("has_record", [False, True])
def test_a_curriculum_in_a_callback(has_record):
    callbacks = [Curriculum(), *([prl.SelectionRecord((X, Y))] if has_record else [])]
    np.testing.assert_allclose(
        kept(robust(rule=prl.Trim(0.0)), epochs=4, callbacks=callbacks), [1, 0.9, 0.8, 0.7]
    )


REFUSED = {
    "no_rule": ("rule", prl.Trim, "must be a rule"),
    "unknown_score": ("score", "los", "is not known"),
    "score_none": ("score", None, "Make a new model"),
    "unit": ("unit", "element", "Make a new model"),
    "recompute": ("recompute", 1, "True or False"),
    "microbatch_size": ("microbatch_size", 0.5, "whole number"),
    "estimated": ("rule", prl.Trim(prl.EstimatedEpsilon(10)), "Make a new model"),
}


@pytest.mark.daily("no_rule", "unknown_score", "recompute", "estimated", "score_none")
@pytest.mark.fault(29)
@pytest.mark.parametrize(("name", "value", "words"), REFUSED.values(), ids=REFUSED)
def test_an_invalid_value_is_refused_and_changes_nothing(name, value, words):
    model = robust()
    before = getattr(model, name)
    with pytest.raises(ValueError, match=words):
        setattr(model, name, value)
    assert getattr(model, name) is before
    assert kept(model) == [pytest.approx(0.7)]


@pytest.mark.fault(29)
def test_an_unknown_exchange_is_refused():
    pair = prl.CoTeachingModel(network(0), network(1))
    with pytest.raises(ValueError, match="'swap' or 'disagreement'"):
        pair.exchange = "both"
    assert pair.exchange == "swap"


@pytest.mark.fault(29)
def test_what_xla_cannot_compile_is_refused():
    model = compiled(prl.RobustModel(network(), recompute=True), jit_compile=True)
    with pytest.raises(ValueError, match="static"):
        model.rule = prl.Trim(prl.linear_ramp(0.3, steps=10))
    assert model.rule == prl.Trim(0.3) and model.supports_jit


@pytest.mark.fault(29)
def test_the_saved_model_has_the_assigned_rule(tmp_path):
    model = robust()
    model.rule = prl.Trim(0.2)
    model.save(tmp_path / "model.keras")
    assert keras.models.load_model(tmp_path / "model.keras").rule == prl.Trim(0.2)
