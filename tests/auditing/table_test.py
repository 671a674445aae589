"""audit: one row for each example, in data order, with what the model and its training say of it."""

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from scipy.special import expit, softmax

import prl_keras as prl

N = 60
RNG = np.random.default_rng(0)
X = RNG.normal(size=(N, 4)).astype(np.float32)
LABELS = RNG.integers(0, 3, N)
TARGETS = RNG.normal(size=(N, 2)).astype(np.float32)
LOGITS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def network(outputs=3, activation=None, seed=0):
    kernel = keras.initializers.GlorotUniform(seed)
    return keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(outputs, activation, kernel_initializer=kernel)]
    )


def compiled(loss=LOGITS, **options):
    model = prl.RobustModel(network(**options))
    model.compile("sgd", loss)
    return model


def probabilities(table):
    return table.filter(like="probability_").to_numpy()


class TestClasses:
    @pytest.mark.parametrize(
        "loss, activation, y",
        [
            (LOGITS, None, LABELS),
            (LOGITS, None, LABELS[:, None]),
            ("sparse_categorical_crossentropy", "softmax", LABELS),
            (
                keras.losses.CategoricalCrossentropy(from_logits=True),
                None,
                np.eye(3, dtype="float32")[LABELS],
            ),
        ],
    )
    def test_columns_are_those_of_the_model_in_data_order(self, loss, activation, y):
        model = compiled(loss, activation=activation)
        table = prl.audit(model, (X, y), batch_size=7)
        expected = softmax(X @ model.network.get_weights()[0], axis=1)
        assert table.index.name == "example" and list(table.index) == list(range(N))
        np.testing.assert_array_equal(table["given"], LABELS)
        np.testing.assert_array_equal(table["predicted"], expected.argmax(axis=1))
        np.testing.assert_allclose(probabilities(table), expected, rtol=1e-4)
        given = expected[np.arange(N), LABELS]
        np.testing.assert_allclose(table["given_probability"], given, rtol=1e-4)
        np.testing.assert_allclose(table["loss"], -np.log(given), rtol=1e-4)
        np.testing.assert_allclose(table["score"], 1 - given, rtol=1e-3, atol=1e-6)

    def test_equal_scores_are_ranked_by_the_loss(self):
        """1 - p rounds to 1 where the network is sure of another class."""
        model = compiled()
        model.network.set_weights([100 * np.eye(4, 3), np.zeros(3)])
        x = np.float32([[1, 2, 0, 0], [1, 5, 0, 0], [3, 1, 0, 0], [1, 3, 0, 0], [1, 5, 0, 0]])
        table = prl.audit(model, (x, np.array([0, 0, 0, 0, 0])))
        assert table["score"].tolist() == [1, 1, 0, 1, 1]
        assert table["rank"].tolist() == [4, 1, 5, 3, 2]  # then in data order

    @pytest.mark.parametrize("from_logits", [True, False])
    def test_two_classes_of_one_output(self, from_logits):
        loss = keras.losses.BinaryCrossentropy(from_logits=from_logits)
        model = compiled(loss, outputs=1, activation=None if from_logits else "sigmoid")
        y = (LABELS > 0).astype("int64")[:, None]
        table = prl.audit(model, (X, y))
        expected = expit(X @ model.network.get_weights()[0][:, 0])
        np.testing.assert_allclose(
            probabilities(table), np.stack([1 - expected, expected], axis=1), atol=1e-6
        )
        np.testing.assert_array_equal(table["predicted"], expected > 0.5)
        np.testing.assert_array_equal(table["given"], y[:, 0])

    def test_of_a_pair_are_the_mean_of_both_networks(self):
        pair = prl.CoTeachingModel(network(seed=1), network(seed=2))
        pair.compile("sgd", LOGITS)
        both = [softmax(X @ each.get_weights()[0], axis=1) for each in pair.networks]
        np.testing.assert_allclose(
            probabilities(prl.audit(pair, (X, LABELS))), np.mean(both, axis=0), rtol=1e-4
        )

    def test_a_plain_model_can_be_audited_too(self):
        plain = network()
        plain.compile("sgd", LOGITS)
        robust = prl.RobustModel(plain)
        robust.compile("sgd", LOGITS)
        batches = tf.data.Dataset.from_tensor_slices((X, LABELS)).batch(8)
        given, expected = (
            prl.audit(*each)["given_probability"] for each in ((plain, batches), (robust, (X, LABELS)))
        )
        np.testing.assert_allclose(given, expected, rtol=1e-5)

    def test_the_most_suspect_are_flagged(self):
        model = compiled()
        table = prl.audit(model, (X, LABELS), epsilon=0.25)
        assert table["is_flagged"].sum() == 15
        assert table["score"][table["is_flagged"]].min() >= table["score"][~table["is_flagged"]].max()
        order = table.sort_values("rank")
        assert (np.diff(order["score"]) <= 0).all() and list(order["rank"]) == list(range(1, N + 1))
        estimate = prl.estimate_epsilon(model, (X, LABELS)).estimate
        assert prl.audit(model, (X, LABELS))["is_flagged"].sum() == round(estimate * N)

    def test_ties_are_ranked_in_data_order(self):
        model = compiled()
        model.network.set_weights([np.zeros((4, 3)), np.zeros(3)])
        assert list(prl.audit(model, (X, LABELS))["rank"]) == list(range(1, N + 1))


