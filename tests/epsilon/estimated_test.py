"""epsilon="auto": rises over the warm-up, falls to what training finds wrong, and is saved with the model."""

import re
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from arrays import assert_all_close, assert_all_equal

import prl_keras as prl
from prl_keras.experiments.data.load import load
from prl_keras.keras_gaps.fresh_start import start_as

LOGITS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def network(seed=0):
    random = keras.initializers.GlorotUniform(seed)
    hidden = keras.layers.Dense(64, "relu", kernel_initializer=random)
    return keras.Sequential([keras.Input((64,)), hidden, keras.layers.Dense(10, kernel_initializer=random)])


def digits(kind, epsilon):
    data = load("digits")
    noisy, _ = prl.corrupt(kind, data.train_y, epsilon, np.random.default_rng(0))
    return data.train_x.reshape(len(noisy), -1), noisy


def build(method="co_prl_l", warmup_steps=180, **options):
    seeds = iter(range(2))
    if "min_keep_per_class" in prl.METHODS[method].options:
        options["min_keep_per_class"] = 1
    return prl.build(
        method, lambda: network(next(seeds)), epsilon="auto", ramp_steps=warmup_steps, loss=LOGITS,
        **{"optimizer": keras.optimizers.Adam(0.003), **options},
    )  # fmt: skip


def told(model):
    return keras.ops.convert_to_numpy(model.rule.epsilon(model.optimizer.iterations)).item()


def values(epsilon, *steps):
    return [float(epsilon(step)) for step in steps]


def test_it_rises_after_plain_training_up_to_what_was_found_last():
    epsilon = prl.EstimatedEpsilon(20, most=0.4)
    np.testing.assert_allclose(values(epsilon, 0, 10, 15, 20, 99), [0, 0, 0.2, 0.4, 0.4], rtol=1e-6)
    for high, expected in ((0.3, 0.3), (0.9, 0.4), (0.1, 0.1), (0.0, 0.0)):
        epsilon.update(high)
        np.testing.assert_allclose(values(epsilon, 99, 11), [expected, min(0.04, expected)], rtol=1e-5)


def test_the_surest_predictions_before_anything_is_dropped_limit_it():
    epsilon = prl.EstimatedEpsilon(20)
    epsilon.update(0.3, doubt=0.05, step=5)
    epsilon.update(0.3, doubt=0.04, step=10)
    assert values(epsilon, 99) == pytest.approx([0.11])
    epsilon.update(0.3, doubt=0.01, step=15)  # what is dropped makes the network surer
    assert values(epsilon, 99) == pytest.approx([0.11])
    epsilon.update(0.05, doubt=0.5, step=20)
    assert values(epsilon, 99) == pytest.approx([0.05])
    epsilon = prl.EstimatedEpsilon(20)
    epsilon.update(0.3, doubt=0.012, step=10)
    assert values(epsilon, 99) == [0]


def test_nothing_is_dropped_while_the_network_learns():
    epsilon = prl.EstimatedEpsilon(20)
    for step, doubt in ((10, 0.7), (15, 0.4), (20, 0.2)):
        epsilon.update(0.3, doubt, step, epoch_steps=5)
        assert values(epsilon, step + 5) == [0] and values(epsilon, step + 6) > [0]
    epsilon.update(0.3, 0.18, 25, epoch_steps=5)
    np.testing.assert_allclose(values(epsilon, 25, 26, 30, 99), [0, 0.05, 0.25, 0.3], rtol=1e-5)


def test_plain_training_ends_with_an_epoch():
    epsilon = prl.EstimatedEpsilon(20)
    epsilon.update(0.3, 0.9, 8, epoch_steps=8)
    np.testing.assert_allclose(values(epsilon, 16, 17), [0, 0.05], rtol=1e-5)


def test_an_unknown_warm_up_is_a_fifth_of_the_training():
    epsilon = prl.EstimatedEpsilon()
    assert values(epsilon, 0, 99) == [0, 0]
    epsilon.start(50, 2)
    np.testing.assert_allclose(values(epsilon, 10, 15, 20), [0, 0.25, 0.5], rtol=1e-6)
    epsilon.start(100, 10, 100)  # of a second fit
    assert values(epsilon, 20) == pytest.approx([0.5])


