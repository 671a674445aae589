"""audit and estimate_epsilon of sequences, pixels and attributes: one row for each label that counts."""

import functools

import keras
import numpy as np
import pandas as pd
import pytest
import scipy.special
import tensorflow as tf
from scipy.special import expit

import prl_keras as prl
from prl_keras.auditing.predictions import predict_beside

RNG = np.random.default_rng(0)
N, STEPS, CLASSES = 12, 5, 3
X = RNG.normal(size=(N, STEPS, 4)).astype("float32")
LABELS = RNG.integers(0, CLASSES, (N, STEPS))
LENGTHS = RNG.integers(1, STEPS + 1, N)
IS_THERE = np.arange(STEPS) < LENGTHS[:, None]
SPARSE = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
softmax = functools.partial(scipy.special.softmax, axis=-1)
PIXELS = RNG.normal(size=(6, 4, 3, 2)).astype("float32")


def network(outputs=CLASSES, shape=(None, 4), activation=None, seed=0):
    kernel = keras.initializers.GlorotUniform(seed)
    return keras.Sequential(
        [keras.Input(shape), keras.layers.Dense(outputs, activation, kernel_initializer=kernel)]
    )


def compiled(loss=SPARSE, unit="example", **options):
    model = prl.RobustModel(network(**options), unit=unit)
    model.compile("sgd", loss)
    return model


def logits_of(model, x=X):
    return x @ model.networks[0].get_weights()[0]


def of_given(likely, labels):
    return np.take_along_axis(likely, labels[..., None], axis=-1)[..., 0]


