"""`prl_keras.check`: each line says what is there, or what to do; nothing is trained."""

import re
import resource

import keras
import numpy as np
import pytest
import tensorflow as tf

import prl_keras as prl

RNG = np.random.default_rng(0)
X = RNG.normal(size=(20, 6)).astype("float32")
Y = np.arange(20) % 3
LOGITS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
BINARY = keras.losses.BinaryCrossentropy(from_logits=True)
IGNORING = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-1)
PROBABILITIES = keras.losses.SparseCategoricalCrossentropy()
TOPICS = [
    "loss",
    "targets",
    "head",
    "batch normalization",
    "classes",
    "kept",
    "ties",
    "memory",
    "precision",
    "strategy",
]


def network(*middle, activation=None, units=3, policy="float32"):
    keras.config.set_dtype_policy(policy)
    dense = keras.layers.Dense(units, activation=activation)
    made = keras.Sequential([keras.Input((6,)), *middle, dense])
    keras.config.set_dtype_policy("float32")
    return made


def compiled(net, loss=LOGITS, optimizer="sgd", jit_compile="auto", **kwargs):
    model = prl.RobustModel(net, **kwargs)
    model.compile(optimizer, loss, jit_compile=jit_compile)
    return model


def line(report, topic):
    return next(line for line in report.lines if line.topic == topic)


def test_a_good_model_is_ok_in_every_line_and_as_it_was():
    model = compiled(network(keras.layers.BatchNormalization(), keras.layers.Dropout(0.5)))
    before = [np.array(variable) for variable in (*model.variables, *model.optimizer.variables)]
    report = prl.check(model, (X, Y))
    assert report.is_ok
    assert [line.topic for line in report.lines] == TOPICS
    text = str(report)
    assert len(text.splitlines()) == len(TOPICS)
    assert all(row.startswith("ok ") for row in text.splitlines())
    assert "14 of 20 now (step 0)" in text
    after = [np.array(variable) for variable in (*model.variables, *model.optimizer.variables)]
    np.testing.assert_equal(after, before)


def scalar_loss(y_true, y_pred):
    return tf.reduce_mean(tf.square(y_true - y_pred))


class OwnLoss(keras.losses.Loss):
    def call(self, y_true, y_pred):
        return tf.reduce_mean(tf.square(y_true - y_pred), axis=-1)


