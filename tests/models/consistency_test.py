"""Agreement (JoCoR) and EarlyLearning (ELR) against loops over the examples, and what they go with."""

import keras
import numpy as np
import oracle
import pytest
import tensorflow as tf
from arrays import assert_all_close

import prl_keras as prl
from tests.promises.oracle_test import KINDS, assert_same_weights, make_batch, make_network, reset, sgd_update

CASES = [
    ("sparse", False),
    ("one_hot", False),
    ("binary", False),
    ("sparse", True),
]  # whether XLA compiles it
LOGITS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(24, 5)).astype("float32"), RNG.integers(4, size=24)


def probabilities(kind, z):
    """float32 [classes], from one example's logits."""
    return tf.concat([tf.sigmoid(-z), tf.sigmoid(z)], 0) if kind == "binary" else tf.nn.softmax(z)


def weighted_mean(gradients, weights):
    """sum_i w_i g_i / n, as NumPy arrays."""
    return [sum(w * g.numpy().astype(float) for w, g in zip(weights, gs)) / len(weights) for gs in gradients]


def divergence(p, q):
    return tf.reduce_sum(p * tf.math.log(p / q))


def jocor_step(kind, twins, x, y, s, strength, epsilon):
    """The gradients of the authors' joint loss, through both networks at once."""
    loss, weights = KINDS[kind][3], [w for twin in twins for w in twin.trainable_weights]
    scores, gradients = [], []
    for i in range(len(x)):
        with tf.GradientTape() as tape:
            a, b = (twin(x[i : i + 1])[0] for twin in twins)
            p, q = probabilities(kind, a), probabilities(kind, b)
            supervised = oracle.example_loss(loss, a, y[i]) + oracle.example_loss(loss, b, y[i])
            total = (1 - strength) * supervised + strength * (divergence(p, q) + divergence(q, p))
        scores.append(float(total))
        gradients.append(tape.gradient(total, [w.value for w in weights]))
    counted = np.ones(len(x), bool) if s is None else s != 0
    kept = max(1, int(np.floor((1 - epsilon) * counted.sum() + 1e-6)))
    counts = oracle.keep(oracle.lowest(scores, counted, kept), counted)
    return weighted_mean(zip(*gradients), counts if s is None else counts * s), counts


def per_network(gradients, twins):
    of_first = len(twins[0].trainable_weights)
    return [gradients[:of_first], gradients[of_first:]]


@pytest.mark.daily("sparse-False")
@pytest.mark.parametrize("kind, jit_compile", CASES)
def test_a_step_of_jocor_is_that_of_the_joint_loss(kind, jit_compile):
    model = prl.build(
        "jocor", lambda: make_network(kind, "mlp"), epsilon=0.3, loss=KINDS[kind][2],
        optimizer=keras.optimizers.SGD(0.1), strength=0.4, jit_compile=jit_compile,
    )  # fmt: skip
    twins = [make_network(kind, "mlp", head=False) for _ in range(2)]
    reset(model.networks, twins)
    for seed in range(2):
        x, y, s = make_batch(kind, "mlp", 13, "some", seed)
        gradients, counts = jocor_step(kind, twins, x, y, s, 0.4, 0.3)
        for weights in model.example_weights(x, y, s):
            np.testing.assert_allclose(weights, counts, rtol=1e-6)
        model.train_on_batch(x, y, sample_weight=s)
        sgd_update(twins, per_network(gradients, twins), {})
        assert_same_weights(model.networks, twins)


def elr_gradients(kind, twin, teacher, x, y, s, strength):
    gradients = []
    for i in range(len(x)):
        target = probabilities(kind, teacher(x[i : i + 1])[0])
        with tf.GradientTape() as tape:
            z = twin(x[i : i + 1])[0]
            p = tf.clip_by_value(probabilities(kind, z), 1e-4, 1 - 1e-4)
            term = tf.math.log(1 - tf.reduce_sum(p * target))
            total = oracle.example_loss(KINDS[kind][3], z, y[i]) + strength * term
        gradients.append(tape.gradient(total, [w.value for w in twin.trainable_weights]))
    return weighted_mean(zip(*gradients), np.ones(len(x)) if s is None else s)