def check_table(table, likely, labels, counts):
    """A table against probabilities `[n, ..., classes]`, labels `[n, ...]` and which of them count."""
    np.testing.assert_array_equal(np.array(table.index.to_list()), np.argwhere(counts))
    given = of_given(likely, labels)
    np.testing.assert_array_equal(table["given"], labels[counts])
    np.testing.assert_array_equal(table["predicted"], likely.argmax(axis=-1)[counts])
    np.testing.assert_allclose(table["given_probability"], given[counts], rtol=1e-4)
    np.testing.assert_allclose(table["loss"], -np.log(given[counts]), rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(table["score"], 1 - given[counts], rtol=1e-3, atol=1e-6)
    order = np.argsort(np.argsort(-table["score"], kind="stable"))
    np.testing.assert_array_equal(table["rank"], order + 1)
    expected = ["score", "rank", "is_flagged", "given", "predicted", "loss", "given_probability"]
    assert list(table.columns) == [*expected, "example_score", "example_rank"]


class TestSequences:
    @pytest.mark.parametrize(
        "loss, activation, y",
        [
            (SPARSE, None, LABELS),
            (SPARSE, None, LABELS[..., None]),
            ("sparse_categorical_crossentropy", "softmax", LABELS),
            (
                keras.losses.CategoricalCrossentropy(from_logits=True),
                None,
                np.eye(CLASSES, dtype="float32")[LABELS],
            ),
            (prl.Bootstrap(beta=1.0, from_logits=True), None, LABELS),
        ],
    )
    @pytest.mark.parametrize("unit", ["example", "element"])
    def test_columns_are_those_of_the_model_in_data_order(self, loss, activation, y, unit):
        model = compiled(loss, unit, activation=activation)
        table = prl.audit(model, (X, y), batch_size=5)
        assert table.index.names == ["example", "step"]
        check_table(table, softmax(logits_of(model)), LABELS, np.ones((N, STEPS), bool))

    def test_weights_of_steps_say_which_count(self):
        model = compiled()
        weights = IS_THERE * RNG.uniform(0.5, 2, (N, STEPS))
        table = prl.audit(model, (X, LABELS, weights), batch_size=5)
        check_table(table, softmax(logits_of(model)), LABELS, IS_THERE)

    def test_weights_of_examples_are_not_looked_at(self):
        model = compiled()
        weights = np.zeros(N)
        weights[:3] = 1
        pd.testing.assert_frame_equal(prl.audit(model, (X, LABELS, weights)), prl.audit(model, (X, LABELS)))

    def test_a_class_that_the_loss_ignores(self):
        model = compiled(keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-1))
        table = prl.audit(model, (X, np.where(IS_THERE, LABELS, -1)), batch_size=5)
        check_table(table, softmax(logits_of(model)), LABELS, IS_THERE)

    def test_a_mask(self):
        """Of an embedding of words, 0 for none."""
        words = np.where(IS_THERE, RNG.integers(1, 10, (N, STEPS)), 0)
        layers = [keras.layers.Embedding(10, 4, mask_zero=True), keras.layers.Dense(CLASSES)]
        model = prl.RobustModel(keras.Sequential([keras.Input((None,), dtype="int32"), *layers]))
        model.compile("sgd", SPARSE)
        table = prl.audit(model, (words, LABELS), batch_size=5)
        check_table(table, softmax(np.asarray(model.network(words))), LABELS, IS_THERE)

    @pytest.mark.fault(26)
    def test_a_mask_and_weights(self):
        layers = [keras.layers.Masking(), keras.layers.Dense(CLASSES)]
        model = prl.RobustModel(keras.Sequential([keras.Input((None, 4)), *layers]))
        model.compile("sgd", SPARSE)
        x = X * IS_THERE[..., None].astype("float32")
        weights = np.ones((N, STEPS))
        weights[:, 0] = 0
        table = prl.audit(model, (x, LABELS, weights))
        check_table(table, softmax(np.asarray(model.network(x))), LABELS, IS_THERE & (weights > 0))

    def test_batches_of_different_lengths(self):
        model, counts = compiled(), IS_THERE

        def padded():
            for rows in np.split(np.arange(N), 4):
                longest = LENGTHS[rows].max()
                yield X[rows, :longest], LABELS[rows, :longest], counts[rows, :longest].astype("float32")

        signature = (
            tf.TensorSpec((None, None, 4)),
            tf.TensorSpec((None, None), tf.int64),
            tf.TensorSpec((None, None)),
        )
        table = prl.audit(model, tf.data.Dataset.from_generator(padded, output_signature=signature))
        check_table(table, softmax(logits_of(model)), LABELS, counts)

    def test_an_example_of_which_nothing_counts_has_no_row(self):
        model, weights = compiled(), np.ones((N, STEPS))
        weights[4] = 0
        found = predict_beside(model, (X, LABELS, weights))
        assert found.by_element.examples == N and found.probabilities is None
        table = prl.audit(model, (X, LABELS, weights))
        assert 4 not in table.index.get_level_values("example") and len(table) == (N - 1) * STEPS
        assert table["example_rank"].max() == N - 1

    def test_the_score_of_an_example_is_the_mean_over_what_counts(self):
        model = compiled()
        table = prl.audit(model, (X, LABELS, IS_THERE.astype("float32")), batch_size=5)
        scores = 1 - of_given(softmax(logits_of(model)), LABELS)
        means = (scores * IS_THERE).sum(axis=1) / LENGTHS
        examples = table.index.get_level_values("example")
        np.testing.assert_allclose(table["example_score"], means[examples], rtol=1e-4)
        ranks = np.argsort(np.argsort(-means)) + 1
        np.testing.assert_array_equal(table["example_rank"], ranks[examples])

    def test_the_most_suspect_are_flagged(self):
        model = compiled()
        data = X, LABELS, IS_THERE.astype("float32")
        table = prl.audit(model, data, epsilon=0.25)
        assert table["is_flagged"].sum() == round(0.25 * IS_THERE.sum())
        assert table["score"][table["is_flagged"]].min() >= table["score"][~table["is_flagged"]].max()
        estimate = prl.estimate_epsilon(model, data).estimate
        assert prl.audit(model, data)["is_flagged"].sum() == round(estimate * IS_THERE.sum())

    def test_of_a_pair_are_the_mean_of_both_networks(self):
        pair = prl.CoTeachingModel(network(seed=1), network(seed=2))
        pair.compile("sgd", SPARSE)
        data = X, LABELS, IS_THERE.astype("float32")
        both = [softmax(X @ each.get_weights()[0]) for each in pair.networks]
        mean, given = np.mean(both, axis=0), [of_given(each, LABELS) for each in both]
        table = prl.audit(pair, data, batch_size=5)
        np.testing.assert_array_equal(table["predicted"], mean.argmax(axis=-1)[IS_THERE])
        np.testing.assert_allclose(table["given_probability"], np.mean(given, axis=0)[IS_THERE], rtol=1e-4)
        np.testing.assert_allclose(table["loss"], -np.log(given).mean(axis=0)[IS_THERE], rtol=1e-4)
        differ = both[0].argmax(axis=-1) != both[1].argmax(axis=-1)
        assert predict_beside(pair, data).disagreement == pytest.approx(differ[IS_THERE].mean())

    def test_a_plain_model_can_be_audited_too(self):
        plain = network()
        plain.compile("sgd", SPARSE)
        table = prl.audit(plain, tf.data.Dataset.from_tensor_slices((X, LABELS)).batch(5))
        check_table(table, softmax(X @ plain.get_weights()[0]), LABELS, np.ones((N, STEPS), bool))


