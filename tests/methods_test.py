"""The table of methods and `build`."""

import dataclasses
import math

import keras
import numpy as np
import pytest

import prl_keras as prl
from prl_keras.methods import PAPER_METHODS

NAMES = (
    "standard", "normclip", "huber", "bootstrap", "decouple", "min_sgd",
    "spl", "ignormclip", "prl_g", "prl_l", "co_teaching", "co_prl_l",
)  # fmt: skip
LATER = (
    "gce", "sce", "mae", "phuber", "clipped_ce", "taylor", "term", "sigua", "bare",
    "sever", "geomed", "jocor", "co_teaching_plus", "elr", "gmm",
)  # fmt: skip
# The table of the design: score, exchange, and the rule's type.
PARTS = {
    **dict.fromkeys(("standard", "normclip", "huber", "bootstrap", "elr"), (None, None, None)),
    "decouple": (None, "disagreement", None),
    "min_sgd": ("loss", None, prl.KeepLowest(1)),
    "spl": ("loss", None, prl.Trim(0.3)),
    "ignormclip": ("gradient", None, prl.ClipNorm(1.0)),
    "prl_g": ("gradient", None, prl.Trim(0.3)),
    "prl_l": ("loss_layer_gradient", None, prl.Trim(0.3)),
    "co_teaching": ("loss", "swap", prl.Trim(0.3)),
    "co_prl_l": ("loss_layer_gradient", "swap", prl.Trim(0.3)),
    **{name: ("loss", None, prl.WeightByLoss(name)) for name in LATER[:7]},
    "sigua": ("loss", None, prl.Sigua(0.3)),
    "bare": ("loss", None, prl.Bare()),
    "sever": ("sever", None, prl.Trim(0.3)),
    "geomed": ("distance_to_median", None, prl.InverseScore()),
    "jocor": ("loss", "joint", prl.Trim(0.3)),
    "co_teaching_plus": ("loss", "swap_disagreement", prl.Trim(0.3)),
    "gmm": ("loss", None, prl.MixturePosterior()),
}
CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def make_network():
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])


def build(method, **kwargs):
    kwargs = {"epsilon": 0.3, "loss": CROSS_ENTROPY, "optimizer": "sgd", **kwargs}
    return prl.build(method, make_network, **kwargs)


def test_the_names_in_order_as_frozen_rows_the_papers_first():
    assert PAPER_METHODS == NAMES and tuple(prl.METHODS) == (*NAMES, *LATER)
    for name, row in prl.METHODS.items():
        assert row.name == name
        with pytest.raises(dataclasses.FrozenInstanceError):
            row.score = "loss"
    with pytest.raises(TypeError):
        prl.METHODS["mine"] = row


@pytest.mark.parametrize("name", (*NAMES, *LATER))
def test_each_row_builds_the_parts_of_the_design(name):
    model = build(name, loss="mse" if name == "huber" else CROSS_ENTROPY)
    score, exchange, rule = PARTS[name]
    assert model.compiled
    if exchange:
        assert type(model) is prl.CoTeachingModel and model.exchange == exchange
    elif score or name == "elr":
        assert type(model) is prl.RobustModel
    else:
        assert not isinstance(model, (prl.RobustModel, prl.CoTeachingModel))
        return
    assert (model.score, model.rule) == (score, rule)


def test_two_rows_compare_predictions():
    assert build("jocor", strength=0.5).consistency == prl.Agreement(0.5)
    model = build("elr", strength=7, momentum=0.9)
    assert type(model) is prl.RobustModel and (model.score, model.consistency) == (None, prl.EarlyLearning(7))
    assert (model.optimizer.use_ema, model.optimizer.ema_momentum) == (True, 0.9)
    assert prl.METHODS["elr"].options == {"momentum": 0.99, "strength": 3.0}


