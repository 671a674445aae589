"""A subclassed network's own loss, metrics and predictions are used; a step of its own is warned of."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

import prl_keras as prl

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(24, 6)).astype("float32"), RNG.normal(size=(24, 2)).astype("float32")


class Network(keras.Model):
    def __init__(self, seed=0):
        super().__init__()
        keras.utils.set_random_seed(seed)
        self.dense = layers.Dense(2, kernel_regularizer="l2")
        self.rows = keras.metrics.Sum(name="rows")

    def call(self, x):
        self.rows.update_state(ops.ones_like(x[:, 0]))
        return self.dense(x)


class Penalised(Network):
    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        loss = super().compute_loss(x, y, y_pred, sample_weight, training)
        return loss + (10.0 if training else 3.0) * ops.sum(ops.square(self.dense.kernel)) * ops.mean(x[:, 0])


class WithoutTraining(Network):
    def compute_loss(self, x, y, y_pred, sample_weight):
        return 3.0 * super().compute_loss(x, y, y_pred, sample_weight)


class UsesWhatCompileSets(Network):
    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        loss = ops.mean(keras.losses.get(self.loss)(y, y_pred))
        return super().compute_loss(x, y, y_pred, sample_weight) + 0 * loss + self.optimizer.learning_rate


class Logging(Network):
    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        logs = super().compute_metrics(x, y, y_pred, sample_weight)
        return {**logs, "largest": ops.max(ops.abs(y_pred))}


class MetricsProperty(Network):
    def __init__(self, seed=0):
        super().__init__(seed)
        self.loss_tracker = keras.metrics.Mean(name="loss")

    @property
    def metrics(self):
        return [self.loss_tracker, self.rows]


class Predicting(Network):
    def predict_step(self, data):
        return -super().predict_step(data)


def trained(model, **options):
    model.compile(keras.optimizers.SGD(0.01), "mse", metrics=["mae"], **options)
    data = dict(validation_data=(X[:10], Y[:10]), verbose=0, shuffle=False, batch_size=8, epochs=2)
    return model.fit(X, Y, **data).history


LOSSES = [Network, Penalised, WithoutTraining, UsesWhatCompileSets, Logging, Predicting]


@pytest.mark.daily("prl_l-Penalised", "prl_g-WithoutTraining")
@pytest.mark.fault(40)
@pytest.mark.parametrize("make", LOSSES)
@pytest.mark.parametrize(
    "options",
    [dict(score=None), dict(rule=prl.Trim(0.0)), dict(score="gradient", rule=prl.Trim(0.0))],
    ids=["none", "prl_l", "prl_g"],
)
def test_dropping_nothing_is_plain_fit(make, options):
    plain, network = make(), make()
    model = prl.RobustModel(network, **options)
    expected, found = trained(plain), trained(model)
    exact = options.get("score") != "gradient"
    np.testing.assert_allclose(network.get_weights()[0], plain.get_weights()[0], atol=0 if exact else 1e-6)
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-5, err_msg=name)
    np.testing.assert_array_equal(model.predict(X, verbose=0), network.predict(X, verbose=0))


@pytest.mark.long
@pytest.mark.fault(40)
@pytest.mark.parametrize("make", [Network, Penalised])
def test_each_network_of_a_pair_has_its_own_loss(make):
    plains = [make(0), make(1)]
    pair = prl.CoTeachingModel(make(0), make(1), rule=prl.Trim(0.0))
    found, expected = trained(pair), [trained(plain) for plain in plains]
    for network, plain in zip(pair.networks, plains):
        np.testing.assert_allclose(network.get_weights()[0], plain.get_weights()[0], atol=1e-6)
    for name in ("loss", "val_loss", "mae"):
        np.testing.assert_allclose(found[name], np.mean([e[name] for e in expected], axis=0), rtol=1e-5)


@pytest.mark.fault(40)
def test_the_rule_weighs_the_networks_own_loss():
    """One step of `Penalised` with weights 2 and 0 is that of plain Keras with these sample weights."""
    plain, network = Penalised(), Penalised()

    def rule(scores, is_ranked, step):
        return 2 * ops.cast(ops.arange(ops.shape(scores)[0]) % 2 == 0, "float32")

    for model in (plain, prl.RobustModel(network, rule=rule)):
        model.compile(keras.optimizers.SGD(0.01), "mse")
        weight = None if model is not plain else np.tile([2.0, 0.0], 12)
        model.train_on_batch(X, Y, sample_weight=weight)
    np.testing.assert_allclose(network.get_weights()[0], plain.get_weights()[0], atol=1e-7)


@pytest.mark.fault(40)
def test_a_compute_loss_of_a_subclass_of_robust_model():
    class Doubled(prl.RobustModel):
        def compute_loss(self, *args, **kwargs):
            return 2.0 * super().compute_loss(*args, **kwargs)

    model = Doubled(Network(), score=None)
    model.compile("sgd", "mse")
    plain = Network()
    plain.compile("sgd", "mse")
    losses = [each.evaluate(X, Y, verbose=0)[0] for each in (model, plain)]
    assert losses[0] == pytest.approx(2 * losses[1])


@pytest.mark.fault(40)
def test_predictions_of_a_pair():
    pair = prl.CoTeachingModel(Predicting(0), Network(1))
    a, b = (network.predict(X, verbose=0) for network in pair.networks)
    np.testing.assert_allclose(pair.predict(X, verbose=0), (a + b) / 2, atol=1e-6)


@pytest.mark.fault(40)
@pytest.mark.parametrize("step", ["train_step", "test_step"])
def test_a_step_of_its_own_is_warned_of(step):
    own = type("Own", (Network,), {step: lambda self, data: {"loss": 0.0}})
    with pytest.warns(UserWarning, match=f"Own has its own {step}.*compute_loss"):
        prl.RobustModel(own())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prl.RobustModel(Network())


@pytest.mark.daily("True-MetricsProperty")
@pytest.mark.fault(50)
@pytest.mark.parametrize("make", [Network, MetricsProperty])
@pytest.mark.parametrize("run_eagerly", [False, True])
def test_a_metric_of_the_network_is_logged_and_reset(make, run_eagerly):
    network = make()
    history = trained(prl.RobustModel(network), run_eagerly=run_eagerly)
    assert history["rows"] == [24, 24] and history["val_rows"] == [10, 10]
    assert min(history["loss"]) > 0  # not the tracker of a step that is not used


@pytest.mark.fault(50)
def test_a_pair_logs_the_metrics_of_its_first_network_and_resets_both():
    pair = prl.CoTeachingModel(Network(0), Network(1))
    history = trained(pair)
    assert history["rows"] == [24, 24] and history["val_rows"] == [10, 10]
    assert float(pair.network_b.rows.result()) == 10


@pytest.mark.fault(50)
def test_metrics_of_the_networks_own_compile_are_left_out():
    network = Network()
    network.compile("sgd", "mae", metrics=["mse"])
    assert set(trained(prl.RobustModel(network, score=None))) >= {"loss", "mae", "rows"}
    assert "mse" not in trained(prl.RobustModel(network, score=None))


class AddIfGiven(layers.Layer):
    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(2)

    def call(self, x, o=None):
        return self.dense(x if o is None else x + o)


@pytest.mark.daily("{}")
@pytest.mark.fault(52)
@pytest.mark.parametrize("options", [dict(score=None), dict(score="loss"), dict()], ids=str)
def test_an_optional_input_that_is_none(options):
    plain, model = optional(), prl.RobustModel(optional(), rule=prl.Trim(0.0), **options)
    logs = [trained_on(each, {"x": X, "o": None}) for each in (plain, model)]
    np.testing.assert_allclose(*logs, rtol=1e-5)
    np.testing.assert_allclose(model.network.get_weights()[0], plain.get_weights()[0], atol=1e-6)


@pytest.mark.fault(52)
def test_prl_g_refuses_an_optional_input_that_is_none():
    model = prl.RobustModel(optional(), "gradient")
    with pytest.raises(ValueError, match=r"None.*another score"):
        trained_on(model, {"x": X, "o": None})


def optional():
    """A network with an optional input, named before the other."""
    keras.utils.set_random_seed(0)
    x, o = keras.Input((6,), name="x"), keras.Input((6,), name="o", optional=True)
    return keras.Model({"x": x, "o": o}, AddIfGiven()(x, o))


def trained_on(model, data):
    """The losses of all of Keras's ways to train and evaluate."""
    model.compile(keras.optimizers.SGD(0.01), "mse")
    history = model.fit(data, Y, verbose=0, validation_data=(data, Y)).history
    on_batch = [model.train_on_batch(data, Y, return_dict=True)["loss"], model.test_on_batch(data, Y)]
    return [history["loss"][0], history["val_loss"][0], *on_batch, model.evaluate(data, Y, verbose=0)]