class TestPixels:
    def test_classes(self):
        labels = RNG.integers(0, CLASSES, PIXELS.shape[:3])
        labels[2, 1] = 255
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=255)
        model = compiled(loss, shape=(4, 3, 2))
        table = prl.audit(model, (PIXELS, labels), batch_size=4)
        assert table.index.names == ["example", "row", "column"]
        counts = labels != 255
        check_table(table, softmax(logits_of(model, PIXELS)), np.where(counts, labels, 0), counts)

    @pytest.mark.parametrize("from_logits", [True, False])
    def test_of_two_classes(self, from_logits):
        labels = RNG.integers(0, 2, PIXELS.shape[:3])
        activation = None if from_logits else "sigmoid"
        loss = keras.losses.BinaryCrossentropy(from_logits=from_logits)
        model = compiled(loss, outputs=1, shape=(4, 3, 2), activation=activation)
        table = prl.audit(model, (PIXELS, labels[..., None]), batch_size=4)
        assert table.index.names == ["example", "row", "column"]
        likely = expit(logits_of(model, PIXELS))
        check_table(table, np.concatenate([1 - likely, likely], axis=-1), labels, labels >= 0)

    def test_of_a_volume_and_of_attributes_at_each_place(self):
        volumes = RNG.normal(size=(3, 2, 2, 2, 4)).astype("float32")
        labels = RNG.integers(0, CLASSES, volumes.shape[:-1])
        table = prl.audit(compiled(shape=(2, 2, 2, 4)), (volumes, labels))
        assert table.index.names == ["example", "axis_1", "axis_2", "axis_3"] and len(table) == 24
        model = compiled(keras.losses.BinaryCrossentropy(from_logits=True), outputs=2, shape=(4, 3, 2))
        table = prl.audit(model, (PIXELS, RNG.integers(0, 2, PIXELS.shape)))
        assert table.index.names == ["example", "row", "column", "attribute"] and len(table) == PIXELS.size

    def test_a_thousand_pictures_of_many_classes_keep_few_numbers_each(self):
        model = compiled(outputs=20, shape=(16, 16, 2))
        x, y = np.zeros((100, 16, 16, 2), "float32"), np.zeros((100, 16, 16), "int32")
        found = predict_beside(model, (x, y))
        columns = (*found[:2], found.losses, *found.by_element[-2:])
        assert all(column.shape == (25600,) and column.dtype.itemsize == 4 for column in columns)
        assert found.by_element.places.dtype == np.int32


class TestAttributes:
    @pytest.mark.parametrize("unit", ["example", "element"])
    def test_each_is_a_label(self, unit):
        x = X[:, 0]
        labels = RNG.integers(0, 2, (N, 6))
        model = compiled(keras.losses.BinaryCrossentropy(from_logits=True), unit, outputs=6, shape=(4,))
        table = prl.audit(model, (x, labels), batch_size=5)
        assert table.index.names == ["example", "attribute"]
        likely = expit(logits_of(model, x))
        check_table(table, np.stack([1 - likely, likely], axis=-1), labels, labels >= 0)

    def test_weights_of_attributes_say_which_count(self):
        x, labels = X[:, 0], RNG.integers(0, 2, (N, 6))
        weights = RNG.integers(0, 2, (N, 6))
        model = compiled(keras.losses.BinaryCrossentropy(from_logits=True), "element", outputs=6, shape=(4,))
        table = prl.audit(model, (x, labels, weights))
        np.testing.assert_array_equal(np.array(table.index.to_list()), np.argwhere(weights))


