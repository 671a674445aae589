"""`build` trains with the optimizer that it is given as plain Keras does; so do further models with it."""

import gc
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf
from arrays import assert_all_close

import prl_keras as prl

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(8, 4)).astype("float32"), RNG.integers(0, 3, 8)
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
METHODS = ("standard", "prl_l", "co_prl_l")


def network(seed=0):
    keras.utils.set_random_seed(seed)
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, bias_initializer="ones")])


def fitted(model, **options):
    model.fit(X, Y, epochs=2, batch_size=4, shuffle=False, verbose=0, **options)
    return getattr(model, "networks", [model])[0].get_weights()


def plain(optimizer, **options):
    model = network()
    model.compile(optimizer, LOSS, run_eagerly=True)
    return fitted(model, **options)


def build(optimizer, method="prl_l", **options):
    seeds = iter((0, 1))
    return prl.build(
        method,
        lambda: network(next(seeds)),
        epsilon=0.0,
        loss=LOSS,
        optimizer=optimizer,
        run_eagerly=True,
        **options,
    )


def excluding():
    optimizer = keras.optimizers.AdamW(0.01, weight_decay=0.5)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    return optimizer


def scaled(inner):
    return keras.optimizers.LossScaleOptimizer(inner, initial_scale=4.0)


def mapped():
    optimizers = {".*bias": keras.optimizers.SGD(0.5)}
    return keras.optimizers.MultiOptimizer(keras.optimizers.OptimizerMap(excluding(), optimizers))


class OwnSchedule(keras.optimizers.schedules.LearningRateSchedule):
    """It has no `get_config`."""

    def __init__(self, rate):
        self.rate = rate

    def __call__(self, step):
        return self.rate / (1.0 + tf.cast(step, tf.float32))


class OwnOptimizer(keras.optimizers.SGD):
    """Its argument is not in its config."""

    def __init__(self, learning_rate=0.1, factor=1.0, **options):
        super().__init__(learning_rate, **options)
        self.factor = factor

    def update_step(self, gradient, variable, learning_rate):
        super().update_step(self.factor * gradient, variable, learning_rate)


KINDS = {
    "excluded": excluding,
    "schedule": lambda: keras.optimizers.SGD(OwnSchedule(0.3)),
    "function": lambda: keras.optimizers.Adam(lambda: 0.05),
    "own": lambda: OwnOptimizer(factor=3.0),
    "scaled": lambda: scaled(excluding()),
    "mapped": mapped,
    "averaged": lambda: keras.optimizers.Adam(0.05, use_ema=True, gradient_accumulation_steps=2),
}


@pytest.mark.daily("excluded")
@pytest.mark.fault(30)
@pytest.mark.parametrize("kind", KINDS)
def test_trains_as_plain_keras_in_each_model(kind):
    """A copy by the config loses these in silence, or cannot be made."""
    expected = plain(KINDS[kind]())
    optimizer = KINDS[kind]()
    for method in METHODS[:2]:
        assert_all_close(fitted(build(optimizer, method)), expected)
    again = KINDS[kind]()
    first, second = build(again, "standard"), build(again)  # both before either trains
    assert_all_close(fitted(second), expected)
    assert_all_close(fitted(first), expected)


@pytest.mark.daily("co_prl_l")
@pytest.mark.fault(30)
@pytest.mark.parametrize("method", METHODS)
def test_the_given_optimizer_trains_the_first_model_alone(method):
    optimizer = keras.optimizers.Adam(0.003, beta_1=0.8)
    first, second = build(optimizer, method), build(optimizer, method)
    assert first.optimizer is optimizer and second.optimizer is not optimizer
    fitted(first)
    assert int(second.optimizer.iterations) == 0 and second.optimizer.beta_1 == 0.8
    third = build(second.optimizer)
    assert third.optimizer is not second.optimizer
    optimizer.learning_rate = 0.1  # of the first model alone
    assert float(third.optimizer.learning_rate) == pytest.approx(0.003)


