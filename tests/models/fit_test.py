"""`fit` with every score and exchange, against plain Keras given the oracle's weights as `sample_weight`."""

import functools

import keras
import numpy as np
import oracle
import pytest
import tensorflow as tf
from arrays import assert_all_close
from keras import layers, losses

import prl_keras as prl

METHODS = {"loss": "spl", "loss_layer_gradient": "prl_l", "gradient": "prl_g"}  # score: oracle's name
METHODS |= {"swap": "co_prl_l", "disagreement": "decouple"}
KINDS, FAST_KINDS = tuple(METHODS), ("gradient", "swap")  # fast: one for each kind of backward pass
LOSS, SGD = losses.SparseCategoricalCrossentropy(from_logits=True), keras.optimizers.SGD
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(22, 4)).astype("float32"), RNG.integers(3, size=22)
S = RNG.uniform(0.2, 3.0, size=22).astype("float32")
S[[1, 9, 20]] = 0.0
PARTS = ((0, 8), (8, 16), (16, 22))
ODD = ((0, 8), (8, 8), (8, 9), (9, 14))  # an empty batch and one of a single example


def make_network(seed=0, last=None, **dense):
    keras.utils.set_random_seed(seed)
    first = layers.Dense(6, activation="tanh", **dense)
    return keras.Sequential([keras.Input([4]), first, layers.Dense(3, **dense), *([last()] if last else [])])


def make(kind, rule=prl.Trim(0.3), build=make_network, **options):
    """A compiled model; `build(seed)` gives a network."""
    if kind in METHODS and METHODS[kind] in ("co_prl_l", "decouple"):
        score = "loss_layer_gradient" if kind == "swap" else None
        model = prl.CoTeachingModel(build(0), build(1), score, rule, kind)
    elif kind == "plain":
        model = build(0)
    elif kind == "microbatches":
        model = prl.RobustModel(build(0), "gradient", rule, microbatch_size=3)
    else:
        model = prl.RobustModel(build(0), kind, rule)
    model.compile(**{"optimizer": SGD(0.2), "loss": LOSS, **options})
    return model


@functools.cache
def expected(kind, parts=PARTS, is_weighted=False, class_weight=(1, 1, 1)):
    """The weights after one step on each part, by plain Keras (eager) and the oracle."""
    method, loss = METHODS[kind], "sparse_softmax_cross_entropy"
    plains = [
        make("plain", build=lambda _, n=n: make_network(n), **EAGER) for n in range(1 + (kind in KINDS[3:]))
    ]
    for start, stop in parts:
        x, y, s = X[start:stop], Y[start:stop], S[start:stop] if is_weighted else np.ones(stop - start)
        runs = [oracle.run_examples(method, plain, x, y, loss) for plain in plains]
        for plain, w in zip(plains, oracle.rule_weights(method, runs, y, s != 0, loss, 0.3, None)):
            plain.train_on_batch(x, y, sample_weight=w * s * np.take(class_weight, y))
    return [w for plain in plains for w in plain.get_weights()]


def assert_weights(model, want):
    assert_all_close(model.get_weights(), want, rtol=0, atol=1e-5)


class Batches(keras.utils.PyDataset):
    def __init__(self, parts=PARTS):
        super().__init__()
        self.parts = parts

    def __len__(self):
        return len(self.parts)

    def __getitem__(self, i):
        return X[slice(*self.parts[i])], Y[slice(*self.parts[i])]


def dict_network(seed=0):
    inputs = {"a": keras.Input([1], name="a"), "b": keras.Input([3], name="b")}
    return keras.Model(inputs, make_network(seed)(layers.Concatenate()([inputs["a"], inputs["b"]])))


