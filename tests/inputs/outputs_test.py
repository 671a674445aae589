"""Several outputs: what is ranked is the weighted sum of an example's losses, in every form Keras takes."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from arrays import assert_all_close, assert_all_equal
from small_classifier import refused

import prl_keras as prl

RNG = np.random.default_rng(0)
N = 12
X = RNG.normal(size=(N, 5)).astype("float32")
LABELS = RNG.integers(0, 3, N)
VALUES = RNG.normal(size=(N, 2)).astype("float32")
STEPS = RNG.normal(size=(N, 4)).astype("float32")[..., None]
WEIGHTS = {"classes": 0.5, "values": 2.0, "steps": 3.0}
LOSSES = {
    "classes": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    "values": "mse",
    "steps": "mse",
}
TARGETS = {"classes": LABELS, "values": VALUES, "steps": STEPS}


def network(form="list", seed=0):
    """Outputs "classes" `[n, 3]`, "values" `[n, 2]` and "steps" `[n, 4, 1]`."""
    inputs = keras.Input((5,))
    initializers = iter([keras.initializers.GlorotUniform(seed + i) for i in range(4)])
    dense = lambda units, **kwargs: keras.layers.Dense(units, kernel_initializer=next(initializers), **kwargs)  # noqa: E731
    h = dense(6, activation="tanh", kernel_regularizer=keras.regularizers.L2(0.01))(inputs)
    outputs = {
        "classes": dense(3, name="classes")(h),
        "values": dense(2, name="values")(h),
        "steps": keras.layers.Reshape((4, 1), name="steps")(dense(4)(h)),
    }
    return keras.Model(inputs, in_form(outputs, form))


def in_form(of_outputs, form):
    """A dict by output in the form of the network's outputs, or as one entry for each in order."""
    if form == "list":
        return list(of_outputs.values())
    if form == "nested":
        return {"first": of_outputs["classes"], "rest": [of_outputs["values"], of_outputs["steps"]]}
    return dict(of_outputs)


def compiled(model, form="list", losses=LOSSES, weights=WEIGHTS, run_eagerly=True, **kwargs):
    """Eagerly, as a trace of so many outputs takes seconds."""
    losses, weights = in_form(losses, form), in_form(weights, form)
    model.compile(keras.optimizers.SGD(0.1), losses, loss_weights=weights, run_eagerly=run_eagerly, **kwargs)
    return model


def losses_and_scores(net, score):
    """An example's losses by output, and its score: a loop, NumPy, no code of the library."""
    all_losses, all_scores = [], []
    for i in range(N):
        with tf.GradientTape() as tape:
            z = net(X[i : i + 1], training=True)
            by_output = {
                "classes": -tf.nn.log_softmax(z[0])[0, LABELS[i]],
                "values": tf.reduce_mean((z[1][0] - VALUES[i]) ** 2),
                "steps": tf.reduce_mean((z[2][0] - STEPS[i]) ** 2),
            }
            loss = sum(WEIGHTS[name] * value for name, value in by_output.items())
        if score == "loss":
            all_scores.append(float(loss))
        elif score == "gradient":
            gradient = tape.gradient(loss, net.trainable_variables)
            all_scores.append(np.sqrt(sum(np.sum(np.square(g)) for g in gradient)))
        else:
            p = np.exp(z[0][0]) / np.sum(np.exp(z[0][0]))
            parts = [
                0.5 * (p - np.eye(3)[LABELS[i]]),
                2.0 * 2 * (z[1][0].numpy() - VALUES[i]) / 2,
                3.0 * 2 * (z[2][0].numpy() - STEPS[i]).ravel() / 4,
            ]
            all_scores.append(np.linalg.norm(np.concatenate(parts)))
        all_losses.append({name: float(value) for name, value in by_output.items()})
    return all_losses, np.array(all_scores)


def after_a_plain_step(net, weights, form="list", **kwargs):
    """Of plain Keras, with weights `[n]`, or a dict of them by output."""
    weights = weights if isinstance(weights, dict) else dict.fromkeys(TARGETS, weights)
    weights = in_form({**weights, "steps": weights["steps"][:, None]}, form)  # else Keras broadcasts them
    compiled(net, form, **kwargs)
    net.fit(X, in_form(TARGETS, form), batch_size=N, shuffle=False, sample_weight=weights, verbose=0)
    return net.get_weights()


