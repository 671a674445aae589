"""SelectionRecord: which examples training dropped, in data order, whatever the pipeline does."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import prl_keras as prl
from prl_keras.inputs.fingerprints import fingerprints
from tests.promises.replicas_test import SETUP, run

N = 50
GRAPH = {"jit_compile": "auto"}
REPLICAS = """
def recorded(strategy):
    with strategy.scope():
        model = prl.RobustModel(network(0), rule=prl.Trim(0.4))
        model.compile(optimizer(), cross_entropy)
    record = prl.SelectionRecord((x, y))
    model.run_eagerly = strategy.num_replicas_in_sync == 1
    for size in (8, 1):  # of 21: at the end 5; 1 leaves a replica without examples
        model.fit(x, y, batch_size=size, epochs=2, shuffle=False, verbose=0, callbacks=[record])
    return record

one, several = recorded(tf.distribute.get_strategy()), recorded(mirrored)
np.testing.assert_array_equal(one.seen, several.seen)
np.testing.assert_array_equal(one.dropped, several.dropped)
np.testing.assert_allclose(one.scores, several.scores, rtol=1e-4)
np.testing.assert_allclose(one.margins, several.margins, rtol=2e-3, atol=2e-3)
assert np.isfinite(one.margins).all()
assert one.seen.all() and 0.2 < one.dropped.mean() < 0.4
print("equal")
"""
RNG = np.random.default_rng(0)
X = RNG.normal(size=(N, 5)).astype(np.float32)
Y = RNG.normal(size=(N, 1)).astype(np.float32)
IS_HIGH = Y[:, 0] > 0.5


def drop_high(scores, is_ranked=None, step=0):
    """A rule that drops the same examples in any batch."""
    return tf.where(scores > 0.5, 0.0, 1.0)


def target(y_true, y_pred):
    return y_true[:, 0] + 0.0 * y_pred[:, 0]


def own_softmax(logits):
    return tf.nn.softmax(logits)


def margin(logits, label):
    """The logit of the label minus the largest other."""
    logits = [0.0, logits[0]] if len(logits) == 1 else list(logits)
    return logits.pop(label) - max(logits)


def network(outputs=1, activation=None):
    return keras.Sequential([keras.Input((5,)), keras.layers.Dense(outputs, activation)])


def model(**compile_options):
    """Without a graph unless the options have one."""
    keras.utils.set_random_seed(0)
    model = prl.RobustModel(network(), score=target, rule=drop_high)
    model.compile("sgd", "mse", **(compile_options or {"run_eagerly": True}))
    return model


def bits(record):
    """The one network's drops, each epoch's."""
    assert record.dropped.shape[1] == 1
    return record.dropped[:, 0]


class TestWhatIsRecorded:
    @pytest.mark.daily("options0", "options2")
    @pytest.mark.parametrize(
        "options", [GRAPH, {"jit_compile": True}, {"steps_per_execution": 3}, {"run_eagerly": True}]
    )
    def test_shuffled_arrays_are_recorded_in_data_order(self, options):
        record = prl.SelectionRecord((X, Y))
        model(**options).fit(X, Y, batch_size=8, epochs=3, verbose=0, callbacks=[record])
        np.testing.assert_array_equal(bits(record), [IS_HIGH] * 3)
        assert record.seen.all() and record.seen.shape == (3, N)

    def test_what_the_rule_drops_is_what_the_step_dropped(self):
        """Trim, whose choice changes with the batch and the weights, against its own weights."""
        keras.utils.set_random_seed(0)
        model = prl.RobustModel(network(), rule=prl.Trim(0.3))
        model.compile(keras.optimizers.SGD(0.5), "mse")
        record = prl.SelectionRecord((X, Y))
        expected, scores = [], []
        for epoch in range(4):  # one batch an epoch: the weights before it choose
            expected.append(model.example_weights(X, Y)[0].numpy() == 0)
            scores.append(prl.score_examples(model, (X, Y)))
            model.fit(X, Y, batch_size=N, verbose=0, callbacks=[record])
            assert len(record.dropped) == epoch + 1
        np.testing.assert_array_equal(bits(record), expected)
        np.testing.assert_allclose(record.scores, scores, rtol=1e-5)
        assert (np.sum(expected, axis=1) == 15).all() and (expected[0] != expected[-1]).any()

    def test_of_a_pair_each_network_has_its_own(self):
        keras.utils.set_random_seed(0)
        pair = prl.CoTeachingModel(network(), network(), rule=prl.Trim(0.3))
        pair.compile("sgd", "mse")
        record = prl.SelectionRecord((X, Y))
        expected = [weights.numpy() == 0 for weights in pair.example_weights(X, Y)]
        scores = prl.score_examples(pair, (X, Y))
        pair.fit(X, Y, batch_size=N, verbose=0, callbacks=[record])
        np.testing.assert_array_equal(record.dropped, [expected])
        np.testing.assert_allclose(record.scores, [scores], rtol=1e-5)
        assert (expected[0] != expected[1]).any()

    @pytest.mark.daily("False")
    @pytest.mark.parametrize("is_pair", [False, True])
    def test_the_probability_of_the_given_class_and_where_there_is_none_no_margin(self, is_pair):
        labels = RNG.integers(0, 3, N)
        labels[[4, 9]] = -1
        networks = [network(3) for _ in range(1 + is_pair)]
        model = prl.CoTeachingModel(*networks) if is_pair else prl.RobustModel(*networks)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-1)
        model.compile(keras.optimizers.SGD(0.0), loss)
        x = X.copy()
        x[7, 0] = np.nan
        record = prl.SelectionRecord((x, labels))
        model.fit(x, labels, batch_size=8, epochs=2, verbose=0, callbacks=[record])
        softmax = [keras.ops.softmax(each.predict(x, verbose=0)).numpy() for each in networks]
        expected = np.mean(softmax, axis=0)[np.arange(N), labels]
        expected[[4, 7, 9]] = np.nan
        assert record.given_probabilities.dtype == np.float16
        np.testing.assert_allclose(record.given_probabilities, [expected] * 2, rtol=1e-3)
        np.testing.assert_array_equal(np.isnan(record.margins), np.isnan([expected] * 2))

    @pytest.mark.daily("logits-False", "softmax-False", "own softmax-False")
    @pytest.mark.parametrize("is_pair", [False, True])
    @pytest.mark.parametrize("head", ["logits", "softmax", "own softmax", "one logit", "sigmoid"])
    def test_the_margin_of_the_given_class(self, head, is_pair, tmp_path):
        """Against a loop over epochs, networks and examples, with the weights of each epoch's only batch."""
        is_binary = head in ("one logit", "sigmoid")
        labels = RNG.integers(0, 2 if is_binary else 3, N)
        activation = {"own softmax": own_softmax, "softmax": "softmax", "sigmoid": "sigmoid"}.get(head)
        networks = [network(1 if is_binary else 3, activation) for _ in range(1 + is_pair)]
        model = prl.CoTeachingModel(*networks) if is_pair else prl.RobustModel(*networks)
        kind = keras.losses.BinaryCrossentropy if is_binary else keras.losses.SparseCategoricalCrossentropy
        model.compile(keras.optimizers.SGD(0.5), kind(from_logits=activation is None))
        y = labels[:, None] if is_binary else labels
        record, expected = prl.SelectionRecord((X, y), tmp_path / "record.npz"), []
        for _ in range(3):
            kernels = [each.get_weights() for each in networks]
            expected.append(
                [np.mean([margin(X[i] @ w + b, labels[i]) for w, b in kernels]) for i in range(N)]
            )
            model.fit(X, y, batch_size=N, verbose=0, callbacks=[record])
        assert record.margins.dtype == np.float16 and (np.diff(expected, axis=0) != 0).any()
        np.testing.assert_allclose(record.margins, expected, rtol=2e-3, atol=2e-3)
        np.testing.assert_array_equal(
            prl.SelectionRecord((X, y), record.path).load(2).margins, record.margins[:2]
        )

    def test_a_margin_larger_than_float16_holds_is_the_largest(self):
        labels = RNG.integers(0, 2, N)
        network = keras.Sequential([keras.Input((5,)), keras.layers.Rescaling(1e6), keras.layers.Dense(2)])
        model = prl.RobustModel(network)
        model.compile(keras.optimizers.SGD(0.0), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        record = prl.SelectionRecord((X, labels))
        model.fit(X, labels, verbose=0, callbacks=[record])
        assert np.isfinite(record.margins).all() and np.abs(record.margins).max() == np.finfo(np.float16).max

    def test_of_targets_there_is_no_such_probability(self):
        record = prl.SelectionRecord((X, Y))
        model().fit(X, Y, verbose=0, callbacks=[record])
        assert np.isnan(record.given_probabilities).all() and not np.isnan(record.scores).any()
        assert np.isnan(record.margins).all() and record.margins.shape == (1, N)

    def test_a_method_that_scores_nothing_has_no_scores(self):
        keras.utils.set_random_seed(0)
        plain = prl.RobustModel(network(), score=None)
        plain.compile("sgd", "mse", run_eagerly=True)
        record = prl.SelectionRecord((X, Y))
        plain.fit(X, Y, verbose=0, callbacks=[record])
        assert record.seen.all() and not record.dropped.any() and np.isnan(record.scores).all()

    def test_integers_images_and_datasets(self):
        x = RNG.integers(0, 255, (N, 8, 8, 3), dtype=np.uint8)
        y = RNG.integers(0, 3, N)
        layers = [keras.layers.Rescaling(1 / 255), keras.layers.Flatten(), keras.layers.Dense(3)]
        model = prl.RobustModel(
            keras.Sequential([keras.Input((8, 8, 3)), *layers]),
            score=lambda y_true, y_pred: tf.cast(tf.reshape(y_true, [-1]), tf.float32) + 0 * y_pred[:, 0],
            rule=drop_high,
        )
        model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        data = tf.data.Dataset.from_tensor_slices((x, y))
        record = prl.SelectionRecord(data.batch(7))
        model.fit(data.shuffle(N).batch(8), epochs=2, verbose=0, callbacks=[record])
        np.testing.assert_array_equal(bits(record), [y > 0] * 2)

    def test_padding_is_not_seen_and_what_is_not_finite_is_dropped(self):
        y, weight = Y.copy(), np.ones(N)
        y[3], weight[5] = np.nan, 0
        record = prl.SelectionRecord((X, y))
        model().fit(X, y, sample_weight=weight, batch_size=8, verbose=0, callbacks=[record])
        assert bits(record)[0, 3] and not record.seen[0, 5] and not bits(record)[0, 5]
        assert record.seen.sum() == N - 1
        np.testing.assert_array_equal(np.flatnonzero(np.isnan(record.scores[0])), [3, 5])

    def test_what_is_held_out_is_not_seen(self):
        record = prl.SelectionRecord((X, Y))
        model().fit(X, Y, validation_split=0.2, verbose=0, callbacks=[record])
        np.testing.assert_array_equal(record.seen[0], np.arange(N) < 40)

    def test_copies_share_a_record(self):
        x, y = np.concatenate([X, X[:3]]), np.concatenate([Y, Y[:3]])
        record = prl.SelectionRecord((x, y))
        model().fit(x, y, batch_size=8, verbose=0, callbacks=[record])
        np.testing.assert_array_equal(bits(record)[0, N:], IS_HIGH[:3])

    def test_examples_that_few_numbers_do_not_tell_apart(self):
        """They differ in one of 1,000 numbers, which a sample of 64 does not have."""
        x = np.zeros((N, 1000), np.float32)
        x[np.arange(N), 7] = np.arange(N)
        y = (np.arange(N)[:, None] % 2).astype(np.float32)
        keras.utils.set_random_seed(0)
        model = prl.RobustModel(
            keras.Sequential([keras.Input((1000,)), keras.layers.Dense(1)]), score=target, rule=drop_high
        )
        model.compile("sgd", "mse")
        record = prl.SelectionRecord((x, y))
        model.fit(x, y, batch_size=8, verbose=0, callbacks=[record])
        np.testing.assert_array_equal(bits(record)[0], y[:, 0] > 0.5)
        assert len(np.unique(fingerprints(x, y))) == N

    def test_the_weights_after_training_are_those_without_it(self):
        plain, recorded = model(**GRAPH), model(**GRAPH)
        plain.fit(X, Y, epochs=2, verbose=0, shuffle=False)
        recorded.fit(X, Y, epochs=2, verbose=0, shuffle=False, callbacks=[prl.SelectionRecord((X, Y))])
        np.testing.assert_equal(recorded.get_weights(), plain.get_weights())

    @pytest.mark.long
    def test_several_replicas_record_what_one_device_does(self):
        run(SETUP + REPLICAS, "2")


class TestFaults:
    def test_a_later_fit_without_it_records_nothing_more(self):
        trained, record = model(), prl.SelectionRecord((X, Y))
        trained.fit(X, Y, verbose=0, callbacks=[record])
        trained.fit(X, Y, verbose=0)
        assert len(record.dropped) == 1
        trained.fit(X, Y, verbose=0, callbacks=[record])
        np.testing.assert_array_equal(bits(record), [IS_HIGH] * 2)

    def test_it_is_traced_once_for_all_the_fits(self):
        traces = []

        def rule(scores, is_ranked=None, step=0):
            traces.append(1)
            return tf.ones_like(scores)

        keras.utils.set_random_seed(0)
        trained = prl.RobustModel(network(), score=target, rule=rule)
        trained.compile("sgd", "mse")
        record, counts = prl.SelectionRecord((X, Y)), []
        for _ in range(3):
            trained.fit(X, Y, batch_size=10, verbose=0, callbacks=[record])
            counts.append(len(traces))
        assert counts[0] == counts[1] == counts[2] and len(record.dropped) == 3
        another = prl.SelectionRecord((X, Y))
        trained.fit(X, Y, batch_size=10, verbose=0, callbacks=[another])  # and back
        trained.fit(X, Y, batch_size=10, verbose=0, callbacks=record)
        assert record.seen.all() and another.seen.all() and len(record.seen) == 4

    def test_it_is_of_one_model(self):
        record = prl.SelectionRecord((X, Y))
        model().fit(X, Y, verbose=0, callbacks=[record])
        with pytest.raises(ValueError, match="another model"):
            model().fit(X, Y, verbose=0, callbacks=[record])
        assert record.seen.shape == (1, N)

    def test_examples_that_were_changed_on_the_way_are_warned_of_once(self):
        x = X.copy()
        x[:10] += 1
        record = prl.SelectionRecord((X, Y))
        with pytest.warns(UserWarning, match="20% of the examples") as warned:
            model().fit(x, Y, epochs=3, verbose=0, callbacks=[record])
        assert sum("SelectionRecord" in str(warning.message) for warning in warned) == 1
        np.testing.assert_array_equal(record.seen[0], np.arange(N) >= 10)

    def test_two_of_them_in_one_fit_are_refused(self):
        records = [prl.SelectionRecord((X, Y)) for _ in range(2)]
        with pytest.raises(ValueError, match="Two SelectionRecords"):
            model().fit(X, Y, verbose=0, callbacks=records)

    def test_one_after_the_other_are_not(self):
        one, records = model(), [prl.SelectionRecord((X, Y)) for _ in range(2)]
        for record in records:
            one.fit(X, Y, verbose=0, callbacks=[record])
        assert all(record.seen.all() and len(record.seen) == 1 for record in records)

    def test_a_plain_model_is_refused(self):
        plain = network()
        plain.compile("sgd", "mse")
        with pytest.raises(ValueError, match="RobustModel"):
            plain.fit(X, Y, verbose=0, callbacks=[prl.SelectionRecord((X, Y))])

    def test_nothing_recorded_yet(self):
        with pytest.raises(ValueError, match="give this callback to fit"):
            _ = prl.SelectionRecord((X, Y)).dropped

    def test_an_empty_data_set_and_one_without_targets(self):
        with pytest.raises(ValueError, match="empty"):
            prl.SelectionRecord((X[:0], Y[:0]))
        with pytest.raises(ValueError, match="no targets"):
            prl.SelectionRecord(tf.data.Dataset.from_tensor_slices(X).batch(4))


class TestFile:
    def test_a_training_that_goes_on_goes_on_with_it(self, tmp_path):
        path = tmp_path / "record.npz"
        model().fit(X, Y, epochs=3, verbose=0, callbacks=[prl.SelectionRecord((X, Y), path)])
        record = prl.SelectionRecord((X, Y), path)
        model().fit(X, Y, epochs=4, initial_epoch=2, verbose=0, callbacks=[record])
        np.testing.assert_array_equal(bits(record), [IS_HIGH] * 4)
        assert [file.name for file in tmp_path.iterdir()] == ["record.npz"]

    def test_a_training_from_the_first_epoch_starts_anew(self, tmp_path):
        path = tmp_path / "record.npz"
        for _ in range(2):
            record = prl.SelectionRecord((X, Y), path)
            model().fit(X, Y, epochs=2, verbose=0, callbacks=[record])
        assert len(record.dropped) == 2

    def test_a_file_of_another_kind_is_left_alone(self, tmp_path):
        text, data = tmp_path / "notes.txt", tmp_path / "data.npz"
        text.write_text("mine")
        np.savez(data, x=X)
        for path in (text, data):
            before = path.read_bytes()
            with pytest.raises(ValueError, match="is there and is no record"):
                prl.SelectionRecord((X, Y), path)
            assert path.read_bytes() == before

    def test_epochs_without_a_record_keep_their_place(self, tmp_path):
        record = prl.SelectionRecord((X, Y), tmp_path / "record.npz")
        model().fit(X, Y, epochs=2, verbose=0, callbacks=[record])
        other = prl.SelectionRecord((X, Y), tmp_path / "record.npz")
        model().fit(X, Y, epochs=5, initial_epoch=4, verbose=0, callbacks=[other])
        assert other.seen.all(axis=1).tolist() == [True, True, False, False, True]
        assert not other.seen[2:4].any() and not other.dropped[2:4].any()
        assert np.isnan(other.scores[2:4]).all() and np.isfinite(other.scores[4]).all()

    def test_the_file_of_a_pair_is_not_that_of_one_network(self, tmp_path):
        pair = prl.CoTeachingModel(network(), network(), rule=prl.Trim(0.2))
        pair.compile("sgd", "mse", run_eagerly=True)
        pair.fit(X, Y, verbose=0, callbacks=[prl.SelectionRecord((X, Y), tmp_path / "pair.npz")])
        record = prl.SelectionRecord((X, Y), tmp_path / "pair.npz").load()
        with pytest.raises(ValueError, match="another kind of model"):
            model().fit(X, Y, verbose=0, callbacks=[record])

    @pytest.mark.fault(28)
    @pytest.mark.parametrize("of_pair", [False, True])
    def test_a_pair_and_one_network_do_not_take_the_record_of_the_other(self, of_pair, tmp_path):
        pair = prl.CoTeachingModel(network(), network(), rule=prl.Trim(0.2))
        pair.compile("sgd", "mse", run_eagerly=True)
        trained, other = (pair, model()) if of_pair else (model(), pair)
        record = prl.SelectionRecord((X, Y), tmp_path / "record.npz")
        trained.fit(X, Y, verbose=0, callbacks=[record])
        before = record.path.read_bytes()
        with pytest.raises(
            ValueError, match=r"The record is of a (Co|Rob).* the model is a .*another kind of model"
        ):
            prl.audit(other, (X, Y), record)
        assert len(prl.audit(trained, (X, Y), record)) == N
        for data in ((X, Y), (X[::-1], Y[::-1])):  # from the first epoch, which replaces a file
            with pytest.raises(ValueError, match="other data or another kind"):
                (other if data[0] is X else trained).fit(
                    *data, verbose=0, callbacks=[prl.SelectionRecord(data, record.path)]
                )
        assert record.path.read_bytes() == before

    @pytest.mark.daily("True")
    @pytest.mark.fault(22)
    @pytest.mark.parametrize("has_file", [False, True])
    def test_epochs_that_are_trained_again_are_recorded_again_and_said(self, has_file, tmp_path):
        record = prl.SelectionRecord((X, Y), tmp_path / "record.npz" if has_file else None)
        trained = model()
        trained.fit(X, Y, epochs=5, verbose=0, callbacks=[record])
        with pytest.warns(
            UserWarning, match=r"has 5 epochs, and training goes on after 2: epochs 3 to 5 are"
        ):
            trained.fit(X, Y, epochs=4, initial_epoch=2, verbose=0, callbacks=[record])
        assert record.seen.shape == (4, N) and record.scores.shape == (4, N) and record.seen.all()
        assert record.margins.shape == (4, N)
        if has_file:
            assert len(prl.SelectionRecord((X, Y), record.path).load().seen) == 4

    def test_other_labels_are_other_data_however_many_classes_there_are(self):
        labels = RNG.integers(0, 66, N) * 3 + 1
        one_hot = np.eye(200, dtype="float32")
        record = prl.SelectionRecord((X, one_hot[labels]))
        record.check_same((X, one_hot[labels]))
        with pytest.raises(ValueError, match="other examples"):
            record.check_same((X, one_hot[labels + 1]))

    def test_a_damaged_file_and_one_of_other_data_are_named(self, tmp_path):
        path = tmp_path / "record.npz"
        options = {"epochs": 4, "initial_epoch": 2, "verbose": 0}
        for content in (b"PK\x03\x04", b""):
            path.write_bytes(content)
            with pytest.raises(ValueError, match=r"record\.npz is damaged"):
                model().fit(X, Y, **options, callbacks=[prl.SelectionRecord((X, Y), path)])
        record = prl.SelectionRecord((X, Y))
        parts = {"known": record._known, "slots": record._slots}
        for scores, probabilities in (((2, N), (3, N)), ((3, N), (3, N - 1))):
            parts |= {"scores": np.zeros(scores), "probabilities": np.zeros(probabilities)}
            parts["margins"] = np.zeros((3, N))
            np.savez(path, **parts, epochs=np.zeros((3, 2, 7), np.uint8))
            with pytest.raises(ValueError, match="do not go together"):
                prl.SelectionRecord((X, Y), path).load()
        model().fit(X, Y, verbose=0, callbacks=[prl.SelectionRecord((X, Y), path)])
        with pytest.raises(ValueError, match="other data"):
            model().fit(X, Y, **options, callbacks=[prl.SelectionRecord((X[::-1], Y[::-1]), path)])

    def test_a_path_that_cannot_be_written_is_refused_at_once(self, tmp_path):
        for path in (tmp_path, tmp_path / "none" / "record.npz"):
            with pytest.raises(ValueError, match="must be a file"):
                prl.SelectionRecord((X, Y), path)
        with pytest.raises(ValueError, match="no file"):
            prl.SelectionRecord((X, Y)).load()
        with pytest.raises(FileNotFoundError, match="no record to load"):
            prl.SelectionRecord((X, Y), tmp_path / "record.npz").load()


def test_fingerprints_do_not_depend_on_the_batch_or_the_kind_of_number():
    x = {"a": X.astype(np.float64), "b": np.arange(N), "c": np.array([str(i) for i in range(N)])}
    every = fingerprints(x, Y).numpy()
    one_by_one = [
        fingerprints({k: v[i : i + 1] for k, v in x.items()}, Y[i : i + 1]).numpy()[0] for i in range(N)
    ]
    np.testing.assert_array_equal(every, one_by_one)
    as_trained = {"a": x["a"].astype(np.float32), "b": x["b"].astype(np.int32), "c": x["c"]}
    np.testing.assert_array_equal(every, fingerprints(as_trained, Y).numpy())
    assert len(set(every)) == N
    assert len(fingerprints(X[:0], Y[:0])) == 0


def test_fingerprints_tell_similar_examples_apart():
    """All the vectors of six small integers, their places exchanged, and nearly equal floats."""
    grid = np.stack(np.meshgrid(*[np.arange(7)] * 6), axis=-1).reshape(-1, 6)
    assert len(np.unique(fingerprints(grid, None))) == 7**6
    near = np.nextafter(np.ones((1000, 3), np.float32), 2)
    near[:, 1] += np.arange(1000, dtype=np.float32) * np.float32(2**-23)
    assert len(np.unique(fingerprints(near, None))) == 1000
