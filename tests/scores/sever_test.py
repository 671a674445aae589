"""The score of SEVER against a singular value decomposition in float64, and what it finds."""

import keras
import numpy as np
import oracle
import pytest
import tensorflow as tf
from loss_layer_step import NAME, SPARSE, assert_step_is_that_of_a_loop, gradients_by_hand, modes

import prl_keras as prl
from prl_keras.scores.loss_layer import loss_layer_gradients, loss_layer_score
from prl_keras.scores.names import resolve
from prl_keras.scores.sever import sever

MODES = modes(tf.TensorSpec([None], tf.int64), tf.TensorSpec([None, 10]), tf.TensorSpec([None]))


def by_hand(gradients, counts):
    """The scores by the formula; 0 where an example does not count."""
    centered = gradients - gradients[counts].mean(axis=0)
    _, sizes, directions = np.linalg.svd(centered[counts])
    assert sizes[0] > 1.3 * sizes[1]  # else there is no one direction
    return np.where(counts, (centered @ directions[0]) ** 2, 0)


def colluding(n=60, wrong=18, hard=9, classes=10):
    """-> (labels, logits, kinds "wrong", "hard" and "learned" of the examples).

    The network predicts the label of learned examples. That of a hard one is right, and the network is sure
    of another class. Wrong ones pull the same way: the network predicts their true class 0, the label is 1.
    """
    rng = np.random.default_rng(0)
    kind = rng.permutation(np.repeat(["wrong", "hard", "learned"], [wrong, hard, n - wrong - hard]))
    y = rng.integers(0, classes, n)
    predicted = np.where(kind == "hard", (y + rng.integers(1, classes, n)) % classes, y)
    y, predicted = np.where(kind == "wrong", 1, y), np.where(kind == "wrong", 0, predicted)
    sure = np.where(kind == "hard", 7, 6)[:, None]
    z = sure * np.eye(classes)[predicted] + 0.1 * rng.normal(size=(n, classes))
    return y, z.astype("float32"), kind


@pytest.mark.daily("*-eager", "*-unknown*")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("pads", [False, True])
def test_is_the_squared_part_along_the_top_singular_vector(mode, pads):
    y, z, _ = colluding()
    weights = np.where(np.arange(60) % 4 == 0, 0.0, 7.0) if pads else np.ones(60)
    function = MODES[mode](lambda y, z, w: sever(y, z, SPARSE, w))
    found = function(tf.constant(y), tf.constant(z), tf.constant(weights, tf.float32)).numpy()
    expected = by_hand(gradients_by_hand(NAME, y, z), weights > 0)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


HEADS = {
    "softmax": ("softmax", keras.losses.CategoricalCrossentropy(), "softmax_cross_entropy"),
    "sigmoid": ("sigmoid", keras.losses.BinaryCrossentropy(), "sigmoid_cross_entropy"),
    "mse": ("linear", keras.losses.MeanSquaredError(), "mse"),
}


@pytest.mark.parametrize("head", HEADS)
def test_takes_the_gradient_at_the_logits_of_every_head(head):
    activation, loss, name = HEADS[head]
    y, z, _ = colluding()
    y = np.eye(10, dtype="float32")[y]
    found = sever(y, keras.activations.get(activation)(tf.constant(z)), loss).numpy()
    expected = by_hand(gradients_by_hand(name, y, np.float64(z)), np.ones(60, bool))
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=1e-4 * expected.max())


def test_several_outputs_are_one_gradient():
    y, z, _ = colluding()
    targets = (np.random.default_rng(1).normal(size=(60, 2)) / 2).astype("float32")
    parts = gradients_by_hand(NAME, y, z), gradients_by_hand("mse", targets, 0 * targets)
    found = sever([y, targets], [tf.constant(z), tf.zeros([60, 2])], [SPARSE, "mse"])
    expected = by_hand(np.concatenate(parts, axis=1), np.ones(60, bool))
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("is_rescaled", [False, True])
def test_the_norms_of_the_gradients_are_those_of_prl_l(is_rescaled):
    rng = np.random.default_rng(0)
    z, y = rng.normal(size=(6, 4, 3)).astype("float32"), rng.integers(0, 3, (6, 4))
    weights = (rng.random((6, 4)) < 0.6).astype("float32")
    weights[2] = 0
    gradients, counts, is_finite = loss_layer_gradients(y, tf.constant(z), SPARSE, weights, is_rescaled)
    assert gradients.shape == (6, 12) and counts.numpy().tolist() == (np.arange(6) != 2).tolist()
    norm = loss_layer_score if is_rescaled else prl.scores.loss_layer_gradient_norm
    expected = norm(y, tf.constant(z), SPARSE, weights)
    np.testing.assert_allclose(np.linalg.norm(gradients, axis=1), expected, rtol=1e-5)
    assert np.asarray(is_finite).all()


def dropped(score, y, z, epsilon):
    """Which examples `Trim` drops, bool `[n]`."""
    return prl.Trim(epsilon)(resolve(score).function(y, tf.constant(z), SPARSE)).numpy() == 0