class TestTargets:
    @pytest.mark.parametrize("width", [1, 2])
    def test_of_steps(self, width):
        y = RNG.normal(size=(N, STEPS, width)).astype("float32")
        model = compiled("mse", outputs=width)
        table = prl.audit(model, (X, y, IS_THERE.astype("float32")), epsilon=0.1, batch_size=5)
        assert table.index.names == ["example", "step", *["attribute"] * (width > 1)]
        counts = np.repeat(IS_THERE[..., None], width, axis=2)
        places = np.argwhere(counts)
        np.testing.assert_array_equal(np.array(table.index.to_list()), places[:, : 2 + (width > 1)])
        predicted = logits_of(model)
        np.testing.assert_allclose(table["given"], y[counts])
        np.testing.assert_allclose(table["predicted"], predicted[counts], rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(table["loss"], ((y - predicted) ** 2)[counts], rtol=1e-3, atol=1e-6)
        np.testing.assert_array_equal(table["score"], table["loss"])
        assert "given_probability" not in table and table["is_flagged"].sum() == round(0.1 * counts.sum())

    def test_a_vector_is_one_label_but_of_a_model_that_ranks_elements(self):
        x, y = X[:, 0], RNG.normal(size=(N, 2)).astype("float32")
        by_example, by_element = (
            compiled("mse", unit, outputs=2, shape=(4,)) for unit in ("example", "element")
        )
        whole, each = prl.audit(by_example, (x, y)), prl.audit(by_element, (x, y))
        assert whole.index.names == ["example"] and each.index.names == ["example", "attribute"]
        means = each["loss"].groupby("example").mean()
        np.testing.assert_allclose(whole["loss"], means, rtol=1e-5)
        single = prl.audit(compiled("mse", "element", outputs=1, shape=(4,)), (x, y[:, :1]))
        assert single.index.names == ["example"] and "given_0" in single


class TestFaults:
    def test_what_is_not_finite_is_the_most_suspect(self):
        x = X.copy()
        x[3, 1], x[7] = np.nan, np.inf
        model = compiled()
        data = x, LABELS, IS_THERE.astype("float32")
        table = prl.audit(model, data)
        is_bad = np.isin(table.index.get_level_values("example"), [3, 7])
        np.testing.assert_array_equal(np.isinf(table["score"]), is_bad)
        np.testing.assert_array_equal(np.isinf(table["example_score"]), is_bad)
        assert set(table["example_rank"][is_bad]) == {1, 2} and table["loss"][is_bad].isna().all()
        rest = ~np.isin(np.arange(N), [3, 7])
        good = prl.estimate_epsilon(model, tuple(part[rest] for part in data))
        share = is_bad.mean()
        assert prl.estimate_epsilon(model, data) == pytest.approx([share + (1 - share) * e for e in good])

    @pytest.mark.fault(26)
    def test_a_record_is_refused(self):
        model, record = compiled(), prl.SelectionRecord((X, LABELS))
        model.fit(X, LABELS, verbose=0, callbacks=[record])
        with pytest.raises(ValueError, match=r"one for each step of it\. Leave the record out"):
            prl.audit(model, (X, LABELS), record)

    @pytest.mark.fault(26)
    def test_trusted_labels_are_refused(self):
        with pytest.raises(ValueError, match=r"a label for each step\. Leave trusted out"):
            prl.estimate_epsilon(compiled(), (X, LABELS), trusted=([0, 1], LABELS[:2]))

    @pytest.mark.parametrize("look", [prl.audit, prl.estimate_epsilon])
    @pytest.mark.parametrize(
        "change, message",
        [
            (3, r"at most 2 for 3 outputs; y\[8, 2\] is 3"),
            (-1, r"y\[8, 2\] is -1"),
            (0.5, "must be integers"),
        ],
    )
    @pytest.mark.parametrize("loss", [SPARSE, prl.Bootstrap(from_logits=True)])
    def test_labels_of_no_class_are_refused_with_their_place(self, look, change, message, loss):
        y = LABELS.astype(float if change == 0.5 else int)
        y[8, 2] = change
        with pytest.raises(ValueError, match=message):
            look(compiled(loss), (X, y), batch_size=5)

    def test_shares_outside_0_to_1_are_refused_with_their_place(self):
        y = np.zeros((N, STEPS, 2), "float32")
        y[8, 2, 1] = 2
        model = compiled(keras.losses.BinaryCrossentropy(from_logits=True), outputs=2)
        with pytest.raises(ValueError, match=r"labels in \[0, 1\]; y\[8, 2, 1\] is 2"):
            prl.audit(model, (X, y), batch_size=5)

    def test_labels_that_lie_otherwise_than_the_predictions_are_refused(self):
        with pytest.raises(ValueError, match=r"\(batch, 4\) against predictions for \(batch, 5\)"):
            prl.audit(compiled(), (X, LABELS[:, :4]))
        labels = np.zeros((6, 3, 4), int)  # columns and rows swapped
        with pytest.raises(ValueError, match=r"\(batch, 3, 4\) against predictions for \(batch, 4, 3\)"):
            prl.audit(compiled(shape=(4, 3, 2)), (PIXELS, labels))
        with pytest.raises(ValueError, match="sample_weight of shape"):
            prl.audit(compiled(), (X, LABELS, np.ones((N, 3))))

    def test_where_nothing_counts(self):
        model, data = compiled(), (X, LABELS, np.zeros((N, STEPS)))
        with pytest.raises(ValueError, match="No label counts"):
            prl.estimate_epsilon(model, data)
        assert len(prl.audit(model, data, epsilon=0.1)) == 0

    def test_a_loss_that_is_not_known(self):
        with pytest.raises(ValueError, match="is not known"):
            prl.audit(compiled("hinge"), (X, np.zeros((N, STEPS, CLASSES))))


class TestEstimate:
    def trained(self, loss, make, unit="element", outputs=CLASSES):
        """-> model, data, the share of wrong labels, 20%, of those that count."""
        rng = np.random.default_rng(1)
        x = rng.normal(size=(300, 8, 4)).astype("float32")
        weights = (np.arange(8) < rng.integers(3, 9, 300)[:, None]).astype("float32")
        y, is_wrong = make(x, rng)
        keras.utils.set_random_seed(0)
        model = prl.RobustModel(network(outputs), rule=prl.Trim(0.3), unit=unit)
        model.compile(keras.optimizers.Adam(0.05), loss)
        model.fit(x, y, sample_weight=weights, batch_size=50, epochs=20, verbose=0)
        counts = weights > 0 if is_wrong.ndim == 2 else np.repeat(weights[..., None] > 0, outputs, axis=2)
        return model, (x, y, weights), is_wrong[counts].mean(), is_wrong[counts]

    @staticmethod
    def classes(x, rng):
        y = x[..., :3].argmax(axis=-1)
        is_wrong = rng.random(y.shape) < 0.2
        return np.where(is_wrong, (y + rng.integers(1, 3, y.shape)) % 3, y), is_wrong

    @staticmethod
    def targets(x, rng):
        y = x[..., :2] - x[..., 2:] + 0.05 * rng.normal(size=(*x.shape[:2], 2))
        is_wrong = rng.random(y.shape) < 0.2
        return np.where(is_wrong, 5 * rng.normal(size=y.shape), y).astype("float32"), is_wrong

    @pytest.mark.daily("loss0-*")
    @pytest.mark.parametrize(
        "loss, make, outputs", [(SPARSE, classes.__func__, CLASSES), ("mse", targets.__func__, 2)]
    )
    def test_holds_the_truth(self, loss, make, outputs):
        model, data, truth, is_wrong = self.trained(loss, make, outputs=outputs)
        found = prl.estimate_epsilon(model, data)
        assert found.low <= truth <= found.high and abs(found.estimate - truth) < 0.05
        table = prl.audit(model, data)
        assert is_wrong[table["rank"] <= len(table) // 10].mean() > 0.95
        assert is_wrong[table["is_flagged"]].mean() > 0.8

    def test_of_very_many_losses_is_that_of_groups_of_them(self, monkeypatch):
        model, data, _, _ = self.trained("mse", self.targets, outputs=2)
        exact = prl.estimate_epsilon(model, data)
        monkeypatch.setattr("prl_keras.auditing.estimate._MANY", 500)
        assert prl.estimate_epsilon(model, data) == pytest.approx(exact, abs=0.005)


def test_csv_keeps_the_index(tmp_path):
    table = prl.audit(compiled(), (X, LABELS))
    table.to_csv(tmp_path / "audit.csv")
    again = pd.read_csv(tmp_path / "audit.csv", index_col=["example", "step"])
    pd.testing.assert_frame_equal(again, table, check_dtype=False, check_index_type=False, rtol=1e-5)
