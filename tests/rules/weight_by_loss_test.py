"""WeightByLoss: a step of the rule is a step of the loss, and what each loss does at its ends."""

import copy
import json
import pickle

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

import prl_keras as prl
from prl_keras.rules.weight_by_loss import LOSSES, defaults

N, CLASSES = 12, 5


def losses_of_probability(p):
    """{name: the loss by its formula, from the probabilities of the given labels}."""
    tau = 10.0
    return {
        "gce": ops.mean((1 - p**0.7) / 0.7),
        "sce": ops.mean(-0.1 * ops.log(p) + 4 * (1 - p)),
        "mae": ops.mean(2 * (1 - p)),
        "phuber": ops.mean(ops.where(p > 1 / tau, -ops.log(p), -tau * p + np.log(tau) + 1)),
        "clipped_ce": ops.mean(ops.minimum(-ops.log(p), 5.0)),
        "taylor": ops.mean((1 - p) + (1 - p) ** 2 / 2),
        "term": -ops.log(ops.mean(ops.exp(ops.log(p)))),
    }


def network():
    keras.utils.set_random_seed(1)
    return keras.Sequential([
        keras.Input((4,)), keras.layers.Dense(8, "tanh"), keras.layers.Dense(CLASSES),
    ])  # fmt: skip