@pytest.mark.daily("sparse-False")
@pytest.mark.parametrize("kind, jit_compile", CASES)
def test_steps_of_elr_are_those_of_its_loss(kind, jit_compile):
    model = prl.build(
        "elr", lambda: make_network(kind, "mlp"), epsilon=0, loss=KINDS[kind][2],
        optimizer=keras.optimizers.SGD(0.1), strength=2.0, momentum=0.8, jit_compile=jit_compile,
    )  # fmt: skip
    twin, teacher = (make_network(kind, "mlp", head=False) for _ in range(2))
    reset(model.networks, [twin])
    teacher.set_weights(twin.get_weights())
    for step in range(3):
        x, y, s = make_batch(kind, "mlp", 7, "some", step)
        gradients = elr_gradients(kind, twin, teacher, x, y, s, 2.0)
        model.train_on_batch(x, y, sample_weight=s)
        sgd_update([twin], [gradients], {})
        assert_same_weights(model.networks, [twin])
        momentum = 0.8 if step else 0
        pairs = zip(teacher.get_weights(), twin.get_weights())
        teacher.set_weights([momentum * old + (1 - momentum) * new for old, new in pairs])


def test_the_teacher_is_in_inference_mode_and_leaves_what_layers_add():
    def make():
        keras.utils.set_random_seed(0)
        return keras.Sequential([
            keras.Input([5]),
            keras.layers.Dense(8, "relu", activity_regularizer=keras.regularizers.L2(0.1)),
            keras.layers.BatchNormalization(),
            keras.layers.Dense(4, kernel_regularizer=keras.regularizers.L2(0.1)),
        ])  # fmt: skip

    model = prl.RobustModel(make(), None, consistency=prl.EarlyLearning(2.0))
    model.compile(keras.optimizers.SGD(0.1, use_ema=True), LOGITS)
    plain = make()
    for _ in range(2):
        with tf.GradientTape() as tape:
            p, added = tf.nn.softmax(plain(X, training=True)), sum(plain.losses)
            # The averages after the first step are the weights; the moving statistics are the network's own.
            target = tf.stop_gradient(tf.nn.softmax(plain(X, training=False)))
            terms = 2.0 * tf.math.log(1 - tf.reduce_sum(p * target, axis=1))
            total = tf.reduce_mean(terms - tf.math.log(tf.gather(p, Y, axis=1, batch_dims=1))) + added
        gradients = tape.gradient(total, [w.value for w in plain.trainable_weights])
        for weight, gradient in zip(plain.trainable_weights, gradients):
            weight.assign_sub(0.1 * gradient)
        model.reset_metrics()
        assert model.train_on_batch(X, Y, return_dict=True)["loss"] == pytest.approx(float(total), rel=1e-4)
        assert_all_close(model.network.get_weights(), plain.get_weights())  # with the moving statistics


def small(seed=0, shape=(5,)):
    keras.utils.set_random_seed(seed)
    return keras.Sequential([keras.Input(shape), keras.layers.Dense(4)])


def compiled(model, optimizer=None):
    """Without a graph, which would take longer to trace than to run; the steps above and below have one."""
    optimizer = optimizer or keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.9)
    model.compile(optimizer, LOGITS, run_eagerly=True)
    return model


def pair(shape=(5,), **options):
    options = {"score": "loss", "exchange": "joint", "consistency": prl.Agreement(0.3), **options}
    return prl.CoTeachingModel(small(1, shape), small(2, shape), **options)


def taught(shape=(5,), score=None, **options):
    return prl.RobustModel(small(0, shape), score, consistency=prl.EarlyLearning(2.0), **options)


def weights_after_fit(model, x=X, y=Y, **options):
    model.fit(x, y, **{"batch_size": 8, "epochs": 2, "shuffle": False, "verbose": 0, **options})
    return model.get_weights()


@pytest.mark.daily("teacher")
@pytest.mark.parametrize("make", [pair, taught], ids=["pair", "teacher"])
def test_a_strength_of_zero_changes_nothing(make):
    model, plain = compiled(make()), compiled(make())
    model.consistency = type(model.consistency)(0)
    plain.consistency = None
    assert_all_close(weights_after_fit(model), weights_after_fit(plain))


def test_a_joint_exchange_gives_both_networks_the_lowest_mean_scores():
    model = compiled(pair(consistency=None))
    scores = np.mean([s.numpy() for s in model.example_scores(X, Y)], axis=0)
    expected = np.zeros(24)
    expected[np.argsort(scores)[:16]] = 1.5  # Trim(0.3) keeps 16 of 24
    for weights in model.example_weights(X, Y):
        np.testing.assert_allclose(weights, expected, rtol=1e-6)