def test_the_outer_methods_change_loss_or_optimizer_alone():
    assert build("normclip", max_norm=2.5).optimizer.global_clipnorm == 2.5
    huber = build("huber", loss=keras.losses.MeanSquaredError(), delta=0.5).loss
    assert isinstance(huber, keras.losses.Huber)
    assert float(huber(np.zeros((1, 1)), np.full((1, 1), 2.0))) == 0.5 * 2 - 0.5 * 0.5**2
    bootstrap = build("bootstrap", beta=0.7).loss
    assert (bootstrap.beta, bootstrap.from_logits) == (0.7, True)
    assert build("bootstrap", loss="sparse_categorical_crossentropy").loss.from_logits is False


def test_ramp_steps_make_epsilon_rise_from_zero():
    rule = build("prl_l", ramp_steps=10).rule
    assert [np.count_nonzero(rule(np.arange(100.0), step=s)) for s in (0, 5, 10)] == [100, 85, 70]
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([5], [0.0, 0.5])
    assert build("prl_l", epsilon=schedule).rule.epsilon is schedule
    with pytest.raises(ValueError, match="schedule already"):
        build("prl_l", epsilon=schedule, ramp_steps=3)


def test_options_reach_their_part():
    assert build("ignormclip", max_norm=math.inf).rule == prl.ClipNorm(math.inf)
    assert build("min_sgd", count=3).rule == prl.KeepLowest(3)
    assert build("prl_g", microbatch_size=8).microbatch_size == 8
    assert build("prl_l", run_eagerly=True).run_eagerly
    assert build("co_teaching_plus", warm_up_steps=7).warm_up_steps == 7
    assert prl.METHODS["ignormclip"].options == {"max_norm": 1.0}
    assert prl.METHODS["bootstrap"].options == {"beta": 0.8}


@pytest.mark.parametrize(
    ("method", "kwargs", "message"),
    [
        ("prl-l", {}, r"method='prl-l' is not known.*prl_l"),
        ("prl_l", {"beta": 0.5}, r"no option beta; it takes .*microbatch_size"),
        ("prl_l", {"epsilon": 1.2}, r"epsilon=1.2 must be a number in \[0, 1\)"),
        ("standard", {"epsilon": math.nan}, r"epsilon=nan"),
        ("prl_l", {"loss": None}, r"loss=None"),
        ("prl_l", {"loss": "no_such_loss"}, r"no_such_loss"),
        ("huber", {}, r"huber.*regression"),
        ("bootstrap", {"loss": "mse"}, r"bootstrap.*regression"),
        ("decouple", {"loss": "mse"}, r"decouple.*regression"),
        ("bootstrap", {"beta": 1.5}, r"beta=1.5"),
        ("normclip", {"max_norm": 0}, r"max_norm=0"),
        ("ignormclip", {"max_norm": -1}, r"max_norm=-1"),
        ("jocor", {"loss": "mse"}, r"jocor.*regression"),
        ("elr", {"loss": "mse"}, r"elr.*regression"),
        ("co_teaching_plus", {"loss": "mse"}, r"co_teaching_plus.*regression"),
        ("co_teaching_plus", {"warm_up_steps": -1}, r"warm_up_steps=-1 must be a whole number of at least 0"),
        ("prl_l", {"optimizer": None}, "optimizer=None: write a Keras optimizer"),
        ("prl_l", {"optimizer": keras.optimizers.Adam}, r"optimizer=Adam is a class; write Adam\(\)"),
        ("prl_l", {"epsilon": "Auto"}, "epsilon='Auto' must be a number .*takes \"auto\", too"),
        ("prl_l", {"ramp_steps": -3}, "ramp_steps=-3 must be a whole number of at least 0"),
        ("prl_l", {"ramp_steps": 1.5}, "ramp_steps=1.5 must be a whole number"),
    ],
)
def test_bad_arguments_are_refused_and_named_as_they_were_written(method, kwargs, message):
    with pytest.raises(ValueError, match=message):
        build(method, **kwargs)


