"""Rare classes: so many of each are kept at least, what was kept is logged, and none is dropped unsaid."""

import itertools
import warnings

import keras
import numpy as np
import pytest

import prl_keras as prl

RNG = np.random.default_rng(0)
X = RNG.normal(size=[24, 5]).astype("float32")
LABELS = np.array([0] * 11 + [1] * 10 + [2] * 3)
SPARSE = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
GRAPH = {"jit_compile": "auto"}


def rare_is_suspect(y, y_pred):
    return keras.ops.cast(keras.ops.reshape(y, [-1]) == 2, "float32")


def network(outputs=3, seed=0):
    initializer = keras.initializers.GlorotUniform(seed)
    return keras.Sequential([keras.Input([5]), keras.layers.Dense(outputs, kernel_initializer=initializer)])


def robust(rule, score=rare_is_suspect, loss=SPARSE, outputs=3, **options):
    """Without a graph unless the options have one: a trace costs more than the few steps of a test."""
    model = prl.RobustModel(network(outputs), score, rule)
    model.compile("sgd", loss, **(options or {"run_eagerly": True}))
    return model


def brute_force(scores, labels, is_ranked, epsilon, least):
    """The kept examples: the lowest of each class first, then the lowest of all, one after the other."""
    order = [i for i in np.argsort(scores, kind="stable") if is_ranked[i]]
    kept = [i for c in set(labels) for i in [j for j in order if labels[j] == c][:least]]
    count = max(1, int((1 - epsilon) * len(order) + 1e-6))
    kept += [i for i in order if i not in kept][: max(0, count - len(kept))]
    return set(kept)


class TestMinKeepPerClass:
    @pytest.mark.fault(13)
    @pytest.mark.parametrize("least, epsilon", itertools.product([1, 2, 5], [0.0, 0.3, 0.7]))
    def test_keeps_what_a_loop_over_the_classes_keeps(self, least, epsilon):
        rule = prl.Trim(epsilon, min_keep_per_class=least)
        for seed in range(20):
            rng = np.random.default_rng(seed)
            n = int(rng.integers(1, 20))
            scores, labels = rng.integers(6, size=n).astype("float32"), rng.integers(4, size=n)  # ties
            is_ranked = rng.random(n) > 0.2
            weights = np.array(rule(scores, is_ranked, 0, labels))
            kept = brute_force(scores, labels, is_ranked, epsilon, least)
            assert set(np.flatnonzero(weights)) == kept
            np.testing.assert_allclose(weights[list(kept)], is_ranked.sum() / max(len(kept), 1), rtol=1e-6)

    def test_of_0_is_trim(self):
        scores = RNG.normal(size=10).astype("float32")
        np.testing.assert_array_equal(prl.Trim(0.3, 0)(scores), prl.Trim(0.3)(scores))
        assert prl.Trim(0.3, 0) == prl.Trim(0.3)

    @pytest.mark.parametrize("least", [-1, 1.5, True, "1", None])
    def test_must_be_a_whole_number(self, least):
        with pytest.raises(ValueError, match="min_keep_per_class"):
            prl.Trim(0.3, least)

    def test_is_saved(self, tmp_path):
        model = robust(prl.Trim(prl.linear_ramp(0.3, 10), min_keep_per_class=2), score="loss")
        model.save(tmp_path / "model.keras")
        assert keras.saving.load_model(tmp_path / "model.keras").rule.min_keep_per_class == 2

    @pytest.mark.daily("options0", "options2")
    @pytest.mark.fault(13)
    @pytest.mark.parametrize("options", [GRAPH, {"jit_compile": True}, {"run_eagerly": True}])
    def test_in_fit(self, options):
        model = robust(prl.Trim(0.25, min_keep_per_class=2), **options)
        model.fit(X, LABELS, batch_size=24, shuffle=False, verbose=0)
        np.testing.assert_allclose(model.kept_by_class, [1, 5 / 10, 2 / 3], rtol=1e-6)  # 18 in all

    def test_of_a_pair(self):
        model = prl.CoTeachingModel(network(), network(seed=1), rare_is_suspect, prl.Trim(0.25, 2))
        model.compile("sgd", SPARSE)
        model.fit(X, LABELS, batch_size=24, shuffle=False, verbose=0)
        np.testing.assert_allclose(model.kept_by_class, [1, 5 / 10, 2 / 3], rtol=1e-6)

    def test_of_regression_is_refused(self):
        model = robust(prl.Trim(0.25, min_keep_per_class=1), "loss", "mse")
        with pytest.raises(ValueError, match="one class label per example"):
            model.fit(X, X[:, :3], verbose=0)