@pytest.mark.parametrize(
    ("epochs", "epoch_steps", "warmup"), [(40, 15, 120), (100, 15, 150), (1000, 15, 150), (1000, 1, 100)]
)
def test_a_long_training_warms_up_for_ten_epochs_or_100_steps(epochs, epoch_steps, warmup):
    epsilon = prl.EstimatedEpsilon()
    epsilon.start(epochs, epoch_steps)
    assert values(epsilon, warmup // 2, warmup - 1, warmup) == [0, pytest.approx(0.5, abs=0.01), 0.5]


@pytest.mark.daily("*-True")
@pytest.mark.parametrize("most, is_warned", [(0.3, True), (0.6, False)])
def test_a_training_that_ends_at_its_limit_says_so_once(most, is_warned):
    x, noisy = digits("symmetric", 0.3)
    rule = prl.Trim(prl.EstimatedEpsilon(40, most))
    model = prl.RobustModel(network(), rule=rule)
    model.compile(keras.optimizers.Adam(0.003), LOGITS)
    with warnings.catch_warnings(record=True) as given:
        warnings.simplefilter("always")
        model.fit(x, noisy, epochs=6, verbose=0)
        model.fit(x, noisy, verbose=0)
    said = [str(each.message) for each in given if "ended at its limit" in str(each.message)]
    assert len(said) == is_warned
    if is_warned:
        assert re.search(r"limit, 0\.3: .* [0-9]+% to [0-9]+% of the labels are wrong", said[0])


@pytest.mark.parametrize("warmup_steps", [None, 4])
def test_the_first_epoch_drops_nothing(warmup_steps):
    epsilon = prl.EstimatedEpsilon(warmup_steps)
    epsilon.start(2, 10)
    assert values(epsilon, 10) == [0] and values(epsilon, 11) > [0]


def test_a_training_of_one_epoch_is_plain_training():
    x, noisy = digits("symmetric", 0.2)
    weights = []
    for method in ("standard", "auto"):
        keras.utils.set_random_seed(0)
        model = prl.build(method, network, loss=LOGITS, optimizer="adam")
        model.fit(x, noisy, batch_size=32, verbose=0, shuffle=False)
        weights.append(model.get_weights()[:4] if method == "standard" else model.network.get_weights())
    assert_all_close(*weights, rtol=1e-7)


@pytest.mark.daily("arrays")
@pytest.mark.parametrize("kind", ["arrays", "generator"])
def test_fit_sets_the_warm_up(kind):
    x, noisy = digits("symmetric", 0.2)
    model = prl.build("auto", network, loss=LOGITS, optimizer="adam")
    if kind == "arrays":
        data = {"x": x[:256], "y": noisy[:256], "batch_size": 32}
    else:  # of unknown length

        def batches():
            for i in range(0, 256, 32):
                yield x[i : i + 32], noisy[i : i + 32]

        shapes = (tf.TensorSpec((None, 64), tf.float32), tf.TensorSpec((None,), tf.int64))
        data = {"x": tf.data.Dataset.from_generator(batches, output_signature=shapes)}
    model.fit(**data, epochs=10, verbose=0)
    assert float(model.rule.epsilon.state[2]) == 16  # 80 steps


def doubt_of(network, x, labels, loss=LOGITS):
    """What a `NoiseWatch` counts in one epoch of a network that does not change."""
    model = prl.RobustModel(network, rule=prl.Trim(prl.EstimatedEpsilon(1000)))
    model.compile(keras.optimizers.SGD(0.0), loss)
    model.fit(x, labels, batch_size=50, verbose=0, shuffle=False)
    return (float(model.rule.epsilon.state[1]) + 0.05) / 4


@pytest.mark.parametrize("head", ["logits", "softmax"])
def test_the_doubt_is_that_of_the_surest_tenth(head):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 4)).astype("float32")
    inputs = keras.Input((4,))
    logits = keras.layers.Rescaling(2.0)(inputs)
    layer = keras.layers.Dense(4, kernel_initializer="identity", use_bias=False)
    outputs = layer(logits) if head == "logits" else keras.layers.Softmax()(layer(logits))
    found = doubt_of(
        keras.Model(inputs, outputs), x, rng.integers(4, size=500),
        LOGITS if head == "logits" else "sparse_categorical_crossentropy",
    )  # fmt: skip
    exponents = np.exp(2 * x)
    doubts = 1 - exponents.max(axis=1) / exponents.sum(axis=1)
    assert found == pytest.approx(np.quantile(doubts, 0.1), abs=0.005)


