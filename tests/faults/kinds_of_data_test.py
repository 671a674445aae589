"""Data sets, generators, lists, sparse and ragged tensors; empty, exhausted and incomplete data."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from arrays import assert_all_close
from keras import layers
from small_classifier import DATA, X, Y, compiled, generator, network


def text_network():
    return keras.Sequential([layers.Embedding(9, 3), layers.GlobalAveragePooling1D(), layers.Dense(3)])


@pytest.mark.fault(24)
class TestKindsOfData:
    def test_a_dataset_that_turns_out_empty_is_an_error(self):
        nothing = DATA((X, Y)).filter(lambda x, y: y > 5).batch(4)
        with pytest.raises(ValueError, match="gave no batch"):
            compiled().fit(nothing, verbose=0)

    def test_an_exhausted_one_trains_on_what_there_is(self):
        history = compiled().fit(generator(X, Y), steps_per_epoch=2, epochs=2, verbose=0)
        assert history.epoch == [0, 1]
        history = compiled().fit(generator(X, Y), verbose=0)  # without steps_per_epoch: to its end
        assert history.epoch == [0]

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ((DATA((X, Y, Y, Y)).batch(4),), r"\(x, y, sample_weight\)"),
            ((DATA((X,)).batch(4),), "no targets y"),
            ((generator(X),), "no targets y"),
            ((DATA((X, Y)),), r"single examples.*dataset\.batch"),
            ((X.tolist(), Y), r"x is a list; write np\.asarray"),
            ((list(X), Y), r"x is a list; write np\.asarray"),
            ((None, Y), "x is None"),
            ((X, Y[:5]), "'y' sizes: 5"),
        ],
    )
    def test_what_cannot_be_trained_on_is_refused_by_what_it_is(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            compiled().fit(*arguments, verbose=0)

    def test_evaluate_without_targets_is_refused(self):
        with pytest.raises(ValueError, match="no targets y"):
            compiled().evaluate(X, verbose=0)

    @pytest.mark.daily("True-*")
    @pytest.mark.parametrize("score", ["loss", "loss_layer_gradient"])
    @pytest.mark.parametrize("as_dataset", [False, True])
    def test_sparse_inputs_are_as_dense_ones(self, score, as_dataset):
        models = []
        for is_sparse in (False, True):
            x = tf.sparse.from_dense(X) if is_sparse else X
            models.append(compiled(network(inputs=keras.Input((4,), sparse=is_sparse)), score=score))
            arguments = (DATA((x, Y)).batch(4),) if as_dataset else (x, Y, 4)
            models[-1].fit(*arguments, shuffle=False, verbose=0)
        assert_all_close(*(model.get_weights() for model in models), atol=1e-7)

    @pytest.mark.parametrize("as_dataset", [False, True])
    def test_ragged_inputs_train(self, as_dataset):
        x = tf.ragged.constant([[1, 2], [3]] * 6)
        model = compiled(text_network())
        history = model.fit(*((DATA((x, Y)).batch(4),) if as_dataset else (x, Y, 4)), verbose=0).history
        assert np.isfinite(history["loss"]).all()

    @pytest.mark.parametrize("kind", ["SparseTensor", "RaggedTensor"])
    def test_prl_g_of_them_is_refused_with_the_way_out(self, kind):
        if kind == "SparseTensor":
            x, net = tf.sparse.from_dense(X), network(inputs=keras.Input((4,), sparse=True))
        else:
            x, net = tf.ragged.constant([[1, 2], [3]] * 6), text_network()
        with pytest.raises(ValueError, match=rf"score='gradient' .*{kind}.*dense"):
            compiled(net, score="gradient").fit(DATA((x, Y)).batch(4), verbose=0)
