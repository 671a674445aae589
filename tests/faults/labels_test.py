"""Labels that are no classes, in any kind of data: refused before they reach a step."""

import keras
import numpy as np
import pytest
from arrays import assert_all_close
from small_classifier import BAD, DATA, SOURCES, Batches, X, Y, compiled, network, refused

import prl_keras as prl

SHARES = [  # (a loss whose labels are shares of classes, the number of outputs)
    (keras.losses.BinaryCrossentropy(from_logits=True), 1),
    (keras.losses.CategoricalCrossentropy(from_logits=True), 3),
    (prl.Bootstrap(from_logits=True), 3),
]


class TestLabels:
    @pytest.mark.fault(8)
    @pytest.mark.parametrize("jit_compile", [False, True])
    @pytest.mark.parametrize("source", SOURCES)
    def test_out_of_range_in_any_kind_of_data_never_reach_a_step(self, source, jit_compile):
        model, steps = compiled(jit_compile=jit_compile), []
        count = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: steps.append(batch))
        with pytest.raises(ValueError, match="at most 2 for 3 outputs; there is a 7"):
            model.fit(SOURCES[source](X, BAD), callbacks=[count], shuffle=False, verbose=0)
        assert len(steps) <= 1  # the batch before
        assert all(np.isfinite(w).all() for w in model.get_weights())

    @pytest.mark.daily("generator")
    @pytest.mark.parametrize("source", SOURCES)
    def test_negative_ones_too_but_not_the_ignored(self, source):
        negative = np.where(BAD == 7, -1, BAD)
        with pytest.raises(ValueError, match="there is a -1"):
            compiled().fit(SOURCES[source](X, negative), verbose=0)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-1)
        compiled(loss=loss).fit(SOURCES[source](X, negative), verbose=0)

    @pytest.mark.fault(8)
    @pytest.mark.parametrize("kind", ["float32", str])
    def test_of_a_dataset_must_be_integers(self, kind):
        with pytest.raises(ValueError, match="Class labels must be integers"):
            compiled().fit(DATA((X, Y.astype(kind))).batch(4), verbose=0)

    @pytest.mark.fault(8)
    @pytest.mark.parametrize("jit_compile", [False, True])
    def test_of_a_single_batch(self, jit_compile):
        model = compiled(jit_compile=jit_compile)
        with refused(model, r"y\[5\] is 7"):
            model.train_on_batch(X, BAD)

    @pytest.mark.fault(8)
    @pytest.mark.parametrize("kind", [tuple, list])
    def test_of_validation_data(self, kind):
        model = compiled()
        with refused(model, r"validation_data: .*y\[5\] is 7"):
            model.fit(X, Y, validation_data=kind([X, BAD]), verbose=0)

    @pytest.mark.daily("2-loss0*", "-1-loss2*")
    @pytest.mark.fault(8)
    @pytest.mark.parametrize("loss, outputs", SHARES)
    @pytest.mark.parametrize("value", [2, -1])
    def test_that_are_shares_of_classes_lie_between_0_and_1(self, loss, outputs, value):
        good = np.eye(3, dtype="float32")[Y][:, :outputs]
        bad = np.where(np.arange(12)[:, None] == 5, value, good).astype("float32")
        model = compiled(network(outputs=outputs), loss)
        with refused(model, rf"labels in \[0, 1\]; y\[5, 0\] is {value}"):
            model.fit(X, bad, verbose=0)
        for source in SOURCES.values():
            with pytest.raises(ValueError, match=rf"labels in \[0, 1\]; there is a {value}"):
                model.fit(source(X, bad), verbose=0)
            model.fit(source(X, np.where(bad == value, 0.5, good).astype("float32")), verbose=0)

    @pytest.mark.daily("loss0*")
    @pytest.mark.fault(33)
    @pytest.mark.parametrize("loss, outputs", SHARES)
    def test_shares_outside_by_rounding_train_as_in_keras(self, loss, outputs):
        off = 1.2e-7 if outputs == 1 else 9.8e-4  # the rounding of float32, or of float16
        y = np.eye(3, dtype="float32")[Y][:, :outputs]
        y += np.where(y > 0.5, off, -off).astype("float32")
        weights = []
        for source in (None, None, *SOURCES):
            plain = network(outputs=outputs)
            model = prl.RobustModel(plain, rule=prl.Trim(0.0)) if weights else plain
            model.compile(keras.optimizers.SGD(0.1), loss, run_eagerly=True)
            model.fit(*((X, y, 4) if source is None else (SOURCES[source](X, y),)), shuffle=False, verbose=0)
            weights.append(plain.get_weights())
        for other in weights[1:]:
            assert_all_close(weights[0], other, rtol=1e-6, atol=0)
        assert np.isfinite(prl.score_examples(model, (X, y))).all()
        with pytest.raises(ValueError, match=r"labels in \[0, 1\]; y\[\d+, 0\] is"):
            model.fit(X, y + np.where(y > 0.5, 0.004, -0.004), verbose=0)  # a 255th

    @pytest.mark.long
    @pytest.mark.fault(8)
    def test_of_bootstrap_are_numbers_of_classes_too(self):
        model = compiled(loss=prl.Bootstrap(from_logits=True), rule=prl.Trim(0.3, min_keep_per_class=1))
        with pytest.raises(ValueError, match=r"at most 2 for 3 outputs; y\[5\] is 7"):
            model.fit(X, BAD, verbose=0)
        assert "kept_fraction_min_class" in model.fit(X, Y, verbose=0).history

    def test_as_a_list_of_numbers_are_refused(self):
        for y in (list(Y), Y.tolist()):
            with pytest.raises(ValueError, match=r"y is a list; write np.asarray\(y\)"):
                compiled().fit(X, y, verbose=0)

    @pytest.mark.fault(9)
    @pytest.mark.parametrize("source", ["py_dataset", "generator"])
    def test_of_another_number_than_the_inputs_are_refused(self, source):
        def cut(batches, parts):
            return ((x, y[:parts]) for x, y in batches)

        batches = [Batches(X, X[:, :3])[i] for i in range(3)]
        model = compiled(loss="mse")
        data = cut(batches, 1) if source == "generator" else Batches(X, X[:, :3][:5])
        with pytest.raises(ValueError, match="the same number of rows: x has 4, y has 1 rows"):
            model.fit(data, shuffle=False, verbose=0)