DATA = tf.data.Dataset.from_tensor_slices
NUMPY, EAGER = {"x": X, "y": Y, "batch_size": 8, "shuffle": False, "verbose": 0}, {"run_eagerly": True}
FITS = {  # name: (arguments of fit, options of make, arguments of expected)
    "numpy": (lambda: {}, {}, {}),
    "jit": (lambda: {}, {"jit_compile": True}, {}),
    "steps_per_execution": (lambda: {"epochs": 2}, {"steps_per_execution": 4}, {"parts": PARTS * 2}),
    "tf_data": (lambda: {"x": DATA((X, Y)).batch(8)}, EAGER, {}),
    "py_dataset": (lambda: {"x": Batches()}, EAGER, {}),
    "generator": (lambda: {"x": (Batches()[i] for i in range(3)), "steps_per_epoch": 3}, EAGER, {}),
    "dict": (lambda: {"x": {"a": X[:, :1], "b": X[:, 1:]}}, {"build": dict_network}, {}),
    "odd_sizes": (lambda: {"x": Batches(ODD)}, {}, {"parts": ODD}),
    "sample_weight": (lambda: {"sample_weight": S}, EAGER, {"is_weighted": True}),
    "weight_column": (lambda: {"x": DATA((X, Y, S[:, None])).batch(8)}, EAGER, {"is_weighted": True}),
    "class_weight": (lambda: {"class_weight": {0: 9, 1: 1, 2: 0.1}}, EAGER, {"class_weight": (9, 1, 0.1)}),
}
EVERYWHERE = ("numpy", "sample_weight", "class_weight")  # the others with FAST_KINDS
FIT_CASES = [(name, kind) for name in FITS for kind in (KINDS if name in EVERYWHERE else FAST_KINDS)]


@pytest.mark.daily(
    "numpy-loss_layer_gradient",
    "numpy-gradient",
    "numpy-swap",
    "generator-gradient",
    "odd_sizes-gradient",
)
@pytest.mark.fault(4, 20)
@pytest.mark.parametrize("name, kind", FIT_CASES)
def test_fit_is_plain_keras_with_the_oracles_weights(name, kind):
    arguments, options, reference = FITS[name]
    model, arguments = make(kind, **options), {**NUMPY, **arguments()}
    if not isinstance(arguments["x"], (np.ndarray, dict)):
        del arguments["y"], arguments["batch_size"]
    model.fit(**arguments)
    assert_weights(model, expected(kind, **reference))


@pytest.mark.fault(11)
@pytest.mark.parametrize("kind", KINDS)
def test_padding_rows_scale_the_step_by_real_over_all(kind):
    """6 examples and 4 rows of padding: Keras divides by 10, so the step is 6/10 of the step on the 6."""
    model = make(kind, **EAGER)
    before, after = expected(kind, ()), expected(kind, ((0, 6),))
    x, y = np.concatenate([X[:6], 99 * X[6:10]]), np.concatenate([Y[:6], 2 - Y[6:10]])
    model.train_on_batch(x, y, sample_weight=np.float32([1] * 6 + [0] * 4))
    assert_weights(model, [b + 0.6 * (a - b) for a, b in zip(after, before)])


TRACED = [(kind, 22, 8, "auto") for kind in FAST_KINDS]  # (kind, examples, batch size, jit_compile)
SIZES = [(11, 4), (5, 4), (3, 8), (1, 4)]
TRACED += [("loss_layer_gradient", *sizes, jit_compile) for sizes in SIZES for jit_compile in (False, True)]


