"""An optimizer's step that takes effect or not, for all of Keras's optimizers and what they may be told."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from arrays import assert_all_close, assert_all_equal

from prl_keras.keras_gaps.guarded_updates import updates_only_if

K = keras.optimizers
OPTIMIZERS = {
    "sgd": lambda: K.SGD(0.1),
    "momentum, nesterov, decay": lambda: K.SGD(0.1, 0.9, True, weight_decay=0.01),
    "adam": lambda: K.Adam(0.1),
    "amsgrad, average": lambda: K.Adam(0.1, amsgrad=True, use_ema=True, ema_overwrite_frequency=1),
    "accumulated": lambda: K.Adam(0.1, gradient_accumulation_steps=2),
    "adamw, clipped": lambda: K.AdamW(0.1, global_clipnorm=0.5),
    "schedule": lambda: K.Adam(K.schedules.ExponentialDecay(0.1, 1, 0.5)),
    "loss scaled": lambda: K.LossScaleOptimizer(K.Adam(0.1)),
    **{name: (lambda name=name: getattr(K, name)(0.1)) for name in (
        "Adadelta", "Adafactor", "Adagrad", "Adamax", "Ftrl", "Lamb", "Lion", "Nadam", "RMSprop",
    )},
}  # fmt: skip


def variables():
    kernel = keras.Variable(np.arange(6.0).reshape(2, 3) + 1, dtype="float32", name="kernel")
    kernel.constraint = keras.constraints.MaxNorm(2.0)
    shapes = {"bias": [3], "table": [5, 2]}
    return [kernel, *(keras.Variable(np.ones(s), dtype="float32", name=n) for n, s in shapes.items())]


def gradients(bad=False):
    rows = tf.constant([[np.nan if bad else 1.0, 2.0], [3.0, 4.0]])
    slices = tf.IndexedSlices(rows, tf.constant([3, 1]), tf.constant([5, 2]))
    return [tf.fill([2, 3], np.inf if bad else 0.5), tf.constant([1.0, -2.0, 3.0]), slices]


def state(optimizer, weights):
    return [np.array(v) for v in (*weights, *optimizer.variables)]


def step(optimizer, weights, bad=False):
    optimizer.apply_gradients(zip(gradients(bad), weights))


@pytest.mark.daily(
    "sgd-graph", "adam-graph", "adamw, clipped-graph", "loss scaled-graph", "Ftrl-graph", "accumulated-graph"
)
@pytest.mark.parametrize("way", ["eager", "graph", "xla"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_good_step_is_the_optimizers_and_a_bad_one_is_none(name, way):
    optimizer, weights = OPTIMIZERS[name](), variables()
    plain, plain_weights = OPTIMIZERS[name](), variables()
    optimizer.build(weights)

    def guarded(condition, bad):
        with updates_only_if(condition, [*weights, *optimizer.variables]):
            step(optimizer, weights, bad)

    if way != "eager":
        guarded = tf.function(guarded, autograph=False, jit_compile=way == "xla")
    for _ in range(3):
        step(plain, plain_weights)
        guarded(tf.constant(True), False)
        before = state(optimizer, weights)
        guarded(tf.constant(False), True)
        assert_all_equal(state(optimizer, weights), before)
    assert_all_close(state(optimizer, weights), state(plain, plain_weights))


def test_afterwards_the_variables_are_as_before_even_after_an_error():
    (weight, *_), moved = variables(), np.full([2, 3], 7.0)
    with pytest.raises(ZeroDivisionError), updates_only_if(tf.constant(False), [weight]):
        weight.assign(moved)
        1 / 0  # noqa: B018
    assert not np.any(np.array(weight) == 7.0) and "assign" not in vars(weight.value)
    weight.assign(moved)
    np.testing.assert_array_equal(weight, moved)


def test_of_two_guards_at_once_the_first_holds():
    """As of two replicas, which share the variables and know the same condition."""
    weight = variables()[1]
    with updates_only_if(tf.constant(False), [weight]), updates_only_if(tf.constant(False), [weight]):
        weight.assign(np.zeros(3))
    np.testing.assert_array_equal(weight, np.ones(3))
    weight.assign(np.zeros(3))
    np.testing.assert_array_equal(weight, np.zeros(3))
