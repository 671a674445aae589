"""unit="element" as a user meets it: what it refuses, what is saved, what is logged, what callbacks see."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from arrays import assert_all_close

import prl_keras as prl

RNG = np.random.default_rng(0)
N, STEPS, CLASSES = 24, 5, 3
X = RNG.normal(size=(N, STEPS, 4)).astype("float32")
Y = RNG.integers(0, CLASSES, (N, STEPS))
LENGTHS = RNG.integers(1, STEPS + 1, N)
WEIGHTS = (np.arange(STEPS) < LENGTHS[:, None]).astype("float32")
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def network(seed=0):
    keras.utils.set_random_seed(seed)
    return keras.Sequential([keras.Input((STEPS, 4)), keras.layers.Dense(CLASSES)])


def compiled(model, loss=LOSS, **kwargs):
    model.compile(keras.optimizers.SGD(0.1), loss, **kwargs)
    return model


@pytest.mark.fault(26)
def test_what_elements_do_not_go_with_is_refused():
    with pytest.raises(ValueError, match="unit='pixel' is not known; write 'example' or 'element'"):
        prl.RobustModel(network(), unit="pixel")
    inputs = keras.Input((STEPS, 4))
    two = keras.Model(inputs, [keras.layers.Dense(CLASSES)(inputs), keras.layers.Dense(CLASSES)(inputs)])
    with pytest.raises(ValueError, match="ranks the labels of one output"):
        compiled(prl.RobustModel(two, unit="element"), [LOSS, LOSS]).fit(X, [Y, Y], verbose=0)
    with pytest.raises(ValueError, match="sample_weight of shape"):
        compiled(prl.RobustModel(network(), unit="element")).fit(
            X, Y, sample_weight=WEIGHTS[:, :3], verbose=0
        )


def test_the_fraction_is_one_of_the_elements_that_count():
    model = compiled(prl.RobustModel(network(), rule=prl.Trim(0.3), unit="element"))
    logs = model.fit(X, Y, sample_weight=WEIGHTS, batch_size=N, verbose=0).history
    counted = int(WEIGHTS.sum())
    kept = int(0.7 * counted + 1e-6)
    assert logs["kept_fraction"] == [pytest.approx(kept / counted)]
    (weights,) = model.example_weights(X, Y, WEIGHTS)
    assert weights.shape == (N, STEPS)
    assert np.sum(weights.numpy() > 0) == kept and not np.any(weights.numpy()[WEIGHTS == 0])
    of_elements = prl.score_examples(model, (X, Y, WEIGHTS), unit="element")
    np.testing.assert_array_equal(np.isnan(of_elements), WEIGHTS == 0)
    of_examples = prl.score_examples(model, (X, Y, WEIGHTS))
    np.testing.assert_allclose(of_examples, np.nanmean(of_elements, axis=1), rtol=1e-5)


def test_elements_of_batches_of_other_shapes_and_of_models_of_examples_are_refused():
    batches = [(X[:4], Y[:4]), (X[4:8, :3], Y[4:8, :3])]
    made = keras.Sequential([keras.Input((None, 4)), keras.layers.Dense(CLASSES)])
    model = compiled(prl.RobustModel(made, unit="element"))

    class Batches(keras.utils.PyDataset):
        def __len__(self):
            return 2

        def __getitem__(self, i):
            return batches[i]

    assert prl.score_examples(model, Batches()).shape == (8,)
    with pytest.raises(ValueError, match="pad them to one"):
        prl.score_examples(model, Batches(), unit="element")
    with pytest.raises(ValueError, match="needs a model that ranks elements"):
        prl.score_examples(compiled(prl.RobustModel(network())), (X, Y), unit="element")


def test_is_saved_and_goes_on(tmp_path):
    model = compiled(prl.CoTeachingModel(network(0), network(1), unit="element"))
    model.fit(X, Y, verbose=0, shuffle=False)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.unit == "element"
    for each in (model, loaded):
        each.fit(X, Y, verbose=0, shuffle=False)
    assert_all_close(model.get_weights(), loaded.get_weights(), atol=1e-7)


def test_a_record_has_the_means_over_an_examples_elements():
    model = compiled(prl.RobustModel(network(), rule=prl.Trim(0.3), unit="element"))
    record = prl.SelectionRecord((X, Y))
    before = prl.RobustModel(keras.models.clone_model(model.network), unit="element")
    before.network.set_weights(model.network.get_weights())
    scores = prl.score_examples(compiled(before), (X, Y, WEIGHTS))
    model.fit(X, Y, sample_weight=WEIGHTS, batch_size=N, verbose=0, callbacks=[record])
    np.testing.assert_allclose(record.scores[0], scores, rtol=1e-4)
    (kept,) = before.example_weights(X, Y, WEIGHTS)
    np.testing.assert_array_equal(record.dropped[0, 0], np.sum(kept.numpy(), axis=1) == 0)
    assert record.seen.all() and np.all((record.given_probabilities > 0) & (record.given_probabilities < 1))
    logits, is_given = before.network(X).numpy(), np.eye(CLASSES, dtype=bool)[Y]
    margins = logits[is_given].reshape(N, STEPS) - np.where(is_given, -np.inf, logits).max(axis=-1)
    means = [margins[i][WEIGHTS[i] > 0].mean() for i in range(N)]
    np.testing.assert_allclose(record.margins[0], means, rtol=2e-3, atol=2e-3)


def test_quality_is_of_the_elements_that_count():
    mask = np.arange(STEPS) < LENGTHS[:, None]
    x, is_wrong = np.where(mask[..., None], X, 0), RNG.random((N, STEPS)) < 0.3
    masked = keras.Sequential([keras.Input((STEPS, 4)), keras.layers.Masking(), keras.layers.Dense(CLASSES)])
    model = compiled(prl.RobustModel(masked, rule=prl.Trim(0.3), unit="element"))
    quality = prl.SelectionQuality(x, Y, is_wrong, batch_size=N)
    logs = model.fit(x, Y, batch_size=N, verbose=0, callbacks=[quality]).history
    (weights,) = model.example_weights(x, Y)
    dropped = (weights.numpy() == 0) & mask
    np.testing.assert_allclose(logs["drop_precision"], is_wrong[dropped].mean())
    np.testing.assert_allclose(logs["drop_recall"], dropped[is_wrong & mask].mean())
    with pytest.raises(ValueError, match="one value for each of what"):
        model.fit(x, Y, verbose=0, callbacks=[prl.SelectionQuality(x, Y, is_wrong[:, 0], batch_size=N)])


def test_inputs_that_are_not_finite_take_the_whole_example():
    x = X.copy()
    x[3, 2] = np.nan
    model = compiled(prl.RobustModel(network(), rule=prl.Trim(0.0), unit="element"))
    (weights,) = model.example_weights(x, Y, WEIGHTS)
    assert not np.any(weights.numpy()[3]) and np.all(
        weights.numpy()[np.arange(N) != 3][WEIGHTS[np.arange(N) != 3] > 0]
    )
    logs = model.fit(x, Y, sample_weight=WEIGHTS, batch_size=N, verbose=0).history
    assert logs["nonfinite"] == [WEIGHTS[3].sum()]
    assert all(np.isfinite(w).all() for w in model.get_weights())


@pytest.mark.parametrize("loss", ["binary_crossentropy", "mse"])
def test_a_target_that_is_missing_takes_itself_alone(loss):
    """Where it is missing, the step is that of weight 0 there, but that the others make up for it."""
    x = RNG.normal(size=(N, 7)).astype("float32")
    y = (x[:, :4] > 0).astype("float32")
    is_missing = RNG.random(y.shape) < 0.2
    is_missing[:, 1] = True

    def made():
        keras.utils.set_random_seed(0)
        layers = [keras.Input((7,)), keras.layers.Dense(4, "sigmoid")]
        return compiled(prl.RobustModel(keras.Sequential(layers), rule=prl.Trim(0.0), unit="element"), loss)

    model, other = made(), made()
    logs = model.fit(x, np.where(is_missing, np.nan, y), batch_size=N, verbose=0).history
    given = (~is_missing) / (~is_missing).mean()
    other.fit(x, y, sample_weight=given.astype("float32"), batch_size=N, verbose=0)
    assert logs["nonfinite"] == [is_missing.sum()]
    assert_all_close(model.get_weights(), other.get_weights(), rtol=1e-4)
    scores = prl.score_examples(model, (x, np.where(is_missing, np.nan, y)), unit="element")
    np.testing.assert_array_equal(np.isinf(scores), is_missing)


def test_a_target_that_is_missing_where_nothing_counts_is_invisible():
    x, y = np.where(WEIGHTS[..., None] > 0, X, 0), RNG.normal(size=(N, STEPS, 2)).astype("float32")
    trained = []
    for hidden in (0.0, np.nan):
        keras.utils.set_random_seed(0)
        masked = keras.Sequential([keras.Input((STEPS, 4)), keras.layers.Masking(), keras.layers.Dense(2)])
        model = compiled(prl.RobustModel(masked, rule=prl.Trim(0.2), unit="element"), "mse")
        targets = np.where(WEIGHTS[..., None] > 0, y, hidden)
        logs = model.fit(x, targets, batch_size=N, verbose=0).history
        trained.append([logs["nonfinite"][0], logs["loss"][0], *model.get_weights()])
    assert_all_close(*trained, atol=1e-7)


def test_the_logged_loss_is_keras_where_batches_differ_in_length():
    batches = [(X[i : i + 8, :t], Y[i : i + 8, :t]) for i, t in ((0, 5), (8, 2), (16, 3))]
    data = tf.data.Dataset.from_generator(
        lambda: iter(batches),
        output_signature=(tf.TensorSpec([None, None, 4]), tf.TensorSpec([None, None], tf.int64)),
    )
    logs = []
    for is_robust in (False, True):
        keras.utils.set_random_seed(0)
        made = keras.Sequential([keras.Input((None, 4)), keras.layers.Dense(CLASSES)])
        model = prl.RobustModel(made, rule=prl.Trim(0.0), unit="element") if is_robust else made
        logs.append(compiled(model).fit(data, verbose=0).history)
    assert logs[1]["loss"] == pytest.approx(logs[0]["loss"], rel=1e-5)
    assert logs[1]["loss_all"] == pytest.approx(logs[0]["loss"], rel=1e-5)


def test_a_loss_of_one_value_for_an_example_is_refused():
    def mean(y_true, y_pred):
        return keras.ops.mean(keras.losses.sparse_categorical_crossentropy(y_true, y_pred, True), axis=-1)

    with pytest.raises(ValueError, match="needs a loss that gives a value for each element"):
        compiled(prl.RobustModel(network(), unit="element"), mean).fit(X, Y, verbose=0)


def test_an_epsilon_that_follows_the_estimate_and_kept_classes():
    words = RNG.integers(0, 30, (600, 8))
    tags = words % 4
    wrong = RNG.random(tags.shape) < 0.2
    tags = np.where(wrong, (tags + RNG.integers(1, 4, tags.shape)) % 4, tags)

    def tagger():
        layers = [keras.layers.Embedding(30, 16), keras.layers.Dense(4)]
        return keras.Sequential([keras.Input((8,)), *layers])

    pair = prl.build("co_prl_l", tagger, epsilon="auto", ramp_steps=60, loss=LOSS,
                     optimizer=keras.optimizers.Adam(0.02), unit="element")  # fmt: skip
    pair.fit(words, tags, batch_size=32, epochs=10, verbose=0)
    assert pair.epsilon_estimate.low - 0.03 < wrong.mean() < pair.epsilon_estimate.high + 0.03
    assert pair.kept_by_class.shape == (4,) and np.all(pair.kept_by_class > 0.5)


@pytest.mark.fault(26)
@pytest.mark.parametrize("loss", [keras.losses.CategoricalCrossentropy(axis=1), "own"], ids=["keras", "own"])
def test_classes_on_another_axis_than_the_last_are_refused(loss):
    def own(y, p):
        return -tf.reduce_sum(y * tf.math.log(p), axis=1)

    network = keras.Sequential([keras.Input([3, 4, 2]), keras.layers.Softmax(axis=1)])
    model = prl.RobustModel(network, unit="element")
    model.compile("sgd", own if loss == "own" else loss)
    x = np.ones([6, 3, 4, 2], "float32")
    with pytest.raises(ValueError, match=r"classes on the last axis.*Permute"):
        model.example_scores(x, x / 3)


@pytest.mark.fault(26)
def test_a_loss_with_a_number_for_each_attribute_is_refused():
    def weighted(y, p):
        return tf.nn.weighted_cross_entropy_with_logits(y, p, tf.constant([1.0, 5.0, 0.2]))

    model = prl.RobustModel(keras.Sequential([keras.Input([5]), keras.layers.Dense(3)]), unit="element")
    model.compile("sgd", weighted)
    with pytest.raises(ValueError, match=r"shape \(batch, 3\).*numbers for several elements.*sample_weight"):
        model.fit(np.ones([6, 5]), np.ones([6, 3]), verbose=0)
