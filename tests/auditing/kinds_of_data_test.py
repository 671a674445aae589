"""Sparse, ragged and SciPy's inputs are looked at as dense ones; what cannot be looked at is said."""

import keras
import numpy as np
import pytest
import scipy.sparse
import tensorflow as tf
from keras import layers
from small_classifier import DATA, LOSS, Batches, X, Y, compiled, network

import prl_keras as prl
from prl_keras.inputs.fingerprints import fingerprints, strides_for

SPARSE = np.where(X > 0, X, 0)
IDS = [[1, 2], [3], [4, 5, 6], [2]] * 3
PADDED = np.array([[*ids, 0, 0][:3] for ids in IDS])


def sparse_network():
    return network(inputs=keras.Input((4,), sparse=True))


def text_network():
    keras.utils.set_random_seed(0)
    bag = layers.Lambda(lambda t: tf.reduce_sum(t, axis=1))  # id 0 is a vector of zeros
    net = keras.Sequential([layers.Embedding(9, 3), bag, layers.Dense(3)])
    net.build((None, 3))
    table = net.layers[0].embeddings
    table.assign(tf.concat([tf.zeros([1, 3]), table.value[1:]], axis=0))
    return net


KINDS = {
    "scipy": (sparse_network, lambda: (scipy.sparse.csr_matrix(SPARSE), Y), SPARSE),
    "scipy_coo": (network, lambda: (scipy.sparse.coo_array(SPARSE), Y), SPARSE),
    "sparse": (sparse_network, lambda: (tf.sparse.from_dense(SPARSE), Y), SPARSE),
    "sparse_dataset": (network, lambda: DATA((tf.sparse.from_dense(SPARSE), Y)).batch(5), SPARSE),
    "ragged": (text_network, lambda: (tf.ragged.constant(IDS), Y), PADDED),
    "ragged_dataset": (text_network, lambda: DATA((tf.ragged.constant(IDS), Y)).batch(5), PADDED),
}


@pytest.fixture(params=KINDS)
def kind(request):
    make, data, dense = KINDS[request.param]
    return compiled(make(), rule=prl.Trim(0.25)), data, dense


@pytest.mark.fault(34)
class TestSparseAndRagged:
    @pytest.mark.daily("sparse")
    def test_scores_and_tables_are_those_of_dense_ones(self, kind):
        model, data, dense = kind
        for look in (prl.score_examples, prl.audit, prl.estimate_epsilon):
            found, expected = (look(model, each, batch_size=5) for each in (data(), (dense, Y)))
            np.testing.assert_allclose(
                *(np.asarray(t, float) for t in (found, expected)), rtol=1e-5, atol=1e-6
            )

    def test_batches_of_scipy_are_too(self):
        class ScipyBatches(Batches):
            def __len__(self):
                return 3

        batches = ScipyBatches(scipy.sparse.csr_matrix(SPARSE), Y)
        found, expected = (prl.score_examples(compiled(), data) for data in (batches, (SPARSE, Y)))
        np.testing.assert_allclose(found, expected, rtol=1e-5)

    @pytest.mark.daily("ragged")
    def test_a_record_is_that_of_dense_ones(self, kind):
        model, data, dense = kind
        records = []
        weights = model.get_weights()
        for given in (data(), (dense, Y)):
            model.set_weights(weights)
            model.compile(keras.optimizers.SGD(0.0), LOSS, run_eagerly=True)
            record = prl.SelectionRecord(given, batch_size=5)
            arguments = given if isinstance(given, tuple) else (given,)
            model.fit(
                *arguments,
                batch_size=None if len(arguments) == 1 else 4,
                verbose=0,
                shuffle=False,
                callbacks=[record],
            )
            assert record.seen.all()
            records.append(record)
            record.check_same(given)
            np.testing.assert_allclose(
                prl.audit(model, given, record)["score"], 1 - record.given_probabilities[0], rtol=1e-3
            )
        np.testing.assert_allclose(*(record.scores for record in records), rtol=1e-5)

    def test_check_looks_at_them(self, kind):
        model, data, _ = kind
        report = prl.check(model, data())
        assert report.is_ok, report

    def test_one_that_is_not_finite_is_the_most_suspect_and_has_no_effect(self):
        bad = SPARSE.copy()
        bad[5, 1] = np.nan
        for x in (bad, tf.sparse.from_dense(bad), scipy.sparse.csr_matrix(bad)):
            model = compiled(sparse_network())
            assert np.flatnonzero(np.isinf(prl.score_examples(model, (x, Y)))).tolist() == [5]
            before = model.get_weights()
            logs = model.fit(x, Y, batch_size=12, verbose=0).history
            assert logs["nonfinite"] == [1] and np.isfinite(list(logs.values())).all()
            assert all(
                np.isfinite(a).all() and not np.array_equal(a, b) for a, b in zip(model.get_weights(), before)
            )

    @pytest.mark.parametrize("look", [prl.score_examples, prl.check])
    def test_prl_g_of_them_is_refused_with_the_way_out(self, look):
        model = compiled(sparse_network(), score="gradient")
        words = "score='gradient' takes each example by itself, which a SparseTensor does not give"
        with pytest.raises(ValueError, match=words):
            raise ValueError(str(look(model, (tf.sparse.from_dense(SPARSE), Y))))  # of `check`


