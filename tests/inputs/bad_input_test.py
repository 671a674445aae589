"""Bad input is refused with what was given, what is needed and what to write, and nothing is trained."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from arrays import assert_all_close
from small_classifier import DATA, LOSS, X, Y, compiled, network, refused

import prl_keras as prl


def with_label(value, index=5, dtype="int64"):
    labels = Y.astype(dtype)
    labels[index] = value
    return labels


@pytest.mark.fault(8, 24)
@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (X, with_label(3), r"at least 0, and at most 2 for 3 outputs; y\[5\] is 3"),
        (X, with_label(-1), r"at least 0.*y\[5\] is -1"),
        (X, with_label(-1)[:, None], r"y\[5\] is -1"),
        (X, with_label(1.5, dtype="float32"), r"dtype float32.*astype\('int64'\)"),
        (X, with_label(np.nan, dtype="float32"), r"y\[5\] is NaN. Leave out"),
        (X, np.array(list("abcabcabcabc")), r"must be integers.*np.unique"),
        (X, None, r"no targets y; give \(x, y\)"),
        (X[:0], Y[:0], r"empty \(0 examples\)"),
        (DATA((X, Y)).take(0).batch(4), None, r"empty"),
        (DATA(X).batch(4), None, r"no targets"),
        (X, keras.ops.one_hot(Y, 3), r"must be integers"),
    ],
)
def test_bad_data_is_refused_before_any_weight_changes(x, y, message):
    model = compiled()
    with refused(model, message):
        model.fit(x, y, verbose=0)


@pytest.mark.fault(8)
@pytest.mark.parametrize(
    "data", [lambda *data: data, lambda *data: (DATA(data).batch(4),)], ids=["arrays", "dataset"]
)
def test_a_network_that_is_not_built_yet_gets_the_same_message(data):
    model = prl.RobustModel(keras.Sequential([keras.layers.Dense(8), keras.layers.Dense(3)]))
    model.compile("sgd", LOSS)
    with pytest.raises(ValueError, match=r"at least 0, and at most 2 for 3 outputs; .* 3\."):
        model.fit(*data(X, Y + 1), verbose=0)


@pytest.mark.parametrize(
    ("loss", "outputs", "y", "message"),
    [
        (keras.losses.CategoricalCrossentropy(from_logits=True), 3, Y[:, None], "to_categorical"),
        (keras.losses.BinaryCrossentropy(from_logits=True), 1, Y[:, None], "Write 0 and 1"),
        (keras.losses.BinaryCrossentropy(from_logits=True), 3, np.eye(3)[Y] * 2, "Write 0 and 1"),
    ],
)
def test_labels_outside_0_and_1_get_the_advice_for_their_loss(loss, outputs, y, message):
    with pytest.raises(ValueError, match=rf"labels in \[0, 1\]; y.*{message}"):
        compiled(network(outputs=outputs), loss).fit(X, y, verbose=0)


@pytest.mark.fault(8)
def test_a_label_that_the_loss_ignores_is_accepted():
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-1)
    compiled(loss=loss).fit(X, with_label(-1), verbose=0)
    with pytest.raises(ValueError, match=r"y\[5\] is -2"):
        compiled(loss=loss).fit(X, with_label(-2), verbose=0)


@pytest.mark.daily("loss_layer_gradient")
@pytest.mark.fault(9)
@pytest.mark.parametrize("score", ["loss", "loss_layer_gradient", "gradient"])
def test_targets_that_would_broadcast_are_refused(score):
    class Squared(keras.losses.Loss):  # of which Keras aligns nothing
        def call(self, y_true, y_pred):
            return keras.ops.mean((y_true - y_pred) ** 2, axis=-1)

    model = compiled(network(outputs=1), Squared(), score=score)
    dataset = tf.data.Dataset.from_tensors((X, np.ones(12, "float32")))
    for data in ((X, np.ones(12)), (dataset,)):
        with pytest.raises(ValueError, match=r"Targets of shape .* 1\): .*y\[\.\.\., None\].*dataset\.map"):
            model.fit(*data, verbose=0)
    model.fit(X, np.ones((12, 1)), verbose=0)


@pytest.mark.fault(10)
@pytest.mark.parametrize("score", ["loss", "loss_layer_gradient", "gradient"])
def test_a_loss_that_returns_a_scalar_is_refused_by_name(score):
    def total_error(y_true, y_pred):
        return tf.reduce_sum((y_true - y_pred) ** 2)

    model = compiled(loss=total_error, score=score)
    with pytest.raises(ValueError, match="total_error must give one value per example"):
        model.fit(X, np.ones((12, 3)), verbose=0)


@pytest.mark.fault(10)
def test_compile_without_a_loss_is_refused():
    for loss in (None, {"a": "mse"}):
        model = compiled(loss=loss)
        with pytest.raises(ValueError, match=r"compiled without one|loss is a dict of 'a'; the outputs are"):
            model.fit(X, Y, verbose=0)
        with pytest.raises(ValueError, match=r"compiled without one|loss is a dict of 'a'; the outputs are"):
            model.train_on_batch(X, Y)
    with pytest.raises(ValueError, match="compiled without one"):
        prl.RobustModel(network()).fit(X, Y, verbose=0)
    with pytest.raises(ValueError, match="no_such_loss"):
        compiled(loss="no_such_loss").fit(X, Y, verbose=0)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"score": "losses"}, r"score='losses' is not known.*'loss_layer_gradient'"),
        ({"score": 3}, r"score=3 is not known"),
        ({"rule": 0.3}, r"rule=0.3 must be a rule such as prl_keras.Trim\(0.3\)"),
        ({"rule": None}, r"rule=None"),
        ({"microbatch_size": 0}, r"microbatch_size=0"),
        ({"microbatch_size": "a"}, r"microbatch_size='a' must be a whole number"),
        ({"microbatch_size": True}, r"microbatch_size=True"),
        ({"recompute": "False"}, r"recompute='False' must be True or False"),
        ({"microbatch_size": 2.5}, r"microbatch_size=2.5"),
    ],
)
def test_bad_constructor_arguments_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        prl.RobustModel(network(), **kwargs)


def test_what_is_no_keras_model_is_refused():
    with pytest.raises(ValueError, match=r"is not a keras\.Model"):
        prl.RobustModel(keras.layers.Dense(3))


class TestLabelsPerStep:
    """Outputs [n, steps, classes]: an example is a sequence, and the rule weighs sequences."""

    @pytest.mark.daily("True-*", "False-loss_layer_gradient")
    @pytest.mark.parametrize("score", ["loss", "loss_layer_gradient", "gradient"])
    @pytest.mark.parametrize("is_weighted", [False, True])
    def test_equal_plain_keras_on_the_kept_sequences(self, score, is_weighted):
        rng = np.random.default_rng(0)
        x = rng.normal(size=(4, 4, 5)).astype(np.float32)  # as many steps as examples
        y = rng.integers(0, 3, (4, 4))
        sample_weight = rng.uniform(0.5, 2, 4).astype(np.float32) if is_weighted else None

        net, plain = (network(inputs=keras.Input((4, 5))) for _ in range(2))
        model = prl.RobustModel(net, score=score, rule=prl.Trim(0.5))
        model.compile(keras.optimizers.SGD(0.5), LOSS)
        kept = np.argsort(model.example_scores(tf.constant(x), tf.constant(y))[0])[:2]
        logs = model.train_on_batch(x, y, sample_weight=sample_weight, return_dict=True)

        plain.compile(keras.optimizers.SGD(0.5), LOSS)
        weights = None if sample_weight is None else np.repeat(sample_weight[kept][:, None], 4, axis=1)
        expected = plain.train_on_batch(x[kept], y[kept], sample_weight=weights, return_dict=True)
        assert logs["loss"] == pytest.approx(expected["loss"], rel=1e-5)
        assert_all_close(plain.get_weights(), model.get_weights(), rtol=1e-4)


def test_the_threshold_of_negative_scores_is_negative():
    model = compiled(loss="cosine_similarity", score="loss")
    logs = model.train_on_batch(X, np.eye(3)[Y], return_dict=True)
    assert -1 <= logs["score_threshold"] < 0.9


def test_early_stopping_and_validation_split_work():
    stop = keras.callbacks.EarlyStopping("val_loss", min_delta=1e9, patience=1)
    history = compiled().fit(X, Y, epochs=9, validation_split=0.5, callbacks=[stop], verbose=0).history
    assert len(history["val_loss"]) == 2