def test_the_scores_of_a_pair_share_the_term():
    model = compiled(pair())
    p, q = (tf.nn.softmax(network(X)).numpy().astype(float) for network in model.networks)
    term = 0.3 * np.sum((p - q) * np.log(p / q), axis=1)
    for scores, own in zip(model.example_scores(X, Y), (p, q)):
        np.testing.assert_allclose(scores, -0.7 * np.log(own[range(24), Y]) + term / 2, rtol=1e-4)
    of_both = prl.score_examples(model, (X, Y))
    expected = -0.7 * np.log(p[range(24), Y] * q[range(24), Y]) + term
    np.testing.assert_allclose(of_both, expected / 2, rtol=1e-4)


def test_a_score_with_a_teacher_before_and_after_training():
    model = compiled(taught(score="loss", rule=prl.Trim(0.3)))
    for _ in range(2):
        p = tf.nn.softmax(model.network(X)).numpy().astype(float)
        p_and_t = np.sum(p * np.clip(p, 1e-4, 1 - 1e-4), axis=1)  # after `fit` the network is its teacher
        expected = -np.log(p[range(24), Y]) + 2.0 * np.log(1 - p_and_t)
        np.testing.assert_allclose(prl.score_examples(model, (X, Y)), expected, rtol=1e-4, atol=1e-5)
        model.fit(X, Y, batch_size=8, verbose=0)


def masked_and_recomputed():
    yield "pair", lambda recompute: pair(recompute=recompute)
    yield "teacher", lambda recompute: taught(score="loss", rule=prl.Trim(0.3), recompute=recompute)


@pytest.mark.daily("teacher-*")
@pytest.mark.parametrize("name, make", masked_and_recomputed())
def test_recompute_takes_the_same_steps(name, make):
    masked, recomputed = (weights_after_fit(compiled(make(recompute))) for recompute in (False, True))
    assert_all_close(masked, recomputed)


def test_with_the_gradient_score_the_term_is_in_the_step():
    by_gradient = compiled(taught(score="gradient", rule=prl.Trim(0.0)))
    assert_all_close(weights_after_fit(by_gradient), weights_after_fit(compiled(taught())))


@pytest.mark.parametrize("make", [pair, taught], ids=["pair", "teacher"])
def test_elements_are_trained_as_examples_are(make):
    options = {} if make is pair else {"score": "loss", "rule": prl.Trim(0.3)}
    by_element, flat = compiled(make((4, 5), unit="element", **options)), compiled(make(**options))
    shaped = {"x": X.reshape(6, 4, 5), "y": Y.reshape(6, 4), "batch_size": 3}
    assert_all_close(weights_after_fit(by_element, **shaped), weights_after_fit(flat, batch_size=12))


@pytest.mark.parametrize("reduction", ["sum", None, "mean_with_sample_weight"])
def test_the_term_is_reduced_as_the_loss_is(reduction):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction=reduction)
    model, by_hand = taught(), small()
    model.compile(keras.optimizers.SGD(0.01, use_ema=True), loss)
    s = np.linspace(0, 2, 24).astype("float32")
    model.train_on_batch(X, Y, sample_weight=s)
    target = tf.nn.softmax(by_hand(X))
    with tf.GradientTape() as tape:
        p = tf.nn.softmax(by_hand(X))
        terms = 2.0 * tf.math.log(1 - tf.reduce_sum(p * target, axis=1))
        total = tf.reduce_sum(s * (terms - tf.math.log(tf.gather(p, Y, axis=1, batch_dims=1))))
        total /= np.sum(s) if reduction == "mean_with_sample_weight" else 1
    gradients = tape.gradient(total, [w.value for w in by_hand.trainable_weights])
    pairs = zip(by_hand.get_weights(), gradients)
    assert_all_close(model.network.get_weights(), [w - 0.01 * g.numpy() for w, g in pairs])


def test_labels_that_the_loss_ignores_have_no_term():
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-1)
    models = [taught(), taught()]
    for model in models:
        model.compile(keras.optimizers.SGD(0.1, use_ema=True), loss)
    models[0].train_on_batch(X, np.where(np.arange(24) < 16, Y, -1))
    models[1].train_on_batch(X[:16], Y[:16])
    assert_all_close(models[0].get_weights(), models[1].get_weights())


def test_extreme_probabilities_have_finite_terms_and_gradients():
    logits = tf.constant([[0.0, 200, -200, 60], [500, -500, 0, 499]])
    other = tf.nn.softmax(tf.constant([[200.0, 0, -200, 0], [500, -500, 0, 499]]))
    for consistency, half in ((prl.Agreement(0.9), other), (prl.EarlyLearning(3), 1.004 * other)):
        with tf.GradientTape() as tape:
            tape.watch(logits)
            terms = consistency(tf.nn.softmax(logits), half)
            scaled = 2.0**15 * terms
        assert np.isfinite(terms).all() and np.isfinite(tape.gradient(scaled, logits)).all()