class TestKeptByClass:
    @pytest.mark.fault(13)
    @pytest.mark.parametrize(
        "loss, targets, outputs",
        [
            (SPARSE, LABELS, 3),
            (SPARSE, LABELS[:, None], 3),
            (keras.losses.CategoricalCrossentropy(from_logits=True), np.eye(3)[LABELS], 3),
            (keras.losses.BinaryCrossentropy(from_logits=True), (LABELS == 2)[:, None] * 1.0, 1),
        ],
    )
    def test_is_that_of_the_examples_that_count(self, loss, targets, outputs):
        def score(y, y_pred):
            return keras.ops.arange(24, dtype="float32")

        model = robust(prl.Trim(0.125), score, loss, outputs, **GRAPH)
        logs = model.fit(X, targets, batch_size=24, shuffle=False, verbose=0).history
        expected = [1.0, 1.0, 0.0] if outputs == 3 else [1.0, 0.0]
        np.testing.assert_allclose(model.kept_by_class, expected)
        assert logs["kept_fraction_min_class"] == [0.0]

    def test_is_over_the_last_epoch_and_not_that_of_validation(self):
        model = robust(prl.Trim(0.125))
        data = (X[:5], np.full(5, 2))
        with pytest.warns(UserWarning):
            model.fit(X, LABELS, epochs=3, batch_size=24, validation_data=data, verbose=0)
        np.testing.assert_allclose(model.kept_by_class, [1, 1, 0])

    def test_a_class_that_is_not_there_is_not_a_number(self):
        model = robust(prl.Trim(0.2), "loss")
        model.fit(X[:20], LABELS[:20], verbose=0)
        assert np.isnan(model.kept_by_class[2]) and not np.isnan(model.kept_by_class[:2]).any()

    def test_padding_is_not_seen(self):
        model = robust(prl.Trim(0.125))
        model.fit(X, LABELS, sample_weight=(LABELS != 2) * 1.0, batch_size=24, verbose=0)
        assert np.isnan(model.kept_by_class[2])

    @pytest.mark.parametrize("loss", ["mse", keras.losses.BinaryCrossentropy(from_logits=True)])
    def test_what_are_no_classes_has_none(self, loss):
        model = robust(prl.Trim(0.2), "loss", loss)
        assert "kept_fraction_min_class" not in model.fit(X, np.eye(3)[LABELS], verbose=0).history
        assert model.kept_by_class is None


class TestWarning:
    @pytest.mark.fault(13)
    def test_a_class_that_is_dropped_whole_is_named_once(self):
        model = robust(prl.Trim(0.125))
        with pytest.warns(UserWarning, match="classes 2 in a whole epoch.*min_keep_per_class"):
            model.fit(X, LABELS, epochs=1, batch_size=24, verbose=0)
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            model.fit(X, LABELS, epochs=2, batch_size=24, verbose=0)

    @pytest.mark.filterwarnings("error::UserWarning")
    def test_not_of_one_that_is_kept_in_one_batch(self):
        robust(prl.Trim(0.125, min_keep_per_class=1)).fit(X, LABELS, epochs=2, batch_size=12, verbose=0)

    @pytest.mark.filterwarnings("error::UserWarning")
    def test_not_of_rules_that_keep_few_on_purpose(self):
        robust(prl.KeepLowest(1)).fit(X, LABELS, batch_size=24, verbose=0)
