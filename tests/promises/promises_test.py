"""The promises of the library, one short test each; the file named in each docstring goes deeper."""

import functools
import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from arrays import assert_all_close, assert_all_equal

import prl_keras as prl

RNG = np.random.default_rng(0)
X = RNG.normal(size=(50, 5)).astype(np.float32)
Y = RNG.integers(0, 3, 50)
CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def network(seed=0, head=None, layers=()):
    keras.utils.set_random_seed(seed)
    return keras.Sequential([
        keras.Input((5,)), keras.layers.Dense(8, "tanh"), *layers, keras.layers.Dense(3, activation=head)
    ])  # fmt: skip


def fitted(model, run_eagerly=False, **fit_arguments):
    optimizer = keras.optimizers.Adam(0.01)
    model.compile(optimizer, CROSS_ENTROPY, metrics=["accuracy"], run_eagerly=run_eagerly)
    keras.utils.set_random_seed(7)  # the order of the batches
    fit_arguments = {"epochs": 2, "batch_size": 16, "verbose": 0, **fit_arguments}
    return model, model.fit(X, Y, **fit_arguments).history


@functools.cache
def plainly_fitted():
    return fitted(network())


def weights_of(model, scores, **kwargs):
    """The rule's weights for examples with these scores, seen through a model."""
    column = np.asarray(scores, np.float32)[:, None]
    identity = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, kernel_initializer="ones")])
    probe = prl.RobustModel(identity, score=lambda y_true, y_pred: y_pred[:, 0], rule=model)
    probe.compile("sgd", "mse")
    return probe.example_weights(tf.constant(column), tf.zeros_like(column), **kwargs)[0].numpy()


@pytest.mark.parametrize(("n", "epsilon"), [(10, 0.3), (7, 0.45), (1, 0.9), (128, 0.35), (10, 0.9)])
def test_1_trim_keeps_exactly_k_with_weight_n_over_k(n, epsilon):
    """rules_test.py"""
    scores = RNG.permutation(n)
    weights = weights_of(prl.Trim(epsilon), scores)
    k = max(1, math.floor((1 - epsilon) * n + 1e-6))
    np.testing.assert_allclose(weights, np.where(scores < k, n / k, 0), rtol=1e-6)


@pytest.mark.daily("{'score': 'gradient', 'rule': Trim(epsilon=0.0, min_keep_per_class=0)}", "{'rule': Trim*")
@pytest.mark.fault(2)
@pytest.mark.parametrize(
    "robust",
    [
        {"rule": prl.Trim(0.0)},
        {"score": "loss", "rule": prl.Trim(0.0)},
        {"score": "gradient", "rule": prl.Trim(0.0)},
        {"score": "gradient", "rule": prl.Trim(0.0), "microbatch_size": 5},
        {"score": "gradient", "rule": prl.ClipNorm(math.inf)},
        {"score": None},
    ],
    ids=str,
)
def test_2_dropping_nothing_is_plain_fit(robust):
    """tests/models/fit_test.py"""
    plain, plain_history = plainly_fitted()
    model, history = fitted(prl.RobustModel(network(), **robust))
    assert_all_close(plain.get_weights(), model.network.get_weights())
    for name in plain_history:
        np.testing.assert_allclose(plain_history[name], history[name], rtol=1e-5)
    np.testing.assert_allclose(history["loss"], history["loss_all"], rtol=1e-5)


# Promise 3, one step equals the loop over examples: oracle_test.py.
# Promise 4, the global batch under tf.distribute: replicas_test.py, in a process of its own.


@pytest.mark.parametrize("score", ["loss", "loss_layer_gradient", "gradient"])
def test_5_scores_are_float32_of_the_unscaled_loss_and_carry_no_gradient(score):
    """tests/scores/scores_test.py, tests/models/fit_test.py (mixed precision)."""
    model = prl.RobustModel(network(), score=score)
    model.compile(keras.optimizers.SGD(0.1, loss_scale_factor=1024.0), CROSS_ENTROPY)
    unscaled = prl.RobustModel(network(), score=score)
    unscaled.compile("sgd", CROSS_ENTROPY)
    with tf.GradientTape() as tape:
        scores = model.example_scores(tf.constant(X), tf.constant(Y))[0]
    assert scores.dtype == tf.float32 and scores.shape == (50,)
    np.testing.assert_allclose(scores, unscaled.example_scores(tf.constant(X), tf.constant(Y))[0], rtol=1e-6)
    if score != "gradient":  # its tapes are its own; nothing of it enters another gradient
        assert all(g is None for g in tape.gradient(scores, model.trainable_weights))