@pytest.mark.fault(30)
def test_a_copy_starts_as_the_optimizer_was_given():
    """Callbacks change the learning rate of the first model."""
    optimizer = keras.optimizers.SGD(0.1)
    halve = keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate / 2)
    assert_all_close(
        fitted(build(optimizer), callbacks=[halve]), plain(keras.optimizers.SGD(0.1), callbacks=[halve])
    )
    assert float(build(optimizer).optimizer.learning_rate) == pytest.approx(0.1)
    untrained = keras.optimizers.SGD(0.1)
    build(untrained)
    untrained.learning_rate = 0.2  # the user's change
    assert float(build(untrained).optimizer.learning_rate) == pytest.approx(0.2)


@pytest.mark.daily("own")
@pytest.mark.fault(30)
@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"mapped"}))
def test_normclip_clips_and_leaves_the_given_optimizer(kind):
    optimizer = KINDS[kind]()
    clipped = KINDS[kind]()
    getattr(clipped, "inner_optimizer", clipped).global_clipnorm = 0.01
    assert_all_close(fitted(build(optimizer, "normclip", max_norm=0.01)), plain(clipped))
    assert getattr(optimizer, "inner_optimizer", optimizer).global_clipnorm is None
    assert_all_close(fitted(build(optimizer)), plain(KINDS[kind]()))


def used(optimizer):
    plain(optimizer)
    return optimizer


def excluding_weights():
    optimizer = keras.optimizers.AdamW()
    optimizer.exclude_from_weight_decay(var_list=network().trainable_variables[1:])
    build(optimizer)
    return optimizer


def not_copied():
    optimizer = keras.optimizers.SGD()
    optimizer.log = (line for line in ())
    assert build(optimizer).optimizer is optimizer
    return optimizer


@pytest.mark.fault(30)
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: used(excluding()), r"AdamW has trained another model.*exclude_from_weight_decay"),
        (lambda: used(OwnOptimizer(factor=2.0)), r"OwnOptimizer has trained another model.*lacks factor"),
        (lambda: used(KINDS["schedule"]()), r"SGD has trained another model.*OwnSchedule"),
        (lambda: used(KINDS["function"]()), r"Adam has trained another model.*lambda"),
        (excluding_weights, r"excludes weights of one network.*var_names"),
        (not_copied, r"SGD cannot be copied.*generator"),
    ],
)
@pytest.mark.filterwarnings("ignore:The object being serialized includes a `lambda`")
def test_what_cannot_be_copied_is_refused(make, message):
    with pytest.raises(ValueError, match=message + r".*new optimizer for each call of build"):
        build(make())


@pytest.mark.fault(30)
def test_normclip_of_several_optimizers_is_refused():
    with pytest.raises(ValueError, match=r"normclip.*MultiOptimizer"):
        build(mapped(), "normclip")


def test_an_optimizer_that_trained_elsewhere_starts_anew():
    optimizer = used(keras.optimizers.Adam(0.05))
    assert_all_close(fitted(build(optimizer)), plain(keras.optimizers.Adam(0.05)))


def test_an_optimizer_made_outside_of_the_scope_is_copied_into_it():
    optimizer = keras.optimizers.Adam(0.05)
    with tf.distribute.MirroredStrategy(["CPU:0"]).scope():
        model = build(optimizer)
        assert model.optimizer is not optimizer
        model.fit(X, Y, verbose=0)
        lost = OwnOptimizer(factor=2.0)
    with pytest.raises(ValueError, match=r"outside of this strategy's scope.*lacks factor"):
        build(lost)


def test_models_are_freed():
    optimizer = keras.optimizers.Adam()
    model = build(optimizer)
    there = weakref.ref(model), weakref.ref(optimizer)
    del model, optimizer
    gc.collect()
    assert [each() for each in there] == [None, None]