class TestAuto:
    def test_is_prl_l_that_estimates_epsilon(self):
        model = prl.build("auto", network, loss=LOGITS, optimizer="adam")
        assert model.score == "loss_layer_gradient" and type(model) is prl.RobustModel
        assert isinstance(model.rule.epsilon, prl.EstimatedEpsilon)
        assert model.rule.epsilon.warmup_steps is None

    def test_takes_the_options_of_prl_l(self):
        model = prl.build(
            "auto", network, epsilon="auto", loss=LOGITS, optimizer="adam", ramp_steps=7, min_keep_per_class=2
        )
        assert model.rule.min_keep_per_class == 2 and model.rule.epsilon.warmup_steps == 7

    def test_takes_no_epsilon(self):
        with pytest.raises(ValueError, match=r"method='auto' estimates epsilon; leave epsilon=0\.3 out"):
            prl.build("auto", network, epsilon=0.3, loss=LOGITS, optimizer="adam")

    def test_takes_regression(self):
        x = np.random.default_rng(0).normal(size=(64, 64)).astype("float32")
        model = prl.build("auto", network, loss="mse", optimizer="adam")
        model.fit(x, x[:, :10], batch_size=16, epochs=5, verbose=0)
        assert 0 <= told(model) <= 0.5

    @pytest.mark.long
    @pytest.mark.parametrize("epsilon", [0.0, 0.5])
    def test_drops_little_of_clean_labels_and_enough_of_wrong_ones(self, epsilon):
        keras.utils.set_random_seed(0)
        x, noisy = digits("symmetric", epsilon)
        model = prl.build("auto", network, loss=LOGITS, optimizer=keras.optimizers.Adam(0.003))
        model.fit(x, noisy, batch_size=128, epochs=30, verbose=0)
        assert told(model) <= 0.05 if not epsilon else told(model) >= 0.48


def test_a_method_that_drops_needs_an_epsilon_and_others_do_not():
    with pytest.raises(ValueError, match=r"method='spl' drops a fraction .* epsilon=\"auto\""):
        prl.build("spl", network, loss=LOGITS, optimizer="adam")
    assert prl.build("gce", network, loss=LOGITS, optimizer="adam").rule == prl.WeightByLoss("gce")


@pytest.fixture(scope="module")
def traced():
    """A pair whose step is traced; `start_as` gives it a fresh start."""
    model = build()
    model.fit(*digits("symmetric", 0.2), batch_size=128, epochs=1, verbose=0)
    return model


def trained(model, kind, epsilon, epochs=30):
    """-> the traced model, trained from a fresh start on noisy digits; its kept fractions."""
    keras.utils.set_random_seed(0)
    start_as(model, build())
    return model, model.fit(*digits(kind, epsilon), batch_size=128, epochs=epochs, verbose=0).history[
        "kept_fraction"
    ]


@pytest.mark.long
@pytest.mark.parametrize(
    "kind, epsilon", [("symmetric", 0.0), ("symmetric", 0.2), ("symmetric", 0.4), ("pairflip", 0.2)]
)
def test_of_digits_it_ends_a_little_above_the_truth(kind, epsilon, traced):
    model, kept = trained(traced, kind, epsilon)
    assert epsilon - 0.005 <= told(model) <= epsilon + 0.11
    assert 1 - kept[-1] == pytest.approx(told(model), abs=0.02)
    x, _ = digits(kind, epsilon)
    assert np.mean(model.predict(x, verbose=0).argmax(axis=1) == load("digits").train_y) > 0.93


BLOBS = np.random.default_rng(0).integers(0, 10, 300)  # labels of points around ten centers
POINTS = np.random.default_rng(1).normal(size=(10, 64))[BLOBS]
POINTS = (POINTS + 0.3 * np.random.default_rng(2).normal(size=POINTS.shape)).astype("float32")


@pytest.fixture(scope="module")
def in_graph():
    return of_blobs()


def of_blobs(**options):
    """The epsilon that is found on the blobs, of which a fifth of the labels is wrong."""
    noisy, _ = prl.corrupt("symmetric", BLOBS, 0.2, np.random.default_rng(0))
    keras.utils.set_random_seed(0)
    model = build(warmup_steps=6, optimizer=keras.optimizers.Adam(0.01), **options)
    model.fit(POINTS, noisy, batch_size=100, epochs=8, shuffle=False, verbose=0)
    return told(model)


@pytest.mark.daily("options2")
@pytest.mark.parametrize(
    "options", [{"jit_compile": True}, {"run_eagerly": True}, {"steps_per_execution": 4}]
)
def test_in_any_kind_of_step(options, in_graph):
    assert of_blobs(**options) == pytest.approx(in_graph, abs=0.01) and 0.1 < in_graph < 0.45