@pytest.mark.fault(12)
def test_6_a_probability_head_ranks_as_a_logit_head():
    """scores_test.py: every cross-entropy, eager and graph, float16, underflow."""
    logit, probability = prl.RobustModel(network()), prl.RobustModel(network(head="softmax"))
    logit.compile("sgd", CROSS_ENTROPY)
    probability.compile("sgd", "sparse_categorical_crossentropy")
    a, b = (prl.score_examples(model, (X, Y)) for model in (logit, probability))
    np.testing.assert_allclose(a, b, rtol=1e-5)
    losses = prl.scores.per_example_loss(Y, logit.network(X), CROSS_ENTROPY).numpy()
    assert np.argsort(a).tolist() != np.argsort(losses).tolist()  # it is not self-paced learning


def test_7_the_truth_never_enters_a_method():
    """tests/auditing/score_examples_test.py"""
    runs = []
    for truth in (Y == 0, Y != 0):
        quality = prl.SelectionQuality(X, Y, truth, batch_size=16)
        runs.append(fitted(prl.RobustModel(network()), run_eagerly=True, callbacks=[quality]))
    assert_all_equal(*(model.get_weights() for model, _ in runs))
    assert runs[0][1]["drop_recall"] != runs[1][1]["drop_recall"]


def test_8_user_weights_multiply_and_never_change_the_ranking():
    """tests/models/fit_test.py, tests/promises/oracle_test.py"""
    scores = [0.4, 0.1, 0.3, 0.2]
    for user_weights in (None, [9.0, 0.1, 1.0, 1.0], [0.1, 9.0, 5.0, 5.0]):
        assert weights_of(prl.Trim(0.5), scores, sample_weight=user_weights).tolist() == [0, 2, 0, 2]
    # 0 is padding: of the three others one is kept.
    assert weights_of(prl.Trim(0.5), scores, sample_weight=[1.0, 0.0, 1.0, 1.0]).tolist() == [0, 0, 0, 3]

    model = prl.RobustModel(network())
    model.compile("sgd", CROSS_ENTROPY, run_eagerly=True)
    class_weight = {0: 0.0, 1: 2.0, 2: 3.0}
    logs = model.fit(X, Y, class_weight=class_weight, batch_size=50, verbose=0).history
    ranked = np.sum(Y != 0)
    assert logs["kept_fraction"] == [pytest.approx(math.floor(0.7 * ranked + 1e-6) / ranked)]


@pytest.mark.fault(15)
def test_9_prl_g_refuses_batch_normalization_by_name():
    """tests/scores/gradient_test.py"""
    mixing = network(layers=[keras.layers.BatchNormalization(name="bn_here")])
    with pytest.raises(prl.BatchMixingError, match=r"bn_here.*GroupNormalization"):
        prl.RobustModel(mixing, score="gradient")
    normalized = network(layers=[keras.layers.LayerNormalization()])
    fitted(prl.RobustModel(normalized, score="gradient"), run_eagerly=True, epochs=1)


def test_10_evaluate_is_never_trimmed_and_fit_logs_four_numbers():
    """tests/models/fit_test.py, tests/models/co_teaching_test.py"""
    model, history = fitted(prl.RobustModel(network(), rule=prl.Trim(0.5)), validation_data=(X, Y))
    plain = network()
    plain.set_weights(model.network.get_weights())
    plain.compile("sgd", CROSS_ENTROPY, metrics=["accuracy"], run_eagerly=True)
    expected = plain.evaluate(X, Y, verbose=0)
    assert model.evaluate(X, Y, verbose=0) == pytest.approx(expected, rel=1e-5)
    assert [history["val_loss"][-1], history["val_accuracy"][-1]] == pytest.approx(expected, rel=1e-5)
    assert set(history) == {
        "loss", "accuracy", "loss_all", "kept_fraction", "score_threshold", "nonfinite",
        "kept_fraction_min_class", "val_loss",
        "val_accuracy",
    }  # fmt: skip
    assert history["loss"][-1] < history["loss_all"][-1]


# Promise 11, wrong labels have a bounded influence: bounded_influence_test.py.