# What Keras's averages mean for fit, evaluate and validation.


def averages(model):
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    return [average.numpy() for average in optimizer._model_variables_moving_average]


def test_fit_ends_with_the_averages_and_the_next_fit_starts_from_them():
    model = compiled(taught())
    history = model.fit(X, Y, batch_size=8, epochs=3, validation_data=(X, Y), verbose=0).history
    assert_all_close(model.network.get_weights(), averages(model))
    # In `fit` the validation sees the weights that train.
    assert abs(model.evaluate(X, Y, verbose=0) - history["val_loss"][-1]) > 1e-4
    before = averages(model)
    model.optimizer.learning_rate = 0.0
    model.fit(X, Y, batch_size=24, verbose=0)
    assert_all_close(averages(model), before)  # a step of size 0 from them

    swapped = compiled(taught())
    history = swapped.fit(
        X, Y, batch_size=8, epochs=3, validation_data=(X, Y), verbose=0,
        callbacks=[keras.callbacks.SwapEMAWeights()],
    ).history  # fmt: skip
    assert swapped.evaluate(X, Y, verbose=0) == pytest.approx(history["val_loss"][-1], rel=1e-5)


@pytest.mark.daily("mixed_bfloat16")
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision(policy):
    def mixed():
        keras.utils.set_random_seed(0)
        hidden = keras.layers.Dense(8, "relu", dtype=policy)
        out = keras.layers.Dense(4, dtype=keras.DTypePolicy("float32"))
        network = keras.Sequential([keras.Input([5]), hidden, out])
        network.dtype_policy = keras.DTypePolicy(policy)
        return network

    model = prl.build("elr", mixed, epsilon=0, loss=LOGITS, optimizer=keras.optimizers.SGD(0.1))
    is_scaled = isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    assert is_scaled == (policy == "mixed_float16")
    weights = weights_after_fit(model)
    assert all(np.isfinite(w).all() for w in weights)
    assert_all_close(weights[:4], averages(model))
    plain = prl.build("elr", lambda: mixed_to_float32(mixed()), epsilon=0, loss=LOGITS, optimizer="sgd")
    plain.optimizer.learning_rate = 0.1
    assert_all_close(weights, weights_after_fit(plain), rtol=1e-7, atol=0.03)


def mixed_to_float32(network):
    hidden, out = keras.layers.Dense(8, "relu"), keras.layers.Dense(4)
    copy = keras.Sequential([keras.Input([5]), hidden, out])
    copy.set_weights(network.get_weights())
    return copy


def test_an_optimizer_that_averages_keeps_its_momentum():
    built = {
        "own": prl.build("elr", small, epsilon=0, loss=LOGITS, momentum=0.5,
                         optimizer=keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.9)),
        "given": prl.build("elr", small, epsilon=0, loss=LOGITS, optimizer="sgd", momentum=0.5),
        "default": prl.build("elr", small, epsilon=0, loss=LOGITS, optimizer="sgd"),
    }  # fmt: skip
    momenta = {name: model.optimizer.ema_momentum for name, model in built.items()}
    assert momenta == {"own": 0.9, "given": 0.5, "default": 0.99}
    mine = keras.optimizers.SGD(0.1)
    prl.build("elr", small, epsilon=0, loss=LOGITS, optimizer=mine)
    assert not mine.use_ema


def test_a_first_step_that_is_skipped_leaves_the_teacher_the_network():
    models = [compiled(taught()), compiled(taught())]
    models[0].train_on_batch(np.full_like(X, np.nan), Y)
    for model in models:
        model.train_on_batch(X, Y)
    assert_all_close(models[0].get_weights(), models[1].get_weights())


def test_gradient_accumulation_averages_from_its_first_update_on():
    model = compiled(taught(), keras.optimizers.SGD(0.1, use_ema=True, gradient_accumulation_steps=2))
    assert all(np.isfinite(w).all() for w in weights_after_fit(model))


@pytest.mark.daily("teacher")
@pytest.mark.parametrize("make", [pair, taught], ids=["pair", "teacher"])
def test_goes_on_after_saving_where_it_was(make, tmp_path):
    model = compiled(make())
    model.fit(X, Y, batch_size=8, verbose=0)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert again.consistency == model.consistency
    assert_all_close(weights_after_fit(model), weights_after_fit(again))