@pytest.mark.long
def test_one_network_falls_too():
    keras.utils.set_random_seed(0)
    x, noisy = digits("symmetric", 0.2)
    model = build("prl_l")
    model.fit(x, noisy, batch_size=128, epochs=30, verbose=0)
    assert 0.2 <= told(model) < 0.36


@pytest.mark.long
def test_it_is_saved_with_the_model(tmp_path, traced):
    model, _ = trained(traced, "symmetric", 0.2)
    assert 0 < told(model) < 0.5
    model.save(tmp_path / "model.keras")
    assert told(keras.saving.load_model(tmp_path / "model.keras")) == told(model)
    model.save_weights(tmp_path / "model.weights.h5")
    other = build(warmup_steps=10, run_eagerly=True)
    x, noisy = digits("symmetric", 0.2)
    other.fit(x[:128], noisy[:128], batch_size=128, verbose=0)
    other.load_weights(tmp_path / "model.weights.h5")
    assert told(other) == told(model)


@pytest.mark.long
def test_a_training_that_was_stopped_goes_on_as_if_it_had_not_been(tmp_path):
    x, noisy = digits("symmetric", 0.2)

    class Stop(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 9:
                raise InterruptedError

    def fit(model, *callbacks):
        model.fit(x, noisy, batch_size=256, epochs=12, shuffle=False, verbose=0, callbacks=list(callbacks))
        return model

    undisturbed = fit(build(warmup_steps=24))
    epsilon, weights = told(undisturbed), undisturbed.get_weights()
    start_as(undisturbed, build(warmup_steps=24))  # which saves a trace
    with pytest.raises(InterruptedError):
        fit(undisturbed, keras.callbacks.BackupAndRestore(tmp_path), Stop())
    resumed = fit(build(warmup_steps=24), keras.callbacks.BackupAndRestore(tmp_path))
    assert told(resumed) == epsilon < 0.5
    assert_all_equal(resumed.get_weights(), weights)


def test_two_models_of_one_rule_have_their_own():
    rule = prl.Trim(prl.EstimatedEpsilon(1, most=0.3), min_keep_per_class=1)
    models = [prl.RobustModel(network(), rule=rule) for _ in range(2)]
    models[0].rule.epsilon.update(0.1)
    assert [float(m.rule.epsilon(9)) for m in models] == pytest.approx([0.1, 0.3])
    assert models[0].rule.min_keep_per_class == 1


def test_its_state_is_a_weight_that_does_not_train():
    model = build("prl_l")
    assert len(model.non_trainable_weights) == 1 and len(model.trainable_weights) == 4


@pytest.mark.parametrize("kind", ["own_loss", "several_outputs"])
def test_where_nothing_is_estimated_it_is_refused(kind):
    x, y = np.ones((8, 4), "float32"), np.zeros((8, 2), "float32")

    def make_network():
        inputs = keras.Input((4,))
        outputs = [keras.layers.Dense(2, name=name)(inputs) for name in "ab"]
        return keras.Model(inputs, outputs if kind == "several_outputs" else outputs[0])

    loss = ["mse", "mse"] if kind == "several_outputs" else lambda y, p: keras.ops.sum((y - p) ** 2, axis=-1)
    rule = prl.Trim(prl.EstimatedEpsilon(3))
    model = prl.RobustModel(make_network(), rule=rule)
    model.compile("sgd", loss)
    with pytest.raises(ValueError, match="epsilon='auto' needs a model of one output"):
        model.fit(x, [y, y] if kind == "several_outputs" else y, verbose=0)


def test_faults():
    with pytest.raises(ValueError, match="epsilon='Auto' must be"):
        prl.build("prl_l", network, epsilon="Auto", loss=LOGITS, optimizer="adam")
    for steps in (0, 1.5, True):
        with pytest.raises(ValueError, match="warmup_steps"):
            prl.EstimatedEpsilon(steps)
    for most in (1, -0.1, float("nan"), "0.5", 0):
        with pytest.raises(ValueError, match="most"):
            prl.EstimatedEpsilon(5, most)


@pytest.mark.daily("prl_l", "prl_g", "co_prl_l", "jocor", "elr", "gmm", "geomed")
@pytest.mark.parametrize("method", [name for name in prl.METHODS if name != "huber"])
def test_every_method_takes_it(method):
    model = build(method, warmup_steps=2, run_eagerly=True)
    x, noisy = digits("symmetric", 0.2)
    model.fit(x[:128], noisy[:128], batch_size=128, epochs=2, verbose=0)