@pytest.mark.daily("list-loss", "dict-loss_layer_gradient", "nested-loss_layer_gradient", "nested-gradient")
@pytest.mark.fault(23)
@pytest.mark.parametrize("score", ["loss", "loss_layer_gradient", "gradient"])
@pytest.mark.parametrize("form", ["list", "dict", "nested"])
def test_a_step_is_that_of_the_examples_with_the_lowest_weighted_sum(form, score):
    all_losses, scores = losses_and_scores(network(), score)
    kept = np.argsort(scores)[:8]
    weights = np.zeros(N)
    weights[kept] = N / 8
    model = compiled(prl.RobustModel(network(form), score, prl.Trim(1 / 3)), form)
    np.testing.assert_allclose(model.example_scores(X, in_form(TARGETS, form))[0], scores, rtol=1e-4)
    logs = model.fit(X, in_form(TARGETS, form), batch_size=N, shuffle=False, verbose=0).history
    assert_all_close(model.get_weights(), after_a_plain_step(network(form), weights, form))
    regularization = sum(map(float, network().losses))
    sums = [sum(WEIGHTS[name] * value for name, value in losses.items()) for losses in all_losses]
    np.testing.assert_allclose(logs["loss"][0], np.mean(np.array(sums)[kept]) + regularization, rtol=1e-5)
    np.testing.assert_allclose(logs["loss_all"][0], np.mean(sums) + regularization, rtol=1e-5)
    np.testing.assert_allclose(logs["kept_fraction"][0], 8 / 12)


@pytest.mark.daily("gradient")
@pytest.mark.fault(23)
@pytest.mark.parametrize("score", ["loss_layer_gradient", "gradient"])
def test_dropping_nothing_is_plain_fit_with_all_its_logs(score):
    data = (X, in_form(TARGETS, "list"))
    kwargs = {"metrics": [["accuracy"], ["mae"], []], "run_eagerly": False}
    model = compiled(prl.RobustModel(network(), score, prl.Trim(0.0)), **kwargs)
    plain = compiled(network(), metrics=kwargs["metrics"])
    logs, plain_logs = (
        m.fit(*data, batch_size=4, shuffle=False, epochs=2, validation_data=data, verbose=0).history
        for m in (model, plain)
    )
    assert_all_close(model.get_weights(), plain.get_weights())
    assert plain_logs.keys() <= logs.keys()
    for name, values in plain_logs.items():
        np.testing.assert_allclose(logs[name], values, rtol=1e-4, err_msg=name)
    np.testing.assert_allclose(model.evaluate(*data, verbose=0), plain.evaluate(*data, verbose=0), rtol=1e-4)


def step_weights(model, y, **kwargs):
    model.fit(X, y, batch_size=N, shuffle=False, verbose=0, **kwargs)
    return model.get_weights()


@pytest.mark.fault(23)
def test_dicts_by_name_go_with_a_list_of_outputs():
    by_list = step_weights(compiled(prl.RobustModel(network())), in_form(TARGETS, "list"))
    model = prl.RobustModel(network())
    model.compile(keras.optimizers.SGD(0.1), LOSSES, loss_weights=WEIGHTS, run_eagerly=True)
    assert_all_close(step_weights(model, TARGETS), by_list)


def test_one_loss_for_all_the_outputs():
    inputs = keras.Input((5,))
    kernel = lambda seed: keras.initializers.GlorotUniform(seed)  # noqa: E731
    outputs = [keras.layers.Dense(2, kernel_initializer=kernel(i))(inputs) for i in range(2)]
    models = [prl.RobustModel(keras.models.clone_model(keras.Model(inputs, outputs))) for _ in range(2)]
    models[1].set_weights(models[0].get_weights())
    for model, loss in zip(models, ["mse", ["mse", "mse"]]):
        model.compile(keras.optimizers.SGD(0.1), loss, run_eagerly=True)
    a, b = (step_weights(model, [VALUES, VALUES]) for model in models)
    assert_all_close(a, b)