# Under noise.


def two_hidden_layers():
    hidden = [keras.layers.Dense(64, "relu") for _ in range(2)]
    return keras.Sequential([keras.Input([4]), *hidden, keras.layers.Dense(4)])


@pytest.mark.long
@pytest.mark.parametrize("method", ["jocor", "elr", "co_teaching_plus"])
def test_ends_above_plain_training_under_symmetric_noise(method):
    rng = np.random.default_rng(0)
    y = rng.integers(0, 4, 600)
    x = (np.eye(4)[y] + 0.5 * rng.normal(size=(600, 4))).astype("float32")
    given = np.where(rng.random(600) < 0.4, rng.integers(0, 4, 600), y)
    accuracy = {}
    for name in ("standard", method):
        keras.utils.set_random_seed(1)
        model = prl.build(
            name, two_hidden_layers,
            epsilon=0.3, ramp_steps=40, loss=LOGITS, optimizer=keras.optimizers.Adam(0.01),
            **({"warm_up_steps": 40} if name == "co_teaching_plus" else {}),
        )  # fmt: skip
        model.fit(x[:300], given[:300], batch_size=30, epochs=30, verbose=0)
        accuracy[name] = np.mean(model.predict(x[300:], verbose=0).argmax(1) == y[300:])
    assert accuracy[method] > accuracy["standard"] + 0.05, accuracy


# What is refused.


class Compiled(keras.layers.Dense):
    @tf.function
    def call(self, x):
        return super().call(x)


def traced():
    return keras.Sequential([keras.Input([5]), Compiled(4, name="mine")])


def two_outputs():
    x = keras.Input([5])
    return keras.Model(x, [keras.layers.Dense(4)(x), keras.layers.Dense(4)(x)])


def fitted(network, loss, optimizer, y=Y, consistency=prl.EarlyLearning()):
    model = prl.RobustModel(network, "loss", prl.Trim(0.3), consistency=consistency)
    model.compile(optimizer, loss)
    model.fit(X, y, verbose=0)


def own_loss(y_true, y_pred):
    return keras.losses.sparse_categorical_crossentropy(y_true, y_pred, from_logits=True)


def averaging():
    return keras.optimizers.SGD(0.1, use_ema=True)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: prl.Agreement(1.0), r"strength=1.0 must be a number in \[0, 1\)"),
        (lambda: prl.Agreement("a"), "strength='a' must be"),
        (lambda: prl.EarlyLearning(-1), "strength=-1 must be a finite number of at least 0"),
        (lambda: prl.EarlyLearning(np.inf), "strength=inf must be a finite"),
        (lambda: prl.RobustModel(small(), consistency=prl.Agreement()), "Agreement.* this model has one"),
        (lambda: prl.RobustModel(small(), consistency="teacher"), "consistency='teacher' must be"),
        (lambda: prl.RobustModel(small(), consistency=prl.EarlyLearning), r"must be prl_keras.EarlyL"),
        (lambda: fitted(small(), LOGITS, "sgd"), r"SGD keeps no averages.*SGD\(..., use_ema=True\)"),
        (lambda: fitted(small(), "mse", averaging(), np.ones((24, 4))), "of one class.*loss 'mse' on"),
        (lambda: fitted(small(), own_loss, averaging()), "loss own_loss on.*Keras's cross-entropies"),
        (lambda: fitted(two_outputs(), [LOGITS, LOGITS], averaging(), [Y, Y]), "with one output"),
        (lambda: fitted(traced(), LOGITS, averaging()), "call of layer 'mine' is a tf.function"),
        (
            lambda: compiled_pair("mean_with_sample_weight").fit(X, Y, verbose=0),
            r"gives the loss a factor, which reduction='mean_with_sample_weight' divides out",
        ),
        (lambda: build_elr(momentum=1), r"momentum=1 must be a number in \[0, 1\)"),
        (lambda: build_elr(strength=-2), "strength=-2 must be"),
        (lambda: build_elr(optimizer=several()), "MultiOptimizer.*Write a single optimizer"),
    ],
)  # fmt: skip
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def compiled_pair(reduction):
    model = pair()
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction=reduction))
    return model


def build_elr(optimizer="sgd", **options):
    return prl.build("elr", small, epsilon=0, loss=LOGITS, optimizer=optimizer, **options)


def several():
    return keras.optimizers.MultiOptimizer([(keras.optimizers.SGD(0.1), lambda v: True)])
