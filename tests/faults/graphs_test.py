"""Inputs whose rows are parts of examples, such as the atoms of molecules."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from arrays import assert_all_close
from keras import layers

import prl_keras as prl

RNG = np.random.default_rng(0)
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
SPEC = ((tf.TensorSpec((None, 6)), tf.TensorSpec((None,), tf.int64)), tf.TensorSpec((None,), tf.int64))


def molecules(n, bad=()):
    """-> ((atoms `[m, 6]`, the molecule of each `[m]`), labels `[n]`)."""
    sizes = RNG.integers(1, 5, n)
    atoms, owner = RNG.normal(size=(sizes.sum(), 6)).astype("float32"), np.repeat(np.arange(n), sizes)
    atoms[np.isin(owner, bad)] = np.nan
    return (atoms, owner), RNG.integers(0, 2, n)


BATCHES = [molecules(n) for n in (8, 8, 5)]


class Molecules(keras.Model):
    def __init__(self):
        keras.utils.set_random_seed(0)
        super().__init__()
        self.atom, self.out = layers.Dense(8, "tanh"), layers.Dense(2)

    def call(self, inputs):
        features, molecule = inputs
        sums = tf.math.unsorted_segment_sum(self.atom(features), molecule, 1 + tf.reduce_max(molecule))
        return self.out(sums)


class PyBatches(keras.utils.PyDataset):
    num_batches = len(BATCHES)

    def __getitem__(self, i):
        return BATCHES[i]


def data_of(x, y):
    return tf.data.Dataset.from_generator(lambda: iter([(x, y)]), output_signature=SPEC)


SOURCES = {
    "dataset": lambda: tf.data.Dataset.from_generator(lambda: iter(BATCHES), output_signature=SPEC),
    "py_dataset": PyBatches,
    "generator": lambda: (batch for batch in BATCHES),
}


def compiled(model=None, **options):
    model = prl.RobustModel(Molecules(), **options) if model is None else model
    model.compile(keras.optimizers.SGD(0.1), LOSS, run_eagerly=True)
    return model


def one_by_one(model):
    """The scores of each molecule in a batch of its own."""
    for (atoms, owner), y in BATCHES:
        for i in range(len(y)):
            part = atoms[owner == i]
            yield model.example_scores((part, np.zeros(len(part), "int64")), y[i : i + 1])[0].numpy()[0]


@pytest.mark.fault(38)
class TestGraphs:
    @pytest.mark.parametrize("source", SOURCES)
    def test_epsilon_0_is_plain_fit(self, source):
        plain, model = compiled(Molecules()), compiled(rule=prl.Trim(0.0))
        for each in (plain, model):
            each.fit(SOURCES[source](), epochs=1, shuffle=False, verbose=0)
        assert_all_close(plain.get_weights(), model.network.get_weights(), atol=1e-7)

    @pytest.mark.daily("False")
    @pytest.mark.parametrize("jit_compile", [False, True])
    def test_a_compiled_step_is_the_eager_one(self, jit_compile):
        weights = []
        for options in ({"run_eagerly": True}, {"jit_compile": jit_compile}):
            model = prl.RobustModel(Molecules(), rule=prl.Trim(0.3))
            model.compile(keras.optimizers.SGD(0.1), LOSS, **options)
            model.fit(SOURCES["dataset"]().take(1), verbose=0)
            weights.append(model.get_weights())
        assert_all_close(*weights, rtol=1e-4)

    @pytest.mark.daily("loss")
    @pytest.mark.parametrize("score", ["loss", "loss_layer_gradient"])
    def test_scores_are_those_of_each_alone(self, score):
        model = compiled(score=score)
        model.fit(SOURCES["dataset"](), verbose=0)
        for source in ("dataset", "py_dataset"):
            found = prl.score_examples(model, SOURCES[source]())
            np.testing.assert_allclose(found, list(one_by_one(model)), rtol=1e-4)
        labels = np.concatenate([y for _, y in BATCHES])
        np.testing.assert_array_equal(prl.audit(model, SOURCES["dataset"]())["given"], labels)
        assert prl.check(model, BATCHES[0]).is_ok

    @pytest.mark.parametrize("options", [{"run_eagerly": True}, {"jit_compile": False}])
    def test_one_that_is_not_finite_shows_by_its_loss_and_its_step_is_skipped(self, options):
        x, y = molecules(8, bad=[3])
        model = prl.RobustModel(Molecules(), rule=prl.Trim(0.0))
        model.compile(keras.optimizers.SGD(0.1), LOSS, **options)
        for data in (BATCHES[0], (x, y), BATCHES[1]):  # traced for any number of rows
            before = [np.array(value) for value in model.get_weights()]
            logs = model.train_on_batch(*data, return_dict=True)
            is_same = bool(before) and all(map(np.array_equal, before, model.get_weights()))
            assert is_same == (data[1] is y) == (logs["nonfinite"] > 0)
        assert np.flatnonzero(~np.isfinite(model.example_scores(x, y)[0])).tolist() == [3]
        assert np.flatnonzero(np.isnan(prl.audit(model, data_of(x, y))["loss"])).tolist() == [3]

    @pytest.mark.parametrize("source", SOURCES)
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (
                {"recompute": True},
                "recompute=True trains on the kept examples alone, so each row of x must be",
            ),
            (
                {"score": "gradient"},
                "score='gradient' takes each example by itself, so each row of x must be",
            ),
        ],
    )
    def test_what_needs_a_row_of_each_is_refused(self, source, options, message):
        model = compiled(**options)
        with pytest.raises(ValueError, match=message):
            model.fit(SOURCES[source](), verbose=0)

    def test_a_record_is_refused(self):
        with pytest.raises(
            ValueError, match=r"SelectionRecord knows an example by its rows.*x has \d+ and \d+, y"
        ):
            prl.SelectionRecord(SOURCES["dataset"]())
        with pytest.raises(ValueError, match=r"score='gradient' takes each example by itself"):
            prl.score_examples(compiled(score="gradient"), SOURCES["dataset"]())

    def test_nothing_else_changes_for_several_inputs_of_one_length(self):
        """A bad row of one of several inputs makes its example bad, in a graph as eagerly."""
        a, b = keras.Input((2,)), keras.Input((3,))
        x = [RNG.normal(size=(8, 2)).astype("float32"), RNG.normal(size=(8, 3)).astype("float32")]
        y = RNG.integers(0, 2, 8)
        x[1][5, 0] = np.inf
        weights = []
        good = np.arange(8) != 5
        for rows, options in (
            (good, {"run_eagerly": True}),
            (slice(None), {"run_eagerly": True}),
            (slice(None), {}),
        ):
            keras.utils.set_random_seed(0)
            net = keras.Model([a, b], layers.Dense(2)(layers.Concatenate()([a, b])))
            model = prl.RobustModel(net, rule=prl.Trim(0.0))
            model.compile(keras.optimizers.SGD(0.1), LOSS, **options)
            dataset = tf.data.Dataset.from_tensor_slices(((x[0][rows], x[1][rows]), y[rows])).batch(8)
            logs = model.fit(dataset, verbose=0).history
            weights.append(model.get_weights())
        assert logs["nonfinite"] == [1]
        for other in weights[1:]:
            assert_all_close(other, weights[0])