@pytest.mark.fault(23)
@pytest.mark.parametrize("targets", ["all", "labelled"])
def test_an_output_without_a_loss_ranks_and_trains_nothing(targets):
    losses = {**LOSSES, "values": None}
    model = prl.RobustModel(network(), "loss")
    model.compile(keras.optimizers.SGD(0.1), in_form(losses, "list"), run_eagerly=True)
    y = in_form(TARGETS, "list") if targets == "all" else [LABELS, STEPS]
    before = model.network.get_layer("values").get_weights()
    scores = model.example_scores(X, y)[0]
    step_weights(model, y)
    assert_all_equal(model.network.get_layer("values").get_weights(), before)
    by_example, _ = losses_and_scores(network(), "loss")
    np.testing.assert_allclose(scores, [row["classes"] + row["steps"] for row in by_example], rtol=1e-4)


def test_weights_for_each_output_multiply_and_never_rank():
    weights = {name: RNG.uniform(0.5, 2, N).astype("float32") for name in TARGETS}
    model = compiled(prl.RobustModel(network()))
    kept = model.example_weights(X, in_form(TARGETS, "list"))[0].numpy()
    ours = step_weights(model, in_form(TARGETS, "list"), sample_weight=list(weights.values()))
    plain = after_a_plain_step(network(), {name: kept * w for name, w in weights.items()})
    assert_all_close(ours, plain)


def test_recompute_is_the_same_step():
    y = in_form(TARGETS, "list")
    a, b = (
        step_weights(compiled(prl.RobustModel(network(), recompute=recompute)), y)
        for recompute in (False, True)
    )
    assert_all_close(a, b)


@pytest.mark.parametrize("exchange", ["swap", "disagreement"])
def test_pairs(exchange):
    pair = prl.CoTeachingModel(network(seed=0), network(seed=9), rule=prl.Trim(0.25), exchange=exchange)
    losses = {**LOSSES, "values": None, "steps": None} if exchange == "disagreement" else LOSSES
    compiled(pair, losses=losses)
    y = in_form(TARGETS, "list")
    weights = [w.numpy() for w in pair.example_weights(X, y)]
    plain = [after_a_plain_step(network(seed=s), w, losses=losses) for s, w in zip((0, 9), weights)]
    step_weights(pair, y)
    for ours, net_weights in zip(pair.networks, plain):
        assert_all_close(ours.get_weights(), net_weights)
    if exchange == "disagreement":
        a, b = (np.argmax(net(X)[0], axis=-1) for net in (network(seed=0), network(seed=9)))
        assert not np.any(weights[0][a == b])


def test_sums_count_every_step_of_an_example():
    losses = {
        "classes": keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="sum"),
        "values": keras.losses.MeanSquaredError(reduction="sum"),
        "steps": keras.losses.MeanSquaredError(reduction="sum"),
    }
    model = compiled(prl.RobustModel(network(), "loss"), losses=losses)
    by_example, _ = losses_and_scores(network(), "loss")
    expected = [0.5 * row["classes"] + 2 * row["values"] + 4 * 3 * row["steps"] for row in by_example]
    np.testing.assert_allclose(model.example_scores(X, in_form(TARGETS, "list"))[0], expected, rtol=1e-4)


def test_an_own_score_sees_all_the_outputs():
    def score(y_true, y_pred):
        return tf.abs(y_pred[1][:, 0] - y_true[1][:, 0])

    model = compiled(prl.RobustModel(network(), score))
    expected = np.abs(network()(X)[1][:, 0] - VALUES[:, 0])
    np.testing.assert_allclose(model.example_scores(X, in_form(TARGETS, "list"))[0], expected, rtol=1e-5)


def test_a_row_that_is_not_finite_in_one_output_leaves_no_trace():
    values = VALUES.copy()
    values[3] = np.nan
    model = compiled(prl.RobustModel(network(), rule=prl.Trim(0.25)))
    y = [LABELS, values, STEPS]
    logs = model.fit(X, y, batch_size=N, shuffle=False, verbose=0).history
    assert logs["nonfinite"] == [1]
    assert np.isfinite(logs["loss_all"]).all()
    assert model.example_weights(X, y)[0][3] == 0
    assert all(np.isfinite(w).all() for w in model.get_weights())


def test_saved_and_loaded(tmp_path):
    model = compiled(prl.RobustModel(network()))
    y = in_form(TARGETS, "list")
    step_weights(model, y)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert_all_close(step_weights(loaded, y), step_weights(model, y))