@pytest.mark.daily("*-auto", "*-5-4-False", "*-3-8-False")
@pytest.mark.fault(4)
@pytest.mark.parametrize("kind, n, batch_size, jit_compile", TRACED)
def test_ragged_and_small_batches_cost_at_most_two_traces(kind, n, batch_size, jit_compile):
    traces = []
    rule = lambda *arguments: traces.append(1) or prl.Trim(0.3)(*arguments)  # noqa: E731
    model = make(kind, rule, jit_compile=jit_compile)
    for _ in range(2):
        history = model.fit(X[:n], Y[:n], batch_size=batch_size, epochs=2, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    assert 1 <= len(traces) / len(model.networks) <= 2  # a pair calls the rule once for each network


class MeanSquare(layers.Layer):
    def call(self, x):
        self.add_loss(0.1 * keras.ops.mean(keras.ops.square(x)))
        return x


DECAY, L2 = keras.optimizers.schedules.ExponentialDecay(0.3, 2, 0.5), keras.regularizers.L2(0.05)
FROZEN = functools.partial(layers.Dense, 3, trainable=False)
VARIANTS = {  # name: (optimizer, how the network is made)
    "accumulation": (lambda: SGD(0.3, gradient_accumulation_steps=4), make_network),
    "ema": (lambda: SGD(DECAY, use_ema=True, ema_momentum=0.9, ema_overwrite_frequency=2), make_network),
    "clipnorm": (lambda: keras.optimizers.Adam(0.03, weight_decay=0.1, clipnorm=0.05), make_network),
    "frozen_layer": (lambda: SGD(0.3), functools.partial(make_network, last=FROZEN)),
    "regularizer": (lambda: SGD(0.3), functools.partial(make_network, kernel_regularizer=L2)),
    "activity": (lambda: SGD(0.3), functools.partial(make_network, activity_regularizer=L2)),
    "add_loss": (lambda: SGD(0.3), functools.partial(make_network, last=MeanSquare)),
}
VARIANT_CASES = [(kind, variant) for kind in FAST_KINDS for variant in VARIANTS]


@pytest.mark.daily("gradient-frozen_layer", "swap-activity", "microbatches-regularizer")
@pytest.mark.fault(2, 10)
@pytest.mark.parametrize("kind, variant", [*VARIANT_CASES, ("microbatches", "regularizer")])
def test_epsilon_zero_is_plain_keras(kind, variant):
    optimizer, build = VARIANTS[variant]
    in_graph = kind != "swap" and variant in ("accumulation", "clipnorm", "add_loss")  # the others alike
    eager = {} if in_graph else EAGER
    model = make(kind, prl.Trim(0.0), build, optimizer=optimizer(), **eager)
    history = model.fit(**NUMPY, epochs=2).history
    builds = [lambda _, n=n: build(n) for n in range(len(model.networks))]
    plains = [make("plain", build=b, optimizer=optimizer(), **EAGER) for b in builds]
    logged = np.mean([plain.fit(**NUMPY, epochs=2).history["loss"] for plain in plains], axis=0)
    assert_weights(model, [w for plain in plains for w in plain.get_weights()])
    np.testing.assert_allclose([history["loss"], history["loss_all"]], [logged] * 2, rtol=1e-5)


@pytest.mark.fault(20)
def test_an_epsilon_schedule_counts_optimizer_updates_over_all_calls():
    """epsilon is 0 for the updates 0 and 1, then 0.5; an update takes two batches of 8 examples."""
    schedule, kept = keras.optimizers.schedules.PiecewiseConstantDecay([1], [0.0, 0.5]), []
    model = make("loss", prl.Trim(schedule), optimizer=SGD(0.1, gradient_accumulation_steps=2), **EAGER)
    for _ in range(3):
        kept += model.fit(X[:8], Y[:8], verbose=0).history["kept_fraction"]
        model.reset_metrics()
        kept.append(float(model.train_on_batch(X[:8], Y[:8], return_dict=True)["kept_fraction"]))
    assert kept == [1.0] * 4 + [0.5] * 2


@pytest.mark.fault(16)
@pytest.mark.parametrize("microbatch_size", [None, 3])
def test_dropout_in_prl_g(microbatch_size):
    """Equal examples differ in their gradient norm exactly where their masks do."""
    runs = []
    for _ in range(2):
        keras.utils.set_random_seed(3)
        network = keras.Sequential([keras.Input([30]), layers.Dropout(0.5), layers.Dense(3)])
        rule = lambda s, *_: runs.append(np.array(s)) or s  # noqa: E731
        model = prl.RobustModel(network, "gradient", rule, microbatch_size=microbatch_size)
        model.compile(SGD(0.0), LOSS, **EAGER)
        for _ in range(2):
            model.train_on_batch(np.ones([8, 30]), np.ones(8, int))
    assert len(np.unique(runs[0])) > 4 and not np.allclose(runs[0], runs[1])
    np.testing.assert_array_equal(runs[:2], runs[2:])  # the same seed, the same run


@pytest.mark.daily("loss-softmax", "loss_layer_gradient-linear", "gradient-softmax")
@pytest.mark.fault(17)
@pytest.mark.parametrize("head", ["linear", "softmax"])
@pytest.mark.parametrize("kind", ["loss", "loss_layer_gradient", "gradient"])
def test_mixed_float16(kind, head):
    previous, models = keras.config.dtype_policy(), []
    loss = losses.SparseCategoricalCrossentropy(from_logits=head == "linear")
    for name, dtype in ((kind, "float32"), (kind, "mixed_float16"), ("plain", "mixed_float16")):
        try:
            keras.config.set_dtype_policy(dtype)
            build = lambda seed: make_network(seed, lambda: layers.Activation(head))  # noqa: E731
            models.append(make(name, build=build, loss=loss, **EAGER))
        finally:
            keras.config.set_dtype_policy(previous)
    single, half, plain = models
    scores, weights = half.example_scores(X, Y)[0], np.array(half.example_weights(X, Y)[0])
    assert scores.dtype == tf.float32
    np.testing.assert_allclose(scores, single.example_scores(X, Y)[0], rtol=1e-2, atol=2e-3)
    assert np.sum((weights > 0) != (np.array(single.example_weights(X, Y)[0]) > 0)) <= 2
    for model in (half, plain):
        model.fit(**NUMPY)
        assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    assert all(np.isfinite(w).all() for w in half.get_weights())
    assert int(half.optimizer.iterations) == int(plain.optimizer.iterations) > 0  # no more overflows


POSITIVE, BITS = np.abs(RNG.normal(size=(22, 4))).astype("float32"), (RNG.random((22, 4)) > 0.5) * 1.0
ONE_HOT = np.eye(4)[RNG.integers(4, size=22)]
OWN_LOGS = {"loss_all", "kept_fraction", "score_threshold", "nonfinite"}
LOSSES = [  # (loss, the head's activation, targets)
    (losses.SparseCategoricalCrossentropy(), "softmax", ONE_HOT.argmax(1)),
    (losses.SparseCategoricalCrossentropy(ignore_class=-1), "softmax", np.where(Y == 0, -1, Y)),
    *[(losses.CategoricalCrossentropy(from_logits=not a), a, ONE_HOT) for a in (None, "softmax")],
    *[(name, "softmax", ONE_HOT) for name in ("categorical_focal_crossentropy", "categorical_hinge")],
    (losses.CategoricalGeneralizedCrossEntropy(), "softmax", Y),
    *[(losses.BinaryCrossentropy(from_logits=True), None, b) for b in (BITS, BITS[:, :1])],
    *[(losses.BinaryCrossentropy(), "sigmoid", b) for b in (BITS, BITS[:, :1])],
    (losses.BinaryFocalCrossentropy(), "sigmoid", BITS),
    (losses.KLDivergence(), "softmax", ONE_HOT * 0.8 + 0.05),
    *[(name, None, X) for name in ("mse", "mae", "mape", "huber", "log_cosh", "cosine_similarity")],
    *[(name, "softplus", POSITIVE) for name in ("msle", "poisson", losses.mean_squared_error)],
    *[(name, None, 2 * BITS - 1) for name in ("hinge", "squared_hinge")],
    *[(loss(axis=1), "sigmoid", BITS) for loss in (losses.Tversky, losses.Dice)],
    (lambda y, z: keras.ops.mean(keras.ops.abs(y - z) ** 1.5, axis=-1), None, X),
]


@pytest.mark.daily("loss9-*", "categorical_focal*", "mse-*", "squared_hinge-*", "<lambda>-*")
@pytest.mark.parametrize("loss, activation, y", LOSSES)
def test_every_keras_loss_and_the_logs_of_fit(loss, activation, y):
    head = keras.Sequential([layers.Dense(y.shape[1] if y.ndim == 2 else 4, activation=activation)])
    model = make("loss_layer_gradient", build=lambda _: make_network(0, lambda: head), loss=loss, **EAGER)
    plain = keras.models.clone_model(model.network)
    plain.set_weights(model.get_weights())
    plain.compile(loss=loss, metrics=["accuracy"], **EAGER)
    model.compile(SGD(0.1), loss, metrics=["accuracy"], **EAGER)
    before = plain.test_on_batch(X, y)
    np.testing.assert_allclose(model.evaluate(X, y, verbose=0), before, rtol=1e-5)
    history = model.fit(X, y, batch_size=22, validation_data=(X, y), verbose=0).history
    is_one_class = y.ndim == 1 or y.shape[1] == 1 or (y is ONE_HOT and loss != "categorical_hinge")
    of_classes = {"kept_fraction_min_class"} if is_one_class else set()
    assert set(history) == OWN_LOGS | of_classes | {"loss", "accuracy", "val_loss", "val_accuracy"}
    np.testing.assert_allclose(history["loss_all"][0], before[0], rtol=1e-5)
    assert all(np.isfinite(w).all() for w in model.get_weights())
    plain.set_weights(model.get_weights())
    after = [history["val_loss"][0], history["val_accuracy"][0]]
    plain.reset_metrics()
    np.testing.assert_allclose(after, plain.test_on_batch(X, y), rtol=1e-5)