def test_fingerprints_of_sparse_ones_are_those_of_dense_ones():
    wide = np.where(np.arange(1000) % 7 == np.arange(12)[:, None] % 7, np.arange(1000.0), 0).astype("float32")
    images = wide.reshape(12, 10, 10, 10)
    for dense in (wide, images):
        steps = strides_for(dense, 64)
        assert steps == [15]
        sparse = tf.sparse.from_dense(dense)
        for strides in (steps, ()):
            np.testing.assert_array_equal(fingerprints(sparse, Y, strides), fingerprints(dense, Y, strides))
            part = fingerprints(
                tf.sparse.slice(sparse, [3, *[0] * (dense.ndim - 1)], [4, *dense.shape[1:]]), None, strides
            )
            np.testing.assert_array_equal(part, fingerprints(dense[3:7], None, strides))


def test_fingerprints_of_ragged_ones_tell_all_apart_in_any_batch():
    rows = [[], [[]], [[0]], [[0, 0]], [[0], [0]], [[], [0, 0]], [[1, 2]], [[1], [2]], [[2], [1]]]
    ragged = tf.ragged.constant(rows, dtype="int32", ragged_rank=2)
    every = fingerprints(ragged, None).numpy()
    assert len(set(every)) == len(rows)
    one_by_one = [fingerprints(ragged[i : i + 1], None).numpy()[0] for i in range(len(rows))]
    np.testing.assert_array_equal(every, one_by_one)
    points = tf.ragged.constant([[[1.0, 2.0]], [[1.0, 2.0], [3.0, 4.0]]], inner_shape=(2,))
    assert len(set(fingerprints(points, None).numpy())) == 2


def test_batches_padded_to_different_lengths_are_known_by_their_content():
    """The numbers that are hashed do not depend on the padding, also where only few of them are."""
    lengths = [130, 300, 70, 257]
    rows = [np.arange(1, n + 1, dtype="float32") * (i + 1) for i, n in enumerate(lengths)]
    padded = np.zeros((4, 300), "float32")
    for row, target in zip(rows, padded):
        target[: len(row)] = row
    strides = strides_for(padded, 64)
    every = fingerprints(padded, None, strides).numpy()
    cut = [fingerprints(row[None], None, strides).numpy()[0] for row in rows]
    np.testing.assert_array_equal(every, cut)


def nested_network(structure):
    keras.utils.set_random_seed(0)
    inputs = keras.tree.map_structure(lambda _: keras.Input((4,)), structure)
    outputs = layers.Dense(3)(layers.Concatenate()(keras.tree.flatten(inputs)))
    return keras.Model(inputs, outputs)


@pytest.mark.fault(49)
@pytest.mark.parametrize(
    "x",
    [
        [X, {"b": 2 * X}],
        [(X, {"b": 2 * X}), [X + 1]],
        {"a": X, "c": [2 * X]},
    ],
)
def test_inputs_of_any_structure_are_those_of_keras(x):
    plain, model = nested_network(x), compiled(nested_network(x), rule=prl.Trim(0.0))
    for each in (plain, model):
        each.compile(keras.optimizers.SGD(0.1), LOSS, run_eagerly=True)
        each.fit(x, Y, batch_size=4, shuffle=False, verbose=0)
    for a, b in zip(plain.get_weights(), model.get_weights()):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    expected = keras.ops.softmax(plain(x)).numpy()
    record = prl.SelectionRecord((x, Y))
    model.fit(x, Y, verbose=0, callbacks=[record])
    assert record.seen.all()
    model.set_weights(plain.get_weights())
    table = prl.audit(model, (x, Y), batch_size=5)
    np.testing.assert_allclose(table.filter(like="probability_"), expected, rtol=1e-4)
    assert prl.check(model, (x, Y)).is_ok