@pytest.mark.parametrize("kind", ["arrays", "dataset", "generator"])
def test_labels_of_any_output_are_checked_before_training(kind):
    model = compiled(prl.RobustModel(network()))
    y = (np.where(np.arange(N) == 5, 3, LABELS), VALUES, STEPS)
    data = {
        "arrays": lambda: (X, list(y)),
        "dataset": lambda: (tf.data.Dataset.from_tensors((X, y)),),
        "generator": lambda: ((batch for batch in [(X, y)]),),
    }[kind]()
    with refused(model, "Class labels must be at least 0, and at most 2"):
        model.fit(*data, verbose=0)


@pytest.mark.fault(23)
@pytest.mark.parametrize(
    ("losses", "y", "message"),
    [
        (LOSSES, {**TARGETS, "step": STEPS}, "y is a dict of 'classes', 'val.*'step'"),
        (LOSSES, {"classes": LABELS, "values": VALUES}, "The output 'steps' has a loss but no targets"),
        (LOSSES, LABELS, "The output 'classes' has a loss but no targets: y is one array"),
        (LOSSES, [LABELS, VALUES], "y is a list of 2; the outputs are"),
        (LOSSES, [LABELS, VALUES, STEPS[:, :3]], r"Targets of shape .*3, 1\) against .*4, 1\)"),
        ({**LOSSES, "values": keras.losses.MeanSquaredError("sum")}, TARGETS, "need one reduction"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused_with_the_keys(losses, y, message):
    model = prl.RobustModel(network())
    model.compile("sgd", losses)
    with refused(model, message):
        model.fit(X, y, verbose=0)


def test_several_inputs_as_a_list_of_arrays():
    inputs = [keras.Input((5,)), keras.Input((2,))]
    joined = keras.layers.Concatenate()(inputs)
    model = prl.RobustModel(keras.Model(inputs, keras.layers.Dense(3)(joined)))
    model.compile("sgd", LOSSES["classes"], run_eagerly=True)
    history = model.fit([X, VALUES], LABELS, batch_size=5, verbose=0).history
    assert np.isfinite(history["loss"]).all()


@pytest.mark.fault(23)
def test_a_masked_output_trains_as_without_recompute():
    """Each output has its own mean over what counts."""

    def trained(**options):
        keras.utils.set_random_seed(0)
        inputs = keras.Input((4, 2))
        h = keras.layers.Masking()(inputs)
        outputs = [keras.layers.Dense(1)(h), keras.layers.Dense(1)(keras.layers.Flatten()(inputs))]
        model = prl.RobustModel(keras.Model(inputs, outputs), rule=prl.Trim(1 / 3), **options)
        model.compile("sgd", ["mse", "mse"], run_eagerly=True)
        mask = np.arange(4) <= np.arange(N)[:, None] % 4
        x = np.random.default_rng(1).normal(size=(N, 4, 2)) * mask[..., None]
        model.fit(x, [STEPS, VALUES[:, :1]], batch_size=N, shuffle=False, verbose=0)
        return model.get_weights()

    assert_all_close(trained(recompute=True), trained())


@pytest.mark.daily("standard", "huber", "normclip", "min_sgd", "spl")
@pytest.mark.parametrize("method", ["standard", "huber", "normclip", "min_sgd", "spl", "ignormclip"])
def test_build_takes_the_losses_of_several_outputs(method):
    losses = {"values": "mse", "steps": "mse"}
    model = prl.build(
        method,
        lambda: network("dict"),
        epsilon=0.25,
        loss={**losses, "classes": LOSSES["classes"]} if method != "huber" else losses,
        optimizer="sgd",
        loss_weights=None if method == "huber" else WEIGHTS,
        run_eagerly=True,
    )
    history = model.fit(X, TARGETS, batch_size=6, verbose=0).history
    assert np.isfinite(history["loss"]).all()


def test_scores_of_a_plain_model_use_its_loss_weights():
    plain = compiled(network())
    _, scores = losses_and_scores(network(), "loss_layer_gradient")
    found = prl.score_examples(plain, (X, tuple(in_form(TARGETS, "list"))))
    np.testing.assert_allclose(found, scores, rtol=1e-4)