@pytest.mark.fault(54)
def test_get_layer_finds_the_layers_of_the_networks():
    network = keras.Sequential(
        [keras.Input((6,)), layers.Dense(3, name="first"), layers.Dense(2, name="last")]
    )
    model = prl.RobustModel(network)
    assert model.get_layer("last") is network.layers[1]
    assert model.get_layer(network.name) is model.get_layer(index=0) is network
    pair = prl.CoTeachingModel(network, Network(1))
    assert pair.get_layer("first") is network.layers[0]
    assert pair.get_layer(pair.network_b.dense.name) is pair.network_b.dense
    with pytest.raises(ValueError, match="No such layer: middle"):
        model.get_layer("middle")


@pytest.mark.daily("3")
@pytest.mark.fault(54)
@pytest.mark.parametrize("steps_per_execution", [1, 3])
def test_the_logs_of_batches_of_different_size_in_a_stream_of_unknown_length(steps_per_execution):
    def batches():
        for start, stop in [(0, 7), (7, 8), (8, 20), (20, 24)]:
            yield X[start:stop], Y[start:stop]

    kind = (tf.TensorSpec((None, 6)), tf.TensorSpec((None, 2)))
    data = tf.data.Dataset.from_generator(batches, output_signature=kind)
    plain, network = Network(), Network()
    found = []
    for model in (plain, prl.RobustModel(network, rule=prl.Trim(0.0))):
        model.compile(
            keras.optimizers.SGD(0.1), "mse", metrics=["mae"], steps_per_execution=steps_per_execution
        )
        found.append(model.fit(data, epochs=2, verbose=0).history)
    for name, values in found[0].items():
        assert found[1][name] == values


@pytest.mark.fault(54)
@pytest.mark.parametrize("is_stream", [False, True])
def test_ragged_targets_get_a_sentence(is_stream):
    model = prl.RobustModel(Network())
    model.compile("sgd", "mse")
    y = tf.RaggedTensor.from_row_lengths(tf.ones([24]), [1] * 24)
    data = [tf.data.Dataset.from_tensor_slices((X, y)).batch(8)] if is_stream else [X, y]
    with pytest.raises(ValueError, match=r"RaggedTensor.*to_tensor\(\)"):
        model.fit(*data, verbose=0)


@pytest.mark.fault(54)
@pytest.mark.parametrize("weights", [None, np.ones(24)], ids=["", "weights"])
def test_evaluate_without_a_loss_is_that_of_keras(weights):
    plain, network = Network(), Network()
    found = []
    for model in (plain, prl.RobustModel(network)):
        model.compile("sgd", weighted_metrics=["mae"])
        found.append(sorted(model.evaluate(X, Y, sample_weight=weights, verbose=0)))
    np.testing.assert_allclose(*found, rtol=1e-6)
