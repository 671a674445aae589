"""Faults in data, arguments and devices: refused in a sentence, supported, or warned of (docs/faults.md)."""

import functools
import os
import pathlib
import subprocess
import sys
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import prl_keras as prl
from prl_keras.experiments.config import RunConfig

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(12, 4)).astype("float32"), np.arange(12) % 3
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
DATA = tf.data.Dataset.from_tensor_slices
BAD = np.where(np.arange(12) == 5, 7, Y)  # in the second batch of four


def network(*more, inputs=None, seed=0):
    keras.utils.set_random_seed(seed)
    return keras.Sequential([keras.Input((4,)) if inputs is None else inputs, *more, layers.Dense(3)])


def text_network():
    return keras.Sequential([layers.Embedding(9, 3), layers.GlobalAveragePooling1D(), layers.Dense(3)])


def compiled(net=None, loss=LOSS, jit_compile="auto", **options):
    model = prl.RobustModel(net or network(), **options)
    model.compile(keras.optimizers.SGD(0.1), loss, jit_compile=jit_compile)
    return model


class Batches(keras.utils.PyDataset):
    def __init__(self, *parts, **kwargs):
        super().__init__(**kwargs)
        self.parts = parts

    def __len__(self):
        return -(-len(self.parts[0]) // 4)

    def __getitem__(self, i):
        return tuple(part[4 * i : 4 * i + 4] for part in self.parts)


def generator(*parts):
    return (batch for batch in [Batches(*parts)[i] for i in range(3)])


SOURCES = {
    "dataset": lambda *parts: DATA(parts).batch(4),
    "py_dataset": Batches,
    "generator": generator,
}


class TestEpsilon:
    @pytest.mark.parametrize("make", [prl.Trim, functools.partial(prl.linear_ramp, steps=10)])
    def test_of_half_or_more_is_warned_of_once(self, make):
        for epsilon in (0.5, 0.6):
            with pytest.warns(UserWarning, match="An epsilon of 0.5 or more") as seen:
                make(epsilon)
            assert [warning.filename for warning in seen] == [__file__]  # the user's own line
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            make(0.49)

    @pytest.mark.parametrize("epsilon", ["0.3", None, float("nan"), -0.1, 1, True])
    def test_that_is_no_fraction_is_refused_with_name_value_and_range(self, epsilon):
        for make in (prl.Trim, lambda e: prl.linear_ramp(e, 10)):
            with pytest.raises(ValueError, match=r"epsilon=.* must be a number in \[0, 1\)"):
                make(epsilon)

    def test_a_ramp_longer_than_the_training_is_warned_of(self):
        with pytest.warns(UserWarning, match=r"ramp_epochs=5 .* epochs=3"):
            RunConfig(ramp_epochs=5, epochs=3)

    def test_a_ramp_goes_only_as_far_as_the_training(self):
        model = compiled(rule=prl.Trim(prl.linear_ramp(0.4, steps=4)))
        kept = [model.fit(X, Y, batch_size=12, verbose=0).history["kept_fraction"][0] for _ in range(2)]
        assert kept == pytest.approx([1.0, 10 / 12])  # of the steps 0 and 1


class TestLabels:
    @pytest.mark.parametrize("jit_compile", [False, True])
    @pytest.mark.parametrize("source", SOURCES)
    def test_out_of_range_in_any_kind_of_data_never_reach_a_step(self, source, jit_compile):
        model, steps = compiled(jit_compile=jit_compile), []
        count = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: steps.append(batch))
        with pytest.raises(ValueError, match="at most 2 for 3 outputs; there is a 7"):
            model.fit(SOURCES[source](X, BAD), callbacks=[count], shuffle=False, verbose=0)
        assert len(steps) <= 1  # the batch before
        assert all(np.isfinite(w).all() for w in model.get_weights())

    @pytest.mark.parametrize("source", SOURCES)
    def test_negative_ones_too_but_not_the_ignored(self, source):
        negative = np.where(BAD == 7, -1, BAD)
        with pytest.raises(ValueError, match="there is a -1"):
            compiled().fit(SOURCES[source](X, negative), verbose=0)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-1)
        compiled(loss=loss).fit(SOURCES[source](X, negative), verbose=0)

    @pytest.mark.parametrize("kind", ["float32", str])
    def test_of_a_dataset_must_be_integers(self, kind):
        with pytest.raises(ValueError, match="Class labels must be integers"):
            compiled().fit(DATA((X, Y.astype(kind))).batch(4), verbose=0)

    @pytest.mark.parametrize("jit_compile", [False, True])
    def test_of_a_single_batch(self, jit_compile):
        model = compiled(jit_compile=jit_compile)
        before = model.get_weights()
        with pytest.raises(ValueError, match=r"y\[5\] is 7"):
            model.train_on_batch(X, BAD)
        for a, b in zip(before, model.get_weights()):
            np.testing.assert_array_equal(a, b)

    def test_of_validation_data(self):
        model = compiled()
        before = model.get_weights()
        with pytest.raises(ValueError, match=r"validation_data: .*y\[5\] is 7"):
            model.fit(X, Y, validation_data=(X, BAD), verbose=0)
        for a, b in zip(before, model.get_weights()):
            np.testing.assert_array_equal(a, b)

    @pytest.mark.parametrize(
        ("loss", "outputs", "good"),
        [
            (keras.losses.BinaryCrossentropy(from_logits=True), 1, (Y > 0)[:, None]),
            (keras.losses.CategoricalCrossentropy(from_logits=True), 3, np.eye(3)[Y]),
            (prl.Bootstrap(from_logits=True), 3, np.eye(3)[Y]),
        ],
    )
    @pytest.mark.parametrize("value", [2, -1])
    def test_that_are_shares_of_classes_lie_between_0_and_1(self, loss, outputs, good, value):
        good = good.astype("float32")
        bad = np.where(np.arange(12)[:, None] == 5, value, good).astype("float32")
        model = compiled(keras.Sequential([keras.Input((4,)), layers.Dense(outputs)]), loss)
        before = model.get_weights()
        with pytest.raises(ValueError, match=rf"labels in \[0, 1\]; y\[5, 0\] is {value}"):
            model.fit(X, bad, verbose=0)
        for a, b in zip(before, model.get_weights()):
            np.testing.assert_array_equal(a, b)
        for source in SOURCES.values():
            with pytest.raises(ValueError, match=rf"labels in \[0, 1\]; there is a {value}"):
                model.fit(source(X, bad), verbose=0)
            model.fit(source(X, np.where(bad == value, 0.5, good).astype("float32")), verbose=0)

    def test_of_bootstrap_are_numbers_of_classes_too(self):
        model = compiled(loss=prl.Bootstrap(from_logits=True), rule=prl.Trim(0.3, min_keep_per_class=1))
        with pytest.raises(ValueError, match=r"at most 2 for 3 outputs; y\[5\] is 7"):
            model.fit(X, BAD, verbose=0)
        assert "kept_fraction_min_class" in model.fit(X, Y, verbose=0).history

    def test_as_a_list_of_numbers_are_refused(self):
        for y in (list(Y), Y.tolist()):
            with pytest.raises(ValueError, match=r"y is a list; write np.asarray\(y\)"):
                compiled().fit(X, y, verbose=0)

    def test_of_validation_data_in_a_list(self):
        with pytest.raises(ValueError, match=r"validation_data: .*y\[5\] is 7"):
            compiled().fit(X, Y, validation_data=[X, BAD], verbose=0)

    @pytest.mark.parametrize("source", ["py_dataset", "generator"])
    def test_of_another_number_than_the_inputs_are_refused(self, source):
        def cut(batches, parts):
            return ((x, y[:parts]) for x, y in batches)

        batches = [Batches(X, X[:, :3])[i] for i in range(3)]
        model = compiled(loss="mse")
        data = cut(batches, 1) if source == "generator" else Batches(X, X[:, :3][:5])
        with pytest.raises(ValueError, match="as many of each; there are of x 4, y 1"):
            model.fit(data, shuffle=False, verbose=0)

    def test_good_ones_train_as_ever_from_any_kind_of_data(self):
        weights = []
        for source in (None, *SOURCES):
            model = compiled()
            arguments = (X, Y, 4) if source is None else (SOURCES[source](X, Y),)
            model.fit(*arguments, shuffle=False, verbose=0)
            weights.append(model.get_weights())
        for other in weights[1:]:
            for a, b in zip(weights[0], other):
                np.testing.assert_allclose(a, b, rtol=1e-6)