def test_finds_wrong_labels_that_pull_the_same_way_where_norms_do_not():
    y, z, kind = colluding()
    found = {score: kind[dropped(score, y, z, 0.3)] for score in ("sever", "loss_layer_gradient", "loss")}
    assert all(len(each) == 18 for each in found.values())
    assert np.mean(found["sever"] == "wrong") > 0.85
    for score in ("loss_layer_gradient", "loss"):  # those of the hard examples are larger
        assert np.mean(found[score] == "wrong") == 0.5 and np.sum(found[score] == "hard") == 9


def test_takes_hard_examples_that_pull_the_same_way_for_wrong_ones():
    """The failure that the docstring names."""
    y, z, kind = colluding()
    (wrong,) = np.nonzero(kind == "hard")  # now the labels of these are wrong, and those of "wrong" right
    y[wrong] = (z[wrong].argmax(axis=1) + 1 + np.arange(9)) % 10
    found = kind[dropped("sever", y, z, 0.15)]
    assert len(found) == 9 and np.mean(found == "wrong") > 0.7
    assert np.mean(kind[dropped("loss_layer_gradient", y, z, 0.15)] == "hard") == 1


@pytest.mark.parametrize("scale", [1e-15, 1e15])
def test_scales_with_the_gradients(scale):
    rng = np.random.default_rng(0)
    y = rng.normal(size=(9, 3)) * [5, 1, 1]
    one, other = (sever(factor * y.astype("float32"), tf.zeros([9, 3]), "mse") for factor in (1, scale))
    np.testing.assert_allclose(other / scale**2, one, rtol=1e-4)


def test_rows_that_are_not_finite_or_padding_move_nothing():
    y, z, _ = colluding()
    alone = sever(y, tf.constant(z), SPARSE).numpy()
    z = np.concatenate([z, np.full((2, 10), np.nan, "float32"), np.full((2, 10), 50, "float32")])
    found = sever(np.append(y, [0, 1, 2, 3]), tf.constant(z), SPARSE, np.float32([1] * 62 + [0] * 2)).numpy()
    np.testing.assert_allclose(found[:60], alone, rtol=1e-4, atol=1e-6)
    assert found[60:].tolist() == [np.inf, np.inf, 0, 0]


@pytest.mark.daily("*-eager", "1-*")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("n", [0, 1, 2])
def test_small_batches_and_padding_alone(mode, n):
    y, z, _ = colluding()
    function = MODES[mode](lambda y, z, w: sever(y, z, SPARSE, w))
    for weight in (0, 1):
        found = function(tf.constant(y[:n]), tf.constant(z[:n]), tf.fill([n], float(weight))).numpy()
        assert found.shape == (n,) and np.isfinite(found).all()
        assert n > 1 or not found.any()


def test_equal_gradients_score_0():
    found = sever(np.zeros(6, int), tf.ones([6, 3]), SPARSE).numpy()
    np.testing.assert_allclose(found, 0, atol=1e-12)


@pytest.mark.daily("*-False")
@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("is_padded", [False, True])
def test_a_step_is_that_of_a_loop(is_padded, jit_compile):
    y, x, _ = colluding(24, 8, 3)
    weights = np.where(np.arange(24) % 5 == 1, 0, 2).astype("float32") if is_padded else np.ones(24)

    def rule(run, counts):
        scores = by_hand(gradients_by_hand(NAME, y, run.outputs), counts)
        kept = oracle.lowest(scores, counts, int(np.floor(0.7 * counts.sum() + 1e-6)))
        return oracle.keep(kept, counts)

    assert_step_is_that_of_a_loop("sever", rule, y, x, weights, jit_compile)


def test_each_step_of_a_sequence_by_itself():
    """unit="element", with masked steps."""
    y, z, _ = colluding()
    model = prl.RobustModel(
        keras.Sequential([keras.Input((12, 10)), keras.layers.Dense(10, use_bias=False)]),
        "sever", prl.Trim(0.25), unit="element",
    )  # fmt: skip
    model.compile("sgd", SPARSE)
    model.set_weights([np.eye(10)])
    weights = np.ones((5, 12), "float32")
    weights[1, 3:] = 0
    (found,) = model.example_scores(z.reshape(5, 12, 10), y.reshape(5, 12), weights)
    expected = sever(y, tf.constant(z), SPARSE, weights.ravel()).numpy()
    counts = weights.ravel() > 0
    np.testing.assert_allclose(np.ravel(found)[counts], expected[counts], rtol=1e-4, atol=1e-5)


def test_equal_scores_are_ordered_by_the_loss():
    """Gradients of a mean absolute error are signs: a side has the same score."""
    y = np.float32([[-1], [-3], [-2], [5], [4], [9], [8], [6]])
    model = prl.RobustModel(
        keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)]), "sever", prl.Trim(0.25)
    )
    model.compile("sgd", "mae")
    model.set_weights([np.zeros((1, 1))])
    (weights,) = model.example_weights(np.ones((8, 1), "float32"), y)
    assert np.flatnonzero(np.asarray(weights) == 0).tolist() == [1, 2]  # of the rarer sign, the larger errors