class TestTargets:
    def test_columns(self):
        model = compiled("mse", outputs=2)
        table = prl.audit(model, (X, TARGETS), epsilon=0.1)
        predicted = X @ model.network.get_weights()[0]
        np.testing.assert_allclose(table[["predicted_0", "predicted_1"]], predicted, rtol=1e-4, atol=1e-6)
        np.testing.assert_array_equal(table[["given_0", "given_1"]], TARGETS)
        loss = ((predicted - TARGETS) ** 2).mean(axis=1)
        np.testing.assert_allclose(table["loss"], loss, rtol=1e-4)
        np.testing.assert_array_equal(table["rank"], np.argsort(np.argsort(-table["loss"])) + 1)
        assert table["is_flagged"].sum() == 6

    def test_very_many_targets_have_no_columns(self):
        kernel = keras.layers.Dense(101)
        model = prl.RobustModel(keras.Sequential([keras.Input((4,)), kernel]))
        model.compile("sgd", "mse")
        table = prl.audit(model, (X, np.zeros((N, 101), "float32")))
        assert list(table.columns) == ["score", "rank", "is_flagged", "loss"]


class TestRecord:
    def trained(self, epochs):
        keras.utils.set_random_seed(0)
        model = compiled()
        record = prl.SelectionRecord((X, LABELS))
        model.fit(X, LABELS, batch_size=16, epochs=epochs, verbose=0, callbacks=[record])
        return model, record

    @pytest.mark.daily("7-2")
    @pytest.mark.parametrize("epochs, late", [(1, 1), (2, 1), (6, 2), (7, 2), (9, 3)])
    def test_the_score_is_the_mean_over_the_last_third_of_the_epochs(self, epochs, late):
        model, record = self.trained(epochs)
        table = prl.audit(model, (X, LABELS), record)
        expected = 1 - record.given_probabilities[-late:].astype("float32").mean(axis=0)
        np.testing.assert_allclose(table["score"], expected, rtol=1e-5)

    @pytest.mark.daily("False")
    @pytest.mark.parametrize("is_pair", [False, True])
    def test_the_margin_is_its_mean_over_the_epochs(self, is_pair):
        """Against a loop over epochs, networks and examples, with the weights of each epoch's only batch."""
        networks = [network(seed=seed) for seed in range(1 + is_pair)]
        model = prl.CoTeachingModel(*networks) if is_pair else prl.RobustModel(*networks)
        model.compile(keras.optimizers.SGD(0.5), LOGITS)
        record, total = prl.SelectionRecord((X, LABELS)), np.zeros(N)
        for _ in range(4):
            for kernel, bias in (each.get_weights() for each in networks):
                for example, logits in enumerate(X @ kernel + bias):
                    others = [logit for label, logit in enumerate(logits) if label != LABELS[example]]
                    total[example] += logits[LABELS[example]] - max(others)
            model.fit(X, LABELS, batch_size=N, verbose=0, callbacks=[record])
        table = prl.audit(model, (X, LABELS), record)
        np.testing.assert_allclose(table["margin"], total / (4 * len(networks)), rtol=2e-3, atol=2e-3)
        assert "margin" not in prl.audit(model, (X, LABELS))

    def test_the_margin_of_what_was_seen_in_some_epochs_or_none(self):
        model, record = compiled(), prl.SelectionRecord((X, LABELS))
        model.fit(X[:40], LABELS[:40], verbose=0, callbacks=[record])
        model.fit(X[20:50], LABELS[20:50], verbose=0, callbacks=[record])
        found, margins = prl.audit(model, (X, LABELS), record)["margin"].to_numpy(), record.margins
        assert np.isnan(found[50:]).all()
        np.testing.assert_allclose(found[:20], margins[0, :20], rtol=1e-3)
        np.testing.assert_allclose(found[20:40], margins[:, 20:40].mean(axis=0), rtol=2e-3, atol=1e-3)
        np.testing.assert_allclose(found[40:50], margins[1, 40:50], rtol=1e-3)

    def test_of_targets_it_is_of_the_recorded_scores(self):
        model, record = compiled("mse", outputs=2), prl.SelectionRecord((X, TARGETS))
        model.fit(X, TARGETS, epochs=6, verbose=0, callbacks=[record])
        table = prl.audit(model, (X, TARGETS), record)
        assert "margin" not in table
        np.testing.assert_allclose(table["score"], record.scores[-2:].mean(axis=0), rtol=1e-5)

    def test_when_and_how_often_it_was_dropped(self):
        model, record = self.trained(4)
        table, dropped = prl.audit(model, (X, LABELS), record), record.dropped[:, 0]
        assert (table["times_seen"] == 4).all()
        np.testing.assert_array_equal(table["times_dropped"], dropped.sum(axis=0))
        for example, row in table.iterrows():
            epochs = np.flatnonzero(dropped[:, example]) + 1
            if len(epochs):
                assert (row["first_dropped"], row["last_dropped"]) == (epochs[0], epochs[-1])
            else:
                assert np.isnan(row["first_dropped"]) and np.isnan(row["last_dropped"])
        assert dropped.any() and not dropped.all()

    def test_what_was_held_out_ranks_last(self):
        model, record = compiled(), prl.SelectionRecord((X, LABELS))
        model.fit(X, LABELS, validation_split=0.1, verbose=0, callbacks=[record])
        table = prl.audit(model, (X, LABELS), record, epsilon=0.5)
        assert table["score"][54:].isna().all() and (table["rank"][54:] > 54).all()
        assert table["is_flagged"].sum() == 27  # half of those that have a score
        assert (table["times_seen"] == [1] * 54 + [0] * 6).all()

    def test_of_other_data_is_refused(self):
        model, record = self.trained(1)
        for data in ((X[:50], LABELS[:50]), (X[::-1], LABELS[::-1]), (X, (LABELS + 1) % 3)):
            with pytest.raises(ValueError, match="other examples, or in another order"):
                prl.audit(model, data, record)

    @pytest.mark.parametrize("outputs, loss, y", [(3, LOGITS, LABELS), (2, "mse", TARGETS)])
    def test_of_a_method_that_scores_nothing(self, outputs, loss, y):
        """Of classes the probabilities are there all the same; of targets the score is the model's loss."""
        model = prl.RobustModel(network(outputs), score=None)
        model.compile("sgd", loss)
        record = prl.SelectionRecord((X, y))
        model.fit(X, y, verbose=0, callbacks=[record])
        table = prl.audit(model, (X, y), record)
        is_classes = loss is LOGITS
        expected = 1 - record.given_probabilities[0].astype("float32") if is_classes else table["loss"]
        np.testing.assert_allclose(table["score"], expected, rtol=1e-5)


