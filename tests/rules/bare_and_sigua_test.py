"""Bare and Sigua against loops over the examples."""

import keras
import numpy as np
import pytest

import prl_keras as prl


def bare_by_hand(losses, counts, labels, kappa):
    p = np.exp(-np.asarray(losses, float))
    kept = np.zeros(len(p), bool)
    for i in np.flatnonzero(counts):
        same = [p[j] for j in np.flatnonzero(counts) if labels[j] == labels[i]]
        kept[i] = p[i] >= min(np.mean(same) + kappa * np.std(same), max(same)) - 1e-7
    return np.where(kept, np.sum(counts) / max(kept.sum(), 1), 0)


@pytest.mark.parametrize("kappa", [0, 0.5, 1, 4])
def test_bare_keeps_what_is_probable_for_its_class(kappa):
    rng = np.random.default_rng(0)
    for n in (1, 7, 40):
        losses, labels = rng.exponential(1, n).astype("float32"), rng.integers(0, 3, n)
        counts = rng.random(n) < 0.8
        found = prl.Bare(kappa)(losses, counts, labels=labels, classes=3).numpy()
        np.testing.assert_allclose(found, bare_by_hand(losses, counts, labels, kappa), rtol=1e-5)


def test_bare_with_equal_probabilities_keeps_all_and_never_a_non_finite_one():
    assert prl.Bare()(np.float32([2, 2, 2]), labels=np.zeros(3, int)).numpy().tolist() == [1, 1, 1]
    found = prl.Bare()(np.float32([np.nan, 2, np.inf]), labels=np.zeros(3, int)).numpy()
    assert found.tolist() == [0, 3, 0]
    assert prl.Bare()(np.float32([1, 2]), [False, False], labels=np.zeros(2, int)).numpy().tolist() == [0, 0]


def test_bare_trains_and_drops_wrong_labels():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 300)
    x = (np.eye(3)[y] + 0.1 * rng.normal(size=(300, 3))).astype("float32")
    wrong = np.arange(300) % 5 == 0
    given = np.where(wrong, (y + 1) % 3, y)
    keras.utils.set_random_seed(0)
    model = prl.build(
        "bare",
        lambda: keras.Sequential([keras.Input((3,)), keras.layers.Dense(3)]),
        epsilon=0.2,  # not used
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        optimizer=keras.optimizers.Adam(0.05),
        kappa=0.0,
    )
    model.fit(x, given, batch_size=60, epochs=6, verbose=0)
    (weights,) = model.example_weights(x, given)
    weights = np.asarray(weights)
    assert not (weights[wrong] > 0).any() and np.mean(weights[~wrong] > 0) > 0.4


@pytest.mark.parametrize(
    "epsilon, gamma, share", [(0.4, 0.01, 0.3), (0.5, 0.5, 1), (0.3, 0.1, 0), (0, 0.1, 1)]
)
def test_sigua_is_trim_and_a_step_against_the_next(epsilon, gamma, share):
    rng = np.random.default_rng(1)
    scores, is_ranked = rng.normal(size=30).astype("float32"), np.arange(30) % 6 > 0
    found = prl.Sigua(epsilon, gamma, share)(scores, is_ranked).numpy()
    order = sorted(np.flatnonzero(is_ranked), key=lambda i: scores[i])
    kept = int(np.sum(np.asarray(prl.Trim(epsilon)(scores, is_ranked)) > 0))
    unlearned = int(np.floor(share * (25 - kept) + 1e-6))
    expected = np.zeros(30)
    expected[order[:kept]] = 25 / kept
    expected[order[kept : kept + unlearned]] = -gamma * 25 / kept
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_sigua_reads_a_float32_epsilon_as_trim_does():
    rule, trim = prl.Sigua(np.float32(0.3)), prl.Trim(np.float32(0.3))
    assert rule == prl.Sigua(0.3)
    kept = [np.count_nonzero(each(np.arange(1000.0)).numpy() > 0) for each in (rule, trim)]
    assert kept == [700, 700]


def test_sigua_takes_a_schedule():
    rule = prl.build(
        "sigua", lambda: keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)]),
        epsilon=0.4, loss="mse", optimizer="sgd", ramp_steps=10,
    ).rule  # fmt: skip
    weights = [rule(np.arange(100.0), step=step).numpy() for step in (0, 10)]
    assert (weights[0] == 1).all() and [(weights[1] > 0).sum(), (weights[1] < 0).sum()] == [60, 12]


@pytest.mark.parametrize(
    "rule", [prl.Bare(0.5), prl.Sigua(0.3, 0.1, 0.5), prl.Sigua(prl.linear_ramp(0.3, 7))]
)
def test_come_back_from_their_config(rule):
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(rule))
    labels = {"labels": np.zeros(9, int)} if isinstance(rule, prl.Bare) else {}
    scores = np.arange(9.0)
    np.testing.assert_array_equal(again(scores, step=7, **labels), rule(scores, step=7, **labels))


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: prl.Bare(-1), "kappa=-1 must be a number of at least 0"),
        (lambda: prl.Sigua(1.0), r"epsilon=1.0 must be a number in \[0, 1\)"),
        (lambda: prl.Sigua(0.3, gamma=2), r"gamma=2 must be a number in \[0, 1\]"),
        (lambda: prl.Sigua(0.3, share="a"), r"share='a' must be a number in \[0, 1\]"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_sigua_does_not_unlearn_what_is_not_finite():
    found = prl.Sigua(0.5, 1, 1)(np.float32([1, 2, np.inf, np.nan])).numpy()
    assert found.tolist() == [2, 2, 0, 0]


def test_bare_needs_class_labels():
    with pytest.raises(ValueError, match="write labels=y"):
        prl.Bare()(np.ones(3))
    model = prl.RobustModel(keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]), "loss", prl.Bare())
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match=r"Bare\(kappa=1.0\) needs one class label per example"):
        model.train_on_batch(np.zeros((4, 2), "float32"), np.zeros((4, 1), "float32"))