class TestBootstrap:
    LOGITS = np.array([[2.0, 0.0, -1.0], [0.0, 1.0, 3.0]], np.float32)
    LABELS = np.array([1, 2])

    def cross_entropy(self, labels):
        log_p = self.LOGITS - np.log(np.exp(self.LOGITS).sum(axis=1, keepdims=True))
        return -log_p[range(2), labels]

    def expected(self):
        return 0.8 * self.cross_entropy(self.LABELS) + 0.2 * self.cross_entropy(self.LOGITS.argmax(axis=1))

    def test_mixes_the_label_with_the_own_prediction(self):
        loss = prl.Bootstrap(beta=0.8, from_logits=True, reduction=None)
        np.testing.assert_allclose(loss(self.LABELS, self.LOGITS), self.expected(), rtol=1e-5)
        np.testing.assert_allclose(loss(self.LABELS[:, None], self.LOGITS), self.expected(), rtol=1e-5)
        np.testing.assert_allclose(loss(np.eye(3)[self.LABELS], self.LOGITS), self.expected(), rtol=1e-5)

    def test_takes_probabilities(self):
        probabilities = keras.activations.softmax(keras.ops.convert_to_tensor(self.LOGITS))
        loss = prl.Bootstrap(reduction=None)
        np.testing.assert_allclose(loss(self.LABELS, probabilities), self.expected(), rtol=1e-5)

    def test_takes_a_single_output(self):
        loss = prl.Bootstrap(from_logits=True, reduction=None)
        value = float(loss(np.zeros((1, 1)), np.full((1, 1), 2.0))[0])
        assert value == pytest.approx(0.8 * np.log1p(np.exp(2.0)) + 0.2 * np.log1p(np.exp(-2.0)), rel=1e-5)

    def test_beta_one_is_plain_cross_entropy(self):
        loss = prl.Bootstrap(beta=1.0, from_logits=True)
        assert float(loss(self.LABELS, self.LOGITS)) == pytest.approx(self.cross_entropy(self.LABELS).mean())

    def test_survives_serialization(self):
        loss = keras.losses.deserialize(keras.losses.serialize(prl.Bootstrap(beta=0.6, from_logits=True)))
        assert (loss.beta, loss.from_logits) == (0.6, True)


def test_replaced_losses_keep_the_reduction():
    assert build("huber", loss=keras.losses.MeanSquaredError(reduction="sum")).loss.reduction == "sum"
    assert build("spl", metrics="accuracy").compiled


def two_outputs():
    x = keras.Input((4,))
    return keras.Model(x, {"a": keras.layers.Dense(3, name="a")(x), "b": keras.layers.Dense(1, name="b")(x)})


@pytest.mark.daily("{'a': 'accuracy'}-prl_l", "None-*", "()-co_prl_l")
@pytest.mark.fault(44)
@pytest.mark.parametrize("method", ["standard", "prl_l", "co_prl_l"])
@pytest.mark.parametrize(
    "metrics",
    [
        None,
        (),
        {"a": "accuracy"},
        {"a": ["accuracy"], "b": [keras.metrics.RootMeanSquaredError]},
        [["accuracy"], ["mse", "mae"]],
        (["accuracy"], ["mse"]),
        [None, "mse"],
    ],
    ids=repr,
)
def test_metrics_are_those_of_plain_keras(method, metrics):
    def made():
        return keras.tree.map_structure(lambda m: m() if isinstance(m, type) else m, metrics)

    x, y = np.ones((8, 4), np.float32), {"a": np.arange(8) % 3, "b": np.ones((8, 1), np.float32)}
    losses = {"a": CROSS_ENTROPY, "b": "mse"}
    plain = two_outputs()
    plain.compile("sgd", losses, metrics=made(), run_eagerly=True)
    model = prl.build(
        method, two_outputs, epsilon=0.3, loss=losses, optimizer="sgd", metrics=made(), run_eagerly=True
    )
    expected = plain.evaluate(x, y, verbose=0, return_dict=True)
    assert model.evaluate(x, y, verbose=0, return_dict=True).keys() == expected.keys()