class TestFaults:
    @pytest.mark.daily("False")
    @pytest.mark.parametrize("is_recorded", [True, False])
    def test_what_is_not_finite_is_the_most_suspect(self, is_recorded):
        x = X.copy()
        x[3], x[7, 0] = np.nan, np.inf
        model, record = compiled(), prl.SelectionRecord((x, LABELS))
        model.fit(x, LABELS, verbose=0, callbacks=[record])
        table = prl.audit(model, (x, LABELS), record if is_recorded else None)
        assert set(table["rank"][[3, 7]]) == {1, 2} and table["is_flagged"][[3, 7]].all()
        found = prl.estimate_epsilon(model, (x, LABELS))
        assert 2 / N <= found.low <= found.estimate <= found.high <= 1
        y = TARGETS.copy()
        y[5] = np.nan
        regression = compiled("mse", outputs=2)
        assert prl.audit(regression, (X, y))["rank"][5] == 1

    @pytest.mark.parametrize("epsilon", [1.0, -0.1, "0.3", float("nan"), prl.linear_ramp(0.3, 10)])
    def test_an_epsilon_that_is_none(self, epsilon):
        with pytest.raises(ValueError, match="epsilon="):
            prl.audit(compiled(), (X, LABELS), epsilon=epsilon)

    def test_several_outputs_are_refused(self):
        inputs = keras.Input((4,))
        several = keras.Model(inputs, [keras.layers.Dense(2)(inputs), keras.layers.Dense(2)(inputs)])
        model = prl.RobustModel(several)
        model.compile("sgd", "mse")
        with pytest.raises(ValueError, match="several outputs"):
            prl.audit(model, tf.data.Dataset.from_tensors((X, (TARGETS, TARGETS))))

    def test_a_model_that_is_not_compiled_and_an_empty_data_set(self):
        with pytest.raises(ValueError, match="compile"):
            prl.audit(prl.RobustModel(network()), (X, LABELS))
        with pytest.raises(ValueError, match="empty"):
            prl.audit(compiled(), (X[:0], LABELS[:0]))


