"""Which scores are lowest, and which places come next, against a sort of NumPy's."""

import itertools

import numpy as np
import pytest
import tensorflow as tf

from prl_keras.inputs.rows import first_positions, nearest_before
from prl_keras.rules import ranking

WAYS = [ranking.is_among_lowest_by_pairs, ranking.is_among_lowest_by_threshold]
SIZES = [0, 1, 2, 7, 33, 128, 129, 1000]
BRANCHES_AND_SORTS = {"If", "StatelessIf", "While", "StatelessWhile", "Case", "TopK", "TopKV2", "Where"}


def scores_of(rng, n):
    """Many ties, both zeros, numbers of every size."""
    pool = np.array([0.0, -0.0, 1.0, 1e-40, -1.5, 3e38, -3e38, 2.0, np.inf, np.nan], "float32")
    ties = rng.choice(pool, n)
    return np.where(rng.random(n) < 0.5, ties, rng.normal(size=n)).astype("float32")


def expected_lowest(scores, is_ranked, kept):
    """The oracle: a stable sort of the ranked ones, as float64."""
    order = sorted(np.flatnonzero(is_ranked), key=lambda i: (scores[i], i))
    return np.isin(np.arange(len(scores)), order[:kept])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("n", SIZES)
def test_the_lowest_are_those_of_a_stable_sort(way, n):
    rng = np.random.default_rng(n)
    compiled = tf.function(
        way,
        input_signature=[tf.TensorSpec([None]), tf.TensorSpec([None], tf.bool), tf.TensorSpec([], tf.int32)],
    )
    for share in (0.0, 0.3, 1.0):
        is_ranked = rng.random(n) >= share
        scores, _, count = ranking.prepare(scores_of(rng, n), is_ranked)
        for kept in {1, max(1, int(count) // 2), max(1, int(count))}:
            expected = expected_lowest(np.array(scores, float), is_ranked, kept)
            np.testing.assert_array_equal(way(scores, tf.constant(is_ranked), kept), expected)
            np.testing.assert_array_equal(compiled(scores, is_ranked, kept), expected)


@pytest.mark.parametrize("size", [33, None])
def test_xla_ranks_alike(size):
    rng = np.random.default_rng(0)
    signature = [tf.TensorSpec([size]), tf.TensorSpec([size], tf.bool)]
    xla = tf.function(
        lambda s, r: ranking.is_among_lowest(s, r, 10), input_signature=signature, jit_compile=True
    )
    scores, is_ranked, _ = ranking.prepare(scores_of(rng, 33), rng.random(33) < 0.8)
    np.testing.assert_array_equal(
        xla(scores, is_ranked), expected_lowest(np.array(scores, float), np.array(is_ranked), 10)
    )


@pytest.mark.parametrize("size", [None, 1, 128, 129, 50_000])
def test_no_sort_and_no_branch_is_in_the_graph(size):
    def everything(scores, is_ranked):
        kept = ranking.is_among_lowest(scores, is_ranked, 5)
        return kept, nearest_before(is_ranked), first_positions(is_ranked, 3)

    signature = [tf.TensorSpec([size]), tf.TensorSpec([size], tf.bool)]
    graph = tf.function(everything, input_signature=signature).get_concrete_function().graph
    assert not {node.op for node in graph.as_graph_def().node} & BRANCHES_AND_SORTS
    largest = max(
        (t.shape.num_elements() or 0 for op in graph.get_operations() for t in op.outputs), default=0
    )
    assert size is None or largest <= max(128**2, 2 * size)  # no [batch, batch] of a large batch


@pytest.mark.parametrize("n", SIZES)
def test_the_lowest_of_each_class(n):
    rng = np.random.default_rng(n)
    is_ranked, labels = rng.random(n) < 0.7, rng.integers(4, size=n)
    scores, _, _ = ranking.prepare(scores_of(rng, n), is_ranked)
    found = ranking.lowest_of_each_class(scores, tf.constant(is_ranked), tf.constant(labels), 2)
    values = np.array(scores, float)
    expected = [expected_lowest(values, is_ranked & (labels == label), 2) for label in range(4)]
    np.testing.assert_array_equal(found, np.any(expected, axis=0))


@pytest.mark.parametrize("size", ["static", None])
@pytest.mark.parametrize("n", SIZES[1:])
def test_places(n, size):
    """The nearest True place before, around the end; the first True ones, over and over."""
    rng = np.random.default_rng(n)
    signature = [tf.TensorSpec([n if size else None], tf.bool)]
    nearest = tf.function(nearest_before, input_signature=signature)
    first = tf.function(lambda mask: first_positions(mask, 5), input_signature=signature)
    for share in (0.2, 0.8, 1.0):
        mask = rng.random(n) < share
        mask[rng.integers(n)] = True
        true = np.flatnonzero(mask)
        expected = [
            i if mask[i] else next(j % n for j in range(i + n, i, -1) if mask[j % n]) for i in range(n)
        ]
        np.testing.assert_array_equal(nearest(mask), expected)
        np.testing.assert_array_equal(first(mask), np.resize(true, 5))
    assert np.all(np.isin(nearest(np.zeros(n, bool)), np.arange(n)))  # anything, but a place
    assert not np.any(first(np.zeros(n, bool)))


def test_places_in_an_empty_batch():
    assert nearest_before(tf.zeros([0], tf.bool)).shape == (0,)
    np.testing.assert_array_equal(first_positions(tf.zeros([0], tf.bool), 2), [0, 0])


class TestTies:
    """Where scores are equal but for rounding, a second column decides; where they are not, it does not."""

    @pytest.mark.parametrize("select", WAYS)
    def test_equal_scores_go_by_the_losses(self, select):
        rng = np.random.default_rng(0)
        for n in (1, 2, 7, 33):
            scores = rng.choice([0.5, np.nextafter(np.float32(0.5), 1), 0.7], n).astype("float32")
            losses = rng.normal(size=n).astype("float32")
            ranked = rng.random(n) < 0.8
            ranked[0] = True
            for kept in {1, ranked.sum() // 2, ranked.sum()} - {0}:
                order = sorted(np.flatnonzero(ranked), key=lambda i: (scores[i] > 0.6, losses[i], i))
                expected = np.isin(np.arange(n), order[:kept])
                found = select(tf.constant(scores), tf.constant(ranked), int(kept), tf.constant(losses))
                np.testing.assert_array_equal(found, expected)

    @pytest.mark.parametrize("select", WAYS)
    def test_different_scores_do_not(self, select):
        scores, losses = tf.constant([0.3, 0.1, 0.2]), tf.constant([0.0, 9.0, 5.0])
        found = select(scores, tf.constant([True] * 3), 2, losses)
        np.testing.assert_array_equal(found, [False, True, True])

    @pytest.mark.parametrize("select", WAYS)
    def test_equal_losses_go_by_place(self, select):
        found = select(tf.ones(4), tf.constant([False, True, True, True]), 2, tf.zeros(4))
        np.testing.assert_array_equal(found, [False, True, True, False])


class TestLowestOfEachClass:
    @pytest.mark.daily("False")
    @pytest.mark.parametrize("jit_compile", [False, True])
    def test_by_thresholds_is_by_pairs(self, jit_compile):
        rng = np.random.default_rng(1)
        classes, by_thresholds = 5, ranking._lowest_of_each_class_by_thresholds
        select = tf.function(lambda *data: by_thresholds(*data, classes), jit_compile=jit_compile)
        for n, number in itertools.product((1, 7, 64, 300), (1, 3, 100)):
            scores, ranked = scores_of(rng, n), rng.random(n) < 0.8
            scores, ranked, _ = ranking.prepare(scores, ranked)
            labels = rng.integers(0, classes, n).astype("int32")
            found = select(scores, ranked, tf.constant(labels), tf.constant(number))
            expected = ranking._lowest_of_each_class_by_pairs(scores, ranked, labels, number)
            np.testing.assert_array_equal(found, expected, err_msg=f"{n}, {number}")

    def test_labels_of_no_class_are_not_chosen(self):
        scores, _, _ = ranking.prepare(np.zeros(2000, "float32"), None)
        labels = np.where(np.arange(2000) % 2, -1, 1)
        found = ranking.lowest_of_each_class(scores, tf.ones(2000, tf.bool), labels, 3, classes=2)
        np.testing.assert_array_equal(np.flatnonzero(found), [0, 2, 4])