@pytest.mark.parametrize(
    ("make", "batch", "topic", "text"),
    [
        (lambda: prl.RobustModel(network()), (X, Y), "loss", "compiled without one"),
        (lambda: compiled(network(), scalar_loss), (X, X[:, :3]), "loss", "scalar_loss must give one value"),
        (lambda: compiled(network()), (X, Y + 1), "targets", r"at most 2 for 3 outputs; y\[2\] is 3"),
        (lambda: compiled(network(), "mse"), (X, Y), "loss", r"Targets of shape .*needs targets of shape"),
        (lambda: compiled(network(units=1), "mse"), (X, X[:, 0]), None, "20 of 20|14 of 20"),
        (lambda: compiled(network(units=1), OwnLoss()), (X, X[:, 0]), "loss", r"y\[\.\.\., None\]"),
        (lambda: compiled(network(), "mse"), (X, X[:, :3] * np.inf), "targets", "20 losses are not finite"),
        (lambda: compiled(network()), (X, Y, -np.ones(20)), "targets", "sample_weight must be finite"),
        (lambda: compiled(network()), (X, np.where(Y, Y, 7)), "targets", r"y\[0\] is 7"),
        (lambda: compiled(network()), (X, Y.astype(str)), "targets", "Write np.unique"),
        (lambda: compiled(network()), (X, None), "loss", "has no targets"),
        (
            lambda: compiled(network()),
            (X, Y, np.ones(19)),
            "targets",
            "y has 20, sample_weight has 19 rows",
        ),
        (lambda: compiled(network(), "mse"), (X, X[:1, :3]), "loss", "x has 20, y has 1 rows"),
        (lambda: compiled(network()), (X, Y, np.ones((20, 3))), "targets", "one weight for each example"),
        (lambda: compiled(network()), (X, Y, np.zeros(20)), "kept", "every sample_weight is 0"),
        (
            lambda: compiled(network(units=1), BINARY),
            (X, Y[:, None]),
            "targets",
            r"in \[0, 1\]; y\[2, 0\] is 2",
        ),
        (lambda: compiled(network(), IGNORING), (X, np.where(Y, Y, -1)), None, r"2 of 3 in the batch"),
        (lambda: compiled(network(), IGNORING), (X, np.full(20, -1)), "classes", "one that the loss ignores"),
        (
            lambda: compiled(network(activation=lambda t: tf.nn.softmax(t)), PROBABILITIES),
            (np.where(np.arange(20)[:, None] == 5, np.nan, X), Y),
            "targets",
            "1 losses are not finite",
        ),
        (lambda: compiled(network(), PROBABILITIES), (X * 9, Y), "head", "from_logits=True in the loss"),
        (lambda: compiled(network(activation="softmax")), (X, Y), "head", "Take one of them away"),
        (
            lambda: compiled(network(keras.layers.BatchNormalization(name="bn")), score=None),
            (X, Y),
            None,
            "allowed with score=None",
        ),
        (
            lambda: compiled(network(), rule=prl.Trim(0.3)),
            (X, np.r_[np.zeros(19, int), 1]),
            "classes",
            r"the rarest \(1\) 1 times.*min_keep_per_class=1",
        ),
        (
            lambda: compiled(network(), rule=prl.Trim(0.3, min_keep_per_class=1)),
            (X, np.r_[np.zeros(19, int), 1]),
            None,
            r"2 of 3 in the batch, the rarest \(1\) 1 times",
        ),
        (
            lambda: compiled(network(), rule=prl.Trim(0.3)),
            (X[:1], Y[:1]),
            "kept",
            "of 1 examples epsilon 0.3",
        ),
        (
            lambda: compiled(network(), rule=prl.Trim(prl.linear_ramp(0.3, 100))),
            (X, Y),
            None,
            r"20 of 20 now \(step 0\); 14 at the schedule's end, epsilon 0.3",
        ),
        (
            lambda: compiled(network(), rule=prl.Trim(prl.EstimatedEpsilon())),
            (X, Y),
            None,
            r"20 of 20 now \(step 0\); training decides how many later, at least 10",
        ),
        (
            lambda: compiled(network(policy="mixed_float16")),
            (X, Y),
            None,
            "mixed_float16.*loss scaled",
        ),
    ],
)
def test_each_line_says_what_is_there_or_what_to_do(make, batch, topic, text):
    report = prl.check(make(), batch)
    assert [line.topic for line in report.lines if not line.is_ok] == ([topic] if topic else [])
    found = " ".join(line.text for line in report.lines if topic in (None, line.topic))
    assert re.search(text, found), found


def test_batch_normalization_that_trains_refuses_prl_g():
    frozen = keras.layers.BatchNormalization(name="bn", trainable=False)
    model = compiled(network(frozen), score="gradient")
    frozen.trainable = True  # after the model was made
    assert "Layers: bn" in line(prl.check(model, (X, Y)), "batch normalization").text


@pytest.mark.long
def test_memory_of_prl_g():
    small = compiled(network(), score="gradient")
    assert "layer by layer" in line(prl.check(small, (X, Y)), "memory").text

    class Own(keras.layers.Dense):
        pass

    big = compiled(network(Own(2**12), Own(2**12)), score="gradient")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    report = prl.check(big, (X, Y))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # KiB; 20 are 1.26 GiB
    assert big.microbatch_size is None and line(report, "kept").is_ok and line(report, "ties").is_ok
    found = line(report, "memory")
    assert not found.is_ok
    assert "20 gradients of 64.2 MiB, 1.25 GiB" in found.text
    assert "microbatch_size=15" in found.text


def test_a_plain_model_a_pair_and_several_outputs():
    plain = network(activation="softmax")
    plain.compile("sgd", PROBABILITIES)
    report = prl.check(plain, tf.data.Dataset.from_tensor_slices((X, Y)).batch(10))
    assert report.is_ok
    assert "ranked by the logits behind" in line(report, "head").text
    assert "7 of 10" in line(report, "kept").text
    pair = prl.CoTeachingModel(network(), network())
    pair.compile("sgd", LOGITS)
    assert "14 and 14 of 20" in line(prl.check(pair, (X, Y)), "kept").text
    inputs = keras.Input((6,))
    two = keras.Model(inputs, [keras.layers.Dense(3)(inputs), keras.layers.Dense(2)(inputs)])
    report = prl.check(compiled(two, [LOGITS, "mse"]), (X, (Y, X[:, :2])))
    assert report.is_ok
    assert "logits; values as they are" in line(report, "head").text


@pytest.mark.parametrize("batch", [X, (X,), None, tf.data.Dataset.from_tensors((X, Y)).take(0)])
def test_what_is_no_batch_is_an_error(batch):
    with pytest.raises(ValueError, match=r"batch must be \(x, y\)"):
        prl.check(compiled(network()), batch)