class TestSampleWeight:
    @pytest.mark.parametrize("bad", [-1.0, np.nan, np.inf])
    def test_that_is_negative_or_not_finite_is_refused(self, bad):
        weight = np.where(np.arange(12) == 5, bad, 1.0).astype("float32")
        model = compiled()
        before = model.get_weights()
        with pytest.raises(ValueError, match=rf"sample_weight\[5\] is {bad}"):
            model.fit(X, Y, sample_weight=weight, verbose=0)
        with pytest.raises(ValueError, match=rf"sample_weight\[5\] is {bad}"):
            model.train_on_batch(X, Y, sample_weight=weight)
        for a, b in zip(before, model.get_weights()):
            np.testing.assert_array_equal(a, b)
        for source in SOURCES.values():
            with pytest.raises(ValueError, match=f"sample_weight must be .*there is a {bad:g}"):
                compiled().fit(source(X, Y, weight), verbose=0)

    @pytest.mark.parametrize("bad", [-1, np.nan, np.inf])
    def test_that_is_in_integers_or_by_class_or_for_validation_is_refused(self, bad):
        model = compiled()
        before = model.get_weights()
        with pytest.raises(ValueError, match=f"class_weight must be .* of class 1 is {bad}"):
            model.fit(X, Y, class_weight={0: 1.0, 1: bad, 2: 1.0}, verbose=0)
        with pytest.raises(ValueError, match=f"class_weight must be .* of class 1 is {bad}"):
            model.train_on_batch(X, Y, class_weight={0: 1.0, 1: bad, 2: 1.0})
        with pytest.raises(ValueError, match="validation_data: sample_weight must be"):
            model.fit(X, Y, validation_data=(X, Y, np.full(12, float(bad))), verbose=0)
        if bad == -1:
            for source in SOURCES.values():
                with pytest.raises(ValueError, match=r"sample_weight must be .*there is a -1"):
                    model.fit(source(X, Y, np.full(12, -1)), verbose=0)
        for a, b in zip(before, model.get_weights()):
            np.testing.assert_array_equal(a, b)

    def test_of_zeros_and_ones_as_truth_values(self):
        weight, trained = np.arange(12) % 3 > 0, []
        for given in (weight, weight.astype("float32")):
            keras.utils.set_random_seed(0)
            trained.append(compiled())
            trained[-1].fit(X, Y, sample_weight=given, shuffle=False, verbose=0)
        for a, b in zip(*(model.get_weights() for model in trained)):
            np.testing.assert_array_equal(a, b)

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
        for a, b in zip(before, model.get_weights()):
            np.testing.assert_array_equal(a, b)

    def test_one_for_each_step_of_a_sequence_is_that_of_plain_keras(self):
        x, y = RNG.normal(size=(6, 5, 4)).astype("float32"), RNG.integers(0, 3, (6, 5))
        weight = RNG.uniform(0, 2, (6, 5)).astype("float32")
        plain = network(inputs=keras.Input((5, 4)))
        plain.compile(keras.optimizers.SGD(0.1), LOSS)
        model = compiled(network(inputs=keras.Input((5, 4))), rule=prl.Trim(0.0))
        for trained in (plain, model):
            trained.fit(x, y, sample_weight=weight, verbose=0)
        for a, b in zip(plain.get_weights(), model.get_weights()):
            np.testing.assert_allclose(a, b, rtol=1e-5)


