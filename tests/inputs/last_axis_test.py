"""Targets or predictions without a last axis of size 1: as Keras takes them."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from arrays import assert_all_close

import prl_keras as prl

RNG = np.random.default_rng(0)
N = 8
LAYERS = keras.layers
# shape of the inputs -> the last layers, for predictions [n, 1], [n, 4, 1], [n, 3, 2, 1] and [n]
NETWORKS = {
    "[b, 1]": ((3,), lambda head: [LAYERS.Dense(1, head)]),
    "[b, t, 1]": ((4, 3), lambda head: [LAYERS.Dense(1, head)]),
    "[b, h, w, 1]": ((3, 2, 3), lambda head: [LAYERS.Dense(1, head)]),
    "[b]": ((3,), lambda head: [LAYERS.Dense(1, head), LAYERS.Reshape(())]),
}
LOSSES = {
    "mse": ("linear", "values"),
    "mae": ("linear", "values"),
    "binary_crossentropy": ("sigmoid", "bits"),
    "logits": ("linear", "bits"),
    "hinge": ("linear", "bits"),
    "poisson": ("exponential", "bits"),
    "bootstrap": ("sigmoid", "bits"),
    "own": ("linear", "values"),
}


def own(y_true, y_pred):
    return keras.ops.mean(keras.ops.square(y_true - y_pred), axis=-1)


def loss_of(name):
    given = {"logits": keras.losses.BinaryCrossentropy(from_logits=True), "bootstrap": prl.losses.Bootstrap()}
    return {**given, "own": own}.get(name, name)


def case(form, loss, seed=0):
    """A network, inputs, and targets without the last axis."""
    shape, layers = NETWORKS[form]
    head, kind = LOSSES[loss]
    keras.utils.set_random_seed(1)
    network = keras.Sequential([keras.Input(shape), *layers(head)])
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(N, *shape)).astype("float32"), rng.normal(size=(N, *shape[:-1]))
    return network, x, (y > 0).astype("int64") if kind == "bits" else y.astype("float32")


def fitted(model, x, y, loss, **kwargs):
    model.compile(keras.optimizers.SGD(0.1), loss_of(loss), run_eagerly=True)
    model.fit(x, y, batch_size=N, shuffle=False, verbose=0, **kwargs)
    return model.get_weights()


CASES = [(form, loss) for form in ("[b, 1]", "[b, t, 1]") for loss in LOSSES]
CASES += [(form, loss) for form in ("[b, h, w, 1]", "[b]") for loss in ("mse", "binary_crossentropy")]


@pytest.mark.daily(
    "?b, 1]-hinge",
    "?b, 1]-poisson",
    "?b, 1]-logits",
    "?b, t, 1]-bootstrap",
    "?b, t, 1]-mse",
    "?b]-mse",
    "?b]-binary_crossentropy",
)
@pytest.mark.fault(36)
@pytest.mark.parametrize(("form", "loss"), CASES)
def test_dropping_nothing_is_plain_fit(form, loss):
    network, x, y = case(form, loss)
    wide = y if form == "[b]" else y[..., None]
    plain = fitted(network, x, y if loss != "bootstrap" else wide, loss)
    network, x, y = case(form, loss)
    assert_all_close(fitted(prl.RobustModel(network, rule=prl.Trim(0.0)), x, y, loss), plain)


@pytest.mark.daily("?b, 1]-*", "?b]-mse-loss_layer_gradient-*")
@pytest.mark.fault(36)
@pytest.mark.parametrize("unit", ["example", "element"])
@pytest.mark.parametrize("score", ["loss_layer_gradient", "gradient"])
@pytest.mark.parametrize(("form", "loss"), [("[b, 1]", "logits"), ("[b, t, 1]", "logits"), ("[b]", "mse")])
def test_a_step_is_that_of_targets_with_the_last_axis(form, loss, score, unit):
    if unit == "element" and score == "gradient":
        pytest.skip("no gradient of an element")
    _, x, y = case(form, loss)
    weights = RNG.uniform(0.5, 2, size=N).astype("float32")
    steps, scores = [], []
    for given, net in ((y, form), (y[..., None], "[b, 1]" if form == "[b]" else form)):
        model = prl.RobustModel(case(net, loss)[0], score, prl.Trim(0.5), unit=unit)
        steps.append(fitted(model, x, given, loss, sample_weight=weights))
        scores.append(model.example_scores(x, given)[0])
    assert_all_close(*steps)
    np.testing.assert_allclose(np.ravel(scores[0]), np.ravel(scores[1]), rtol=1e-4)
    if unit == "element" and form != "[b]":
        assert scores[0].shape == y.shape


@pytest.mark.fault(36)
def test_masks_and_weights_of_steps_apply():
    def trained(y, weights):
        keras.utils.set_random_seed(1)
        inputs = keras.Input((4, 3))
        outputs = LAYERS.Dense(1)(LAYERS.Masking()(inputs))
        return fitted(prl.RobustModel(keras.Model(inputs, outputs)), x, y, "mse", sample_weight=weights)

    _, x, y = case("[b, t, 1]", "mse")
    x[:, 3] = 0
    weights = RNG.integers(0, 2, size=y.shape).astype("float32")
    assert_all_close(trained(y, weights), trained(y[..., None], weights))


@pytest.mark.fault(36)
@pytest.mark.parametrize("form", ["[b, 1]", "[b]"])
def test_class_labels_and_metrics(form):
    network, x, y = case(form, "binary_crossentropy")
    model = prl.RobustModel(network, rule=prl.Trim(0.25, min_keep_per_class=1))
    model.compile("sgd", "binary_crossentropy", metrics=["accuracy", "mse"], run_eagerly=True)
    logs = model.fit(tf.data.Dataset.from_tensor_slices((x, y)).batch(N), verbose=0).history
    assert {"kept_fraction_min_class", "accuracy", "mse"} <= logs.keys()
    assert model.kept_by_class.shape == (2,)
    assert prl.check(model, (x, y)).lines[1].is_ok
    assert len(prl.audit(model, (x, y))) == N


@pytest.mark.fault(36)
@pytest.mark.parametrize("form", ["[b, t, 1]", "[b, h, w, 1]"])
def test_audit_names_the_place_of_a_label(form):
    network, x, y = case(form, "binary_crossentropy")
    network.compile("sgd", "binary_crossentropy")
    tables = [prl.audit(network, (x, given)) for given in (y, y[..., None])]
    assert tables[0].index.names == tables[1].index.names
    np.testing.assert_array_equal(tables[0].index.to_list(), tables[1].index.to_list())


@pytest.mark.fault(36)
def test_several_outputs():
    def trained(y, robust=True):
        keras.utils.set_random_seed(1)
        inputs = keras.Input((4, 3))
        outputs = {"steps": LAYERS.Dense(1)(inputs), "one": LAYERS.Dense(1)(LAYERS.Flatten()(inputs))}
        network = keras.Model(inputs, outputs)
        return fitted(prl.RobustModel(network, rule=prl.Trim(0.0)) if robust else network, x, y, "mse")

    _, x, y = case("[b, t, 1]", "mse")
    given = {"steps": y, "one": y[:, 0]}
    assert_all_close(trained(given), trained(given, robust=False))


@pytest.mark.fault(36)
@pytest.mark.parametrize("loss", [own, keras.losses.CosineSimilarity()])
def test_a_loss_of_the_whole_batch_is_refused_with_advice(loss):
    network, x, y = case("[b]", "mse")
    model = prl.RobustModel(network)
    model.compile("sgd", loss, run_eagerly=True)
    with pytest.raises(ValueError, match=r"end the network in Dense\(1\), without a Reshape"):
        model.fit(x, y, verbose=0)


@pytest.mark.daily("(8, 4)")
@pytest.mark.fault(36)
@pytest.mark.parametrize("weights", [None, (N,), (N, 4)], ids=str)
def test_evaluate_gives_the_loss_of_fit(weights):
    """With as many examples as steps, Keras would broadcast a mask or weights `[n]` along the other axis."""
    network = keras.Sequential(
        [keras.Input((4,)), LAYERS.Embedding(3, 2, mask_zero=True), LAYERS.Dense(1, "sigmoid")]
    )
    x, y = RNG.integers(0, 3, (N, 4)), RNG.integers(0, 2, (N, 4)).astype("float32")
    weights = None if weights is None else RNG.uniform(size=weights).astype("float32")
    model = prl.RobustModel(network, rule=prl.Trim(0.0))
    for batch_size in (4, 8):
        losses = []
        for targets in (y, y[..., None]):
            model.compile(keras.optimizers.SGD(0.0), "binary_crossentropy", run_eagerly=True)
            options = dict(sample_weight=weights, batch_size=batch_size, verbose=0)
            losses.append(model.fit(x, targets, shuffle=False, **options).history["loss"][0])
            losses.append(model.evaluate(x, targets, **options))
        np.testing.assert_allclose(losses, losses[0], rtol=1e-5)