class TestWhereTheTableGoes:
    def test_csv(self, tmp_path):
        table = prl.audit(compiled(), (X, LABELS))
        table.to_csv(tmp_path / "audit.csv")
        again = pd.read_csv(tmp_path / "audit.csv", index_col="example")
        pd.testing.assert_frame_equal(again, table, check_dtype=False, rtol=1e-5)

    def test_parquet(self, tmp_path):
        pytest.importorskip("pyarrow", reason="pandas writes Parquet by pyarrow")
        table = prl.audit(compiled(), (X, LABELS))
        table.to_parquet(tmp_path / "audit.parquet")
        pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "audit.parquet"), table)

    def test_cleanlab(self):
        filters = pytest.importorskip("cleanlab.filter", reason="requirements-peers.txt")
        table = prl.audit(compiled(), (X, LABELS))
        issues = filters.find_label_issues(labels=table["given"], pred_probs=probabilities(table))
        assert issues.shape == (N,) and issues.dtype == bool


def test_it_finds_wrong_labels():
    """Three classes, a fifth of the labels wrong: the flags are nearly all right."""
    x = RNG.normal(size=(1500, 4)).astype(np.float32)
    y = x[:, :3].argmax(axis=1)
    noisy, is_wrong = prl.corrupt("symmetric", y, 0.2, np.random.default_rng(0), num_classes=3)
    keras.utils.set_random_seed(0)
    model = prl.RobustModel(network(), rule=prl.Trim(0.25))
    model.compile(keras.optimizers.Adam(0.05), LOGITS)
    record = prl.SelectionRecord((x, noisy))
    model.fit(x, noisy, batch_size=100, epochs=9, verbose=0, callbacks=[record])
    table = prl.audit(model, (x, noisy), record)
    assert is_wrong[table["rank"] <= 150].mean() > 0.97  # of the 10% most suspect
    assert abs(table["is_flagged"].mean() - 0.2) < 0.05
    assert is_wrong[table["is_flagged"]].mean() > 0.85
