"""Which loss goes with which output: the loss that Keras computes, in every form that `compile` takes."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from arrays import assert_all_close

import prl_keras as prl

RNG = np.random.default_rng(0)
N = 8
X = RNG.normal(size=(N, 3)).astype("float32")
Y = RNG.normal(size=(3, N, 1)).astype("float32")
A, B, C = Y
BOTH, THREE = {"p": A, "q": B}, {"p": (A, B), "q": C}


def distance(y_true, y_pred):
    """Runs on a structure, and with another result on each of its leaves."""
    pairs = zip(keras.tree.flatten(y_true), keras.tree.flatten(y_pred))
    return keras.ops.sqrt(sum(keras.ops.square(y - p)[:, 0] for y, p in pairs))


def product(y_true, y_pred):
    pairs = zip(keras.tree.flatten(y_true), keras.tree.flatten(y_pred))
    return keras.ops.square(keras.ops.prod(keras.ops.stack([(y - p)[:, 0] for y, p in pairs]), axis=0))


class Normal(keras.losses.Loss):
    """Negative log-likelihood of targets `[n, 1]` for an output `(mean, logarithm of the deviation)`."""

    def call(self, y_true, y_pred):
        mean, log_deviation = y_pred
        return (log_deviation + keras.ops.square((y_true - mean) / keras.ops.exp(log_deviation)) / 2)[:, 0]


def heads(number):
    glorot = keras.initializers.GlorotUniform
    dense = [keras.layers.Dense(1, kernel_initializer=glorot(i), name="zyx"[i]) for i in range(number)]
    inputs = keras.Input((3,))
    return inputs, [layer(inputs) for layer in dense]


def network(form):
    """Names of the outputs in reverse: z, y, x, so that an order by name is not that of the outputs."""
    inputs, (a, b, c) = heads(3)
    forms = {
        "one": a,
        "list": [a, b],
        "tuple": (a, b),
        "dict": {"p": a, "q": b},
        "deep dict": {"p": (a, b), "q": c},
        "deep list": [[a, b], c],
        "dict of a dict": {"p": {"u": a, "v": b}, "q": c},
        "dict of a list": {"p": [a, b]},
    }
    return keras.Model(inputs, forms[form])


# (outputs, loss, loss_weights, targets)
CASES = {
    "a list of one": ("one", ["mse"], None, A),
    "a dict of one": ("one", {"z": "mae"}, None, A),
    "a list of one in a dict": ("one", {"z": ["mse"]}, None, A),
    "several losses": ("one", ["mse", "mae"], None, A),
    "several losses with weights": ("one", ["mse", distance], [0.5, 3.0], A),
    "several losses by name": ("one", {"z": ["mse", "mae"]}, {"z": [0.5, 2.0]}, A),
    "weighted": ("one", "mse", 2.0, A),
    "one target, one loss": ("list", ["mse", None], None, A),
    "one target, last loss": ("list", [None, "mse"], None, B),
    "one target in a list": ("list", [None, "mse"], None, [B]),
    "one target, dict": ("dict", {"q": "mse"}, None, B),
    "one target of a dict": ("dict", {"q": "mse"}, None, {"q": B}),
    "list": ("list", ["mse", "mae"], [2.0, 1.0], [A, B]),
    "list, weights by name": ("list", ["mse", "mae"], {"z": 2.0, "y": 1.0}, [A, B]),
    "list, all by name": ("list", {"y": "mae", "z": "mse"}, {"z": 2.0, "y": 1.0}, {"y": B, "z": A}),
    "tuple, losses in a list": ("tuple", ["mse", "mae"], None, (A, B)),
    "one loss for each": ("list", distance, None, [A, B]),
    "one loss for each, weighted": ("dict", product, 3.0, {"p": A, "q": B}),
    "several of one of two": ("dict", {"p": "mse", "q": ["mse", "mae"]}, {"p": 1.0, "q": [2.0, 3.0]}, BOTH),
    "several, weights in a row": ("dict", {"q": ["mse", "mae"], "p": "mse"}, [1.0, 2.0, 3.0], BOTH),
    "of a tuple": ("deep dict", {"p": distance}, None, THREE),
    "of a tuple and of one": ("deep dict", {"p": product, "q": "mae"}, {"p": 2.0, "q": 0.5}, THREE),
    "of a dict": ("dict of a dict", {"p": distance, "q": "mse"}, None, {"p": {"u": A, "v": B}, "q": C}),
    "of a list": ("deep list", [distance, "mse"], None, [[A, B], C]),
    "several of a tuple": ("deep dict", {"p": [distance, product, distance]}, None, THREE),
    "of each of a tuple": ("deep dict", {"p": [distance, product]}, None, THREE),
    "of all": ("list", (distance,), None, [A, B]),
    "several of all": ("list", (distance, product, distance), [1.0, 2.0, 3.0], [A, B]),
    "own structure of targets": ("deep dict", {"p": Normal()}, None, {"p": A}),
    "targets in a row": ("deep list", ["mse", "mse", "mae"], None, [A, B, C]),
}  # fmt: skip


def compiled(model, case, **kwargs):
    _, loss, weights, _ = CASES[case]
    model.compile(keras.optimizers.SGD(0.1), loss, loss_weights=weights, run_eagerly=True, **kwargs)
    return model


def rows_of(y, rows):
    return keras.tree.map_structure(lambda t: t[rows], y)


def examples(case):
    """Of each example its loss, and its gradients with respect to all the outputs, by Keras alone."""
    form, *_, y = CASES[case]
    net = compiled(network(form), case)
    losses, gradients = [], []
    for i in range(N):
        x, target = X[i : i + 1], rows_of(y, slice(i, i + 1))
        with tf.GradientTape() as tape:
            y_pred = net(x)
            tape.watch(keras.tree.flatten(y_pred))
            loss = net.compute_loss(x, target, y_pred)
        found = tape.gradient(loss, keras.tree.flatten(y_pred), unconnected_gradients="zero")
        gradients.append(np.linalg.norm(np.ravel(found)))
        losses.append(float(loss))
    return np.array(losses), np.array(gradients)


def fitted(model, case, rows=slice(None)):
    y = rows_of(CASES[case][-1], rows)
    logs = model.fit(X[rows], y, batch_size=4, shuffle=False, verbose=0).history
    return model.get_weights(), logs


@pytest.mark.fault(51, 53)
@pytest.mark.parametrize("case", CASES)
def test_what_is_ranked_is_the_loss_of_keras(case):
    form, *_, y = CASES[case]
    losses, gradients = examples(case)
    if CASES[case][2] is not None and form == "one":  # the weight of the one loss ranks nothing
        weight = keras.tree.flatten(CASES[case][2])[0]
        losses, gradients = losses / weight, gradients / weight
    for score, expected in (("loss", losses), ("loss_layer_gradient", gradients)):
        model = compiled(prl.RobustModel(network(form), score), case)
        np.testing.assert_allclose(model.example_scores(X, y)[0], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.daily(
    "a dict of one",
    "several losses with weights",
    "one target, one loss",
    "one target of a dict",
    "list, weights by name",
    "one loss for each, weighted",
    "several of one of*",
)
@pytest.mark.fault(51, 53)
@pytest.mark.parametrize("case", CASES)
def test_dropping_nothing_is_plain_fit_with_its_logs(case):
    form, *_ = CASES[case]
    plain, plain_logs = fitted(compiled(network(form), case), case)
    ours, logs = fitted(compiled(prl.RobustModel(network(form), "loss", prl.Trim(0.0)), case), case)
    assert_all_close(ours, plain, atol=1e-7)
    for name, values in plain_logs.items():
        np.testing.assert_allclose(logs[name], values, rtol=1e-5, err_msg=name)


@pytest.mark.daily("several losses-True", "several of one of two-False", "of a tuple-True")
@pytest.mark.fault(51, 53)
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("case", ["several losses", "several of one of two", "of a tuple", "several of all"])
def test_a_step_is_that_of_the_examples_with_the_lowest_loss(case, recompute):
    form, *_ = CASES[case]
    losses, _ = examples(case)
    model = prl.RobustModel(network(form), "loss", prl.Trim(0.5), recompute=recompute)
    compiled(model, case).fit(X, CASES[case][-1], batch_size=N, shuffle=False, verbose=0)
    plain, _ = fitted(compiled(network(form), case), case, np.sort(np.argsort(losses)[:4]))
    assert_all_close(model.get_weights(), plain, atol=1e-7)


@pytest.mark.fault(53)
@pytest.mark.parametrize("case", ["several losses", "of a tuple", "own structure of targets"])
def test_norms_over_the_network_are_of_the_whole_loss(case):
    form, *_, y = CASES[case]
    model = compiled(prl.RobustModel(network(form), "gradient"), case)
    _, gradients = examples(case)
    expected = gradients * np.sqrt(1 + np.sum(X**2, axis=1))  # of one dense layer for each output
    np.testing.assert_allclose(model.example_scores(X, y)[0], expected, rtol=1e-4)


@pytest.mark.fault(51, 53)
@pytest.mark.parametrize(
    ("form", "loss", "y", "message"),
    [
        ("deep dict", {"p": distance}, {"p": A, "q": C}, "takes a list of 2 of predictions as a whole"),
        ("dict", {"p": ["mse", lambda y, p: keras.ops.ones((N, 4, 5))]}, BOTH, "take the same weights"),
        ("dict", {"p": "mse", "r": "mse"}, BOTH, "loss is a dict of 'p', 'r'; the outputs are 'p', 'q'"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_said(form, loss, y, message):
    model = prl.RobustModel(network(form), "loss")
    model.compile("sgd", loss, run_eagerly=True)
    with pytest.raises(ValueError, match=message):
        model.fit(X, y, batch_size=N, verbose=0)


@pytest.mark.fault(51)
def test_one_loss_in_a_list_takes_class_labels():
    model = prl.RobustModel(
        keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]),
        rule=prl.Trim(0.25, min_keep_per_class=1),
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", [loss], run_eagerly=True)
    logs = model.fit(X, (A[:, 0] > 0).astype(int), batch_size=N, verbose=0).history
    assert "kept_fraction_min_class" in logs