@pytest.mark.daily("gce-False", "sce-True")
@pytest.mark.parametrize("from_logits", [True, False])
@pytest.mark.parametrize("name", LOSSES)
def test_a_step_of_the_rule_is_a_step_of_the_loss(name, from_logits):
    rng = np.random.default_rng(0)
    x = 3 * rng.normal(size=(N, 4)).astype("float32")  # losses from nearly 0 to above 5
    y = rng.integers(0, CLASSES, N)

    def scaled():
        made = network()
        made.layers[-1].kernel.assign(4 * made.layers[-1].kernel)
        parts = [made] if from_logits else [made, keras.layers.Softmax()]
        return keras.Sequential([keras.Input((4,)), *parts])

    byhand = scaled()
    with tf.GradientTape() as tape:
        outputs = byhand(x)
        p = tf.nn.softmax(outputs) if from_logits else outputs
        p = tf.gather(p, y, batch_dims=1)
        loss = losses_of_probability(p)[name]
    assert float(tf.reduce_min(p)) < np.exp(-5) and float(tf.reduce_max(p)) > 0.5
    gradients = tape.gradient(loss, byhand.trainable_variables)
    expected = [v - 0.1 * g for v, g in zip(byhand.trainable_variables, gradients)]

    model = prl.build(
        name,
        scaled,
        epsilon=0.3,
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=from_logits),
        optimizer=keras.optimizers.SGD(0.1),
    )
    model.train_on_batch(x, y)
    for one, other in zip(expected, model.trainable_variables, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_padding_and_non_finite_losses_weigh_0_and_change_no_other_weight(name):
    rule = prl.WeightByLoss(name)
    losses = np.float32([0.1, 2.0, 7.0])
    alone = rule(losses).numpy()
    found = rule(
        np.float32([0.1, np.nan, 2.0, 3.0, 7.0, np.inf]), [True, True, True, False, True, True]
    ).numpy()
    np.testing.assert_allclose(found[[0, 2, 4]], alone, rtol=1e-5)
    assert found[[1, 3, 5]].tolist() == [0, 0, 0]
    assert rule(np.float32([1.0]), [False]).numpy().tolist() == [0]


@pytest.mark.parametrize("name", sorted(set(LOSSES) - {"term"}))
def test_improbable_labels_weigh_less(name):
    weights = prl.WeightByLoss(name)(np.linspace(0, 40, 200)).numpy()
    assert (np.diff(weights) <= 0).all() and weights[0] > weights[-1] >= 0


def test_term_weighs_1_in_the_mean_and_does_not_underflow():
    for losses in ([0.1, 1.0, 5.0], [200.0, 300.0, 201.0]):
        weights = prl.WeightByLoss("term", t=-2.0)(np.float32(losses)).numpy()
        assert weights.mean() == pytest.approx(1) and weights[0] == weights.max()
    # t = -q is the generalized cross-entropy, divided by its mean over the batch.
    losses = np.float32([0.1, 1.0, 5.0])
    gce = prl.WeightByLoss("gce", q=0.7)(losses).numpy()
    np.testing.assert_allclose(prl.WeightByLoss("term", t=-0.7)(losses), gce / gce.mean(), rtol=1e-5)


def test_known_special_cases():
    losses = np.float32([0.0, 0.5, 3.0])
    p = np.exp(-losses)
    np.testing.assert_allclose(prl.WeightByLoss("gce", q=1)(losses), p, rtol=1e-6)
    np.testing.assert_allclose(prl.WeightByLoss("taylor", terms=1)(losses), p, rtol=1e-6)
    np.testing.assert_allclose(prl.WeightByLoss("sce", alpha=1, beta=0)(losses), [1, 1, 1])
    np.testing.assert_allclose(prl.WeightByLoss("clipped_ce", max_loss=2)(losses), [1, 1, 0])
    # Rounding can make a loss slightly negative: p stays 1.
    assert float(prl.WeightByLoss("mae")(np.float32([-1e-6]))[0]) == 2


@pytest.mark.parametrize("name", LOSSES)
def test_the_warm_up_is_plain_training(name):
    rule = prl.WeightByLoss(name, warm_up_steps=3)
    losses = np.float32([0.5, 9.0])
    assert rule(losses, step=2).numpy().tolist() == [1, 1]
    np.testing.assert_array_equal(rule(losses, step=3), prl.WeightByLoss(name)(losses))


@pytest.mark.parametrize("name", LOSSES)
def test_comes_back_from_its_config_and_has_the_defaults_of_the_table(name):
    rule = prl.WeightByLoss(name, warm_up_steps=2)
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(rule))
    assert again == rule and hash(again) == hash(rule) and again != prl.WeightByLoss(name)
    assert rule.parameters == defaults(name)
    for copied in (copy.deepcopy(rule), pickle.loads(pickle.dumps(rule))):
        assert copied == rule
    json.dumps(prl.WeightByLoss("gce", q=np.float32(0.7)).get_config())
    assert prl.WeightByLoss("gce", q=np.float32(0.7)) == prl.WeightByLoss("gce")
    assert prl.METHODS[name].options == {"warm_up_steps": 0, **defaults(name)}


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"loss": "mse"}, r"loss='mse' is not known; write one of gce, sce"),
        ({"loss": "gce", "tau": 2}, r"loss='gce' has no parameter tau; it takes q"),
        ({"loss": "mae", "q": 2}, r"loss='mae' has no parameter q; it takes none"),
        ({"loss": ["gce"]}, r"loss=\['gce'\] is not known"),
        ({"loss": "gce", "q": "a"}, r"q='a' must be a number in \(0, 1\]"),
        ({"loss": "sce", "alpha": 0, "beta": 0}, "beta=0 must be at least 0, and positive if alpha is 0"),
        ({"loss": "gce", "q": 0}, r"q=0 must be a number in \(0, 1\]"),
        ({"loss": "sce", "alpha": -1}, "alpha=-1 must be at least 0"),
        ({"loss": "sce", "log_of_zero": 1}, "log_of_zero=1 must be negative"),
        ({"loss": "phuber", "tau": 1}, "tau=1 must be larger than 1"),
        ({"loss": "clipped_ce", "max_loss": float("nan")}, "max_loss=nan must be positive"),
        ({"loss": "taylor", "terms": 0}, "terms=0 must be a whole number of at least 1"),
        ({"loss": "term", "t": 1}, "t=1 must be negative"),
        ({"loss": "gce", "warm_up_steps": -1}, "warm_up_steps=-1 must be"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        prl.WeightByLoss(**arguments)


@pytest.mark.parametrize("name", [*LOSSES, "bare"])
def test_a_loss_without_classes_is_refused(name):
    with pytest.raises(ValueError, match=f"method='{name}'.*regression"):
        prl.build(name, network, epsilon=0.1, loss="mse", optimizer="sgd")


def step(loss, rule="gce", score="loss", outputs=CLASSES, targets=None, **options):
    """A step of a model with a rule that reads p."""
    rule = prl.Bare() if rule == "bare" else prl.WeightByLoss(rule)
    model = prl.RobustModel(
        keras.Sequential([keras.Input((4,)), keras.layers.Dense(outputs)]), score, rule, **options
    )
    model.compile("sgd", loss)
    x = np.ones((6, 4), "float32")
    targets = np.arange(6) % CLASSES if targets is None else targets
    return model.train_on_batch(x, targets)


SPARSE = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
ONE_HOT = np.eye(CLASSES)[np.arange(6) % CLASSES]
MANY = np.ones((6, 3))


@pytest.mark.parametrize("rule", ["gce", "bare"])
@pytest.mark.parametrize(
    "loss, options, message",
    [
        (SPARSE, {"score": "loss_layer_gradient"}, "score='loss_layer_gradient' does not tell it"),
        (SPARSE, {"score": "gradient"}, "score='gradient' does not tell it"),
        ("mse", {"targets": ONE_HOT}, "needs one class label|reads the probability"),
        (keras.losses.CategoricalCrossentropy(True, 0.1), {"targets": ONE_HOT}, "without label smoothing"),
        (keras.losses.CategoricalFocalCrossentropy(), {"targets": ONE_HOT}, "without label smoothing"),
        (keras.losses.CategoricalHinge(), {"targets": ONE_HOT}, "needs one class label|reads the prob"),
        (
            keras.losses.BinaryCrossentropy(True),
            {"targets": MANY, "outputs": 3},
            "one class label|unit='element'",
        ),
        (prl.Bootstrap(from_logits=True), {}, "without label smoothing"),
    ],
)
def test_a_loss_that_does_not_tell_the_probability_is_refused(rule, loss, options, message):
    with pytest.raises(ValueError, match=message):
        step(loss, rule, **options)


@pytest.mark.parametrize(
    "loss, options",
    [
        (SPARSE, {}),
        (keras.losses.CategoricalCrossentropy(True), {"targets": ONE_HOT}),
        (keras.losses.BinaryCrossentropy(True), {"outputs": 1, "targets": np.ones((6, 1))}),
        (keras.losses.BinaryCrossentropy(True), {"outputs": 3, "targets": MANY, "unit": "element"}),
    ],
)
def test_every_plain_cross_entropy_trains(loss, options):
    assert np.isfinite(step(loss, **options)).all()