class TestOddBatches:
    @pytest.mark.parametrize("jit_compile", [False, True])
    @pytest.mark.parametrize(("n", "batch_size"), [(11, 4), (5, 4), (3, 8), (1, 4)])
    def test_cost_at_most_two_traces(self, n, batch_size, jit_compile):
        traces = []
        model = compiled(
            jit_compile=jit_compile, rule=lambda s, r, t: traces.append(1) or prl.Trim(0.3)(s, r, t)
        )
        for _ in range(2):
            history = model.fit(X[:n], Y[:n], batch_size=batch_size, epochs=2, verbose=0).history
        assert 1 <= len(traces) <= 2
        assert np.isfinite(history["loss"]).all()


class AsText(layers.Layer):
    """Through strings and back, which XLA does not know."""

    def call(self, x):
        return x + 0 * tf.stop_gradient(tf.strings.to_number(tf.strings.as_string(x)))


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


def test_a_step_that_overflows_in_float16_is_skipped_and_counts_for_nothing():
    previous = keras.config.dtype_policy()
    try:
        keras.config.set_dtype_policy("mixed_float16")
        model = prl.RobustModel(network(), rule=prl.Trim(prl.linear_ramp(0.4, steps=2)))
    finally:
        keras.config.set_dtype_policy(previous)
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1), initial_scale=2.0**40)
    model.compile(optimizer, LOSS)
    before, scales = model.get_weights(), []
    while int(optimizer.iterations) == 0 and len(scales) < 60:
        for a, b in zip(before, model.get_weights()):
            np.testing.assert_array_equal(a, b)
        logs = model.train_on_batch(X, Y, return_dict=True)
        scales.append(float(optimizer.dynamic_scale))
        # The schedule stands at step 0: nothing is dropped for an overflow.
        assert logs["kept_fraction"] == 1 and np.isfinite(list(logs.values())).all()
    assert 2 <= len(scales) < 60 and scales[0] == 2.0**39  # halved at each overflow
    assert all(np.isfinite(w).all() for w in model.get_weights())
    assert any(np.any(a != b) for a, b in zip(before, model.get_weights()))
    assert model.train_on_batch(X, Y, return_dict=True)["kept_fraction"] == 9 / 12


class TestKindsOfData:
    def test_a_dataset_that_turns_out_empty_is_an_error(self):
        nothing = DATA((X, Y)).filter(lambda x, y: y > 5).batch(4)
        with pytest.raises(ValueError, match="gave no batch"):
            compiled().fit(nothing, verbose=0)

    def test_an_exhausted_one_trains_on_what_there_is(self):
        history = compiled().fit(generator(X, Y), steps_per_epoch=2, epochs=2, verbose=0)
        assert history.epoch == [0, 1]
        history = compiled().fit(generator(X, Y), verbose=0)  # without steps_per_epoch: to its end
        assert history.epoch == [0]

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ((DATA((X, Y, Y, Y)).batch(4),), r"\(x, y, sample_weight\)"),
            ((DATA((X,)).batch(4),), "no targets y"),
            ((generator(X),), "no targets y"),
            ((DATA((X, Y)),), "Invalid input shape|incompatible shape"),  # not batched
            ((X.tolist(), Y), r"x is a list; write np\.asarray"),
            ((list(X), Y), r"x is a list; write np\.asarray"),
            ((None, Y), "x is None"),
            ((X, Y[:5]), "'y' sizes: 5"),
        ],
    )
    def test_what_cannot_be_trained_on_is_refused_by_what_it_is(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            compiled().fit(*arguments, verbose=0)

    def test_evaluate_without_targets_is_refused(self):
        with pytest.raises(ValueError, match="no targets y"):
            compiled().evaluate(X, verbose=0)

    @pytest.mark.parametrize("score", ["loss", "loss_layer_gradient"])
    @pytest.mark.parametrize("as_dataset", [False, True])
    def test_sparse_inputs_are_as_dense_ones(self, score, as_dataset):
        models = []
        for is_sparse in (False, True):
            x = tf.sparse.from_dense(X) if is_sparse else X
            models.append(compiled(network(inputs=keras.Input((4,), sparse=is_sparse)), score=score))
            arguments = (DATA((x, Y)).batch(4),) if as_dataset else (x, Y, 4)
            models[-1].fit(*arguments, shuffle=False, verbose=0)
        for a, b in zip(*(model.get_weights() for model in models)):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)

    @pytest.mark.parametrize("as_dataset", [False, True])
    def test_ragged_inputs_train(self, as_dataset):
        x = tf.ragged.constant([[1, 2], [3]] * 6)
        model = compiled(text_network())
        history = model.fit(*((DATA((x, Y)).batch(4),) if as_dataset else (x, Y, 4)), verbose=0).history
        assert np.isfinite(history["loss"]).all()

    @pytest.mark.parametrize("kind", ["SparseTensor", "RaggedTensor"])
    def test_prl_g_of_them_is_refused_with_the_way_out(self, kind):
        if kind == "SparseTensor":
            x, net = tf.sparse.from_dense(X), network(inputs=keras.Input((4,), sparse=True))
        else:
            x, net = tf.ragged.constant([[1, 2], [3]] * 6), text_network()
        with pytest.raises(ValueError, match=rf"score='gradient' .*{kind}.*dense"):
            compiled(net, score="gradient").fit(DATA((x, Y)).batch(4), verbose=0)


SCOPES = """
import pytest, tensorflow as tf

cpus = [tf.config.LogicalDeviceConfiguration()] * 2
tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], cpus)

import prl_keras as prl
from faults_test import LOSS, X, Y, network

strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
message = "not made in the scope of one tf.distribute strategy"

outside = network()
with strategy.scope():
    model = prl.RobustModel(outside)
    model.compile("sgd", LOSS)
with pytest.raises(ValueError, match=message):
    model.fit(X, Y, verbose=0)

model = prl.RobustModel(network())
with strategy.scope():
    model.compile("sgd", LOSS)
with pytest.raises(ValueError, match=message):
    model.fit(X, Y, verbose=0)
with pytest.raises(ValueError, match=message):
    model.train_on_batch(X, Y)

with strategy.scope():
    model = prl.RobustModel(network())
    model.compile("sgd", LOSS)
model.fit(X, Y, verbose=0)
with strategy.scope():
    unbuilt = prl.RobustModel(network())
unbuilt.compile("sgd", LOSS)
unbuilt.fit(X, Y, verbose=0)
"""


def test_what_was_made_outside_the_scope_of_a_strategy_is_refused():
    here = pathlib.Path(__file__).resolve().parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(here), str(here.parent)])}
    done = subprocess.run([sys.executable, "-c", SCOPES], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def test_a_pair_of_which_one_has_batch_norm_trains_both():
    pair = prl.CoTeachingModel(network(layers.BatchNormalization()), network(seed=1))
    pair.compile("adam", LOSS)
    before = pair.get_weights()
    pair.fit(X, Y, epochs=2, verbose=0)
    moved = [np.any(a != b) for a, b in zip(before, pair.get_weights(), strict=True)]
    assert all(moved) and all(np.isfinite(w).all() for w in pair.get_weights())
    assert len(pair.optimizer.variables) >= 2 * len(pair.trainable_variables)  # one optimizer for both
