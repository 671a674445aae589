"""The scores: closed forms, hidden logits, precision, and what cannot be scored."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy.special import expit, softmax

import prl_keras as prl
from prl_keras.scores.names import resolve

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(scale=3, size=(9, 4)).astype(np.float32)
LABELS = RNG.integers(0, 4, 9)
ONE_HOT = np.eye(4, dtype=np.float32)[LABELS]
SPARSE = keras.losses.SparseCategoricalCrossentropy
P = softmax(LOGITS, axis=1)
norm = prl.scores.loss_layer_gradient_norm


class TestPerExampleLoss:
    def test_is_the_loss_before_reduction(self):
        expected = -np.log(P)[range(9), LABELS]
        loss = SPARSE(from_logits=True)
        np.testing.assert_allclose(prl.scores.per_example_loss(LABELS, LOGITS, loss), expected, rtol=1e-4)

    def test_takes_the_mean_over_further_axes(self):
        y = np.arange(24.0).reshape(2, 3, 4)
        values = prl.scores.per_example_loss(y, np.zeros_like(y), "mse")
        np.testing.assert_allclose(values, (y**2).mean(axis=(1, 2)))

    @pytest.mark.parametrize("loss", ["mse", ["mse", "mse"], ("mse", None)])
    def test_of_several_outputs_is_the_sum(self, loss):
        y = [RNG.normal(size=(5, width)).astype(np.float32) for width in (2, 3)]
        zeros = [np.zeros_like(part) for part in y]
        expected = sum((part**2).mean(axis=1) for part in (y[:1] if isinstance(loss, tuple) else y))
        values = prl.scores.per_example_loss(y, zeros, list(loss) if isinstance(loss, tuple) else loss)
        np.testing.assert_allclose(values, expected, rtol=1e-5)

    def test_takes_a_list_of_one_loss_for_a_single_output(self):
        values = prl.scores.per_example_loss(LOGITS, np.zeros_like(LOGITS), ["mse"])
        np.testing.assert_allclose(values, (LOGITS**2).mean(axis=1), rtol=1e-5)

    @pytest.mark.parametrize("is_class", [False, True])
    def test_refuses_a_loss_that_returns_a_scalar(self, is_class):
        class Scalar(keras.losses.Loss):
            def call(self, y_true, y_pred):
                return tf.reduce_mean(y_true - y_pred)

        loss = Scalar() if is_class else lambda t, p: tf.reduce_mean((t - p) ** 2)
        with pytest.raises(ValueError, match=r"one value per example, shape \(9,\), but gave shape \(\)"):
            prl.scores.per_example_loss(ONE_HOT, LOGITS, loss)

    @pytest.mark.fault(9)
    def test_refuses_shapes_that_would_broadcast(self):
        class Own(keras.losses.Loss):
            def call(self, y_true, y_pred):
                return tf.reduce_mean((y_true - y_pred) ** 2, axis=-1)

        shapes = r"\(9,\) against predictions of shape \(9, 1\).*y\[\.\.\., None\]"
        with pytest.raises(ValueError, match=shapes):
            prl.scores.per_example_loss(np.ones(9), tf.ones((9, 1)), Own())
        with pytest.raises(ValueError, match=r"\(9, 3\) against predictions of shape \(9, 4\)"):
            prl.scores.per_example_loss(np.ones((9, 3)), LOGITS, "mse")
        with pytest.raises(ValueError, match="one integer label per prediction"):
            prl.scores.per_example_loss(ONE_HOT, LOGITS, SPARSE(from_logits=True))

    @pytest.mark.fault(36)
    def test_targets_without_a_last_axis(self):
        losses = prl.scores.per_example_loss(np.arange(9.0), tf.ones((9, 1)), "mse")
        np.testing.assert_allclose(losses, (np.arange(9.0) - 1) ** 2)


class TestLossLayerGradientNorm:
    @pytest.mark.parametrize(
        ("y_true", "loss", "expected"),
        [
            (LABELS, SPARSE(from_logits=True), P - ONE_HOT),
            (LABELS[:, None], SPARSE(from_logits=True), P - ONE_HOT),
            (ONE_HOT, keras.losses.CategoricalCrossentropy(from_logits=True), P - ONE_HOT),
            (ONE_HOT, keras.losses.BinaryCrossentropy(from_logits=True), (expit(LOGITS) - ONE_HOT) / 4),
            (ONE_HOT, "mse", 2 * (LOGITS - ONE_HOT) / 4),
            (ONE_HOT, keras.losses.mean_absolute_error, np.sign(LOGITS - ONE_HOT) / 4),
            (ONE_HOT, keras.losses.Huber(), np.clip(LOGITS - ONE_HOT, -1, 1) / 4),
        ],
    )
    def test_equals_the_closed_form(self, y_true, loss, expected):
        expected = np.linalg.norm(expected, axis=1)
        np.testing.assert_allclose(norm(y_true, tf.constant(LOGITS), loss), expected, rtol=1e-4)

    def test_of_huge_targets_stays_finite(self):
        huge = np.array([[1e30, -1e30]], np.float32)
        np.testing.assert_allclose(norm(huge, tf.zeros((1, 2)), "mse"), [np.sqrt(2) * 1e30], rtol=1e-5)
        assert norm(huge[:0], tf.zeros((0, 2)), "mse").shape == (0,)
        assert norm(np.zeros((1, 2)), tf.zeros((1, 2)), "mse").numpy() == 0

    def test_carries_no_gradient(self):
        logits = tf.constant(LOGITS)
        with tf.GradientTape() as tape:
            tape.watch(logits)
            score = norm(LABELS, logits, SPARSE(from_logits=True))
        assert tape.gradient(score, logits) is None

    def test_takes_a_loss_whose_arguments_cannot_be_read(self):
        """As of a compiled function: it is taken to be a loss of the predictions as they are."""

        class Opaque:
            __signature__ = "none"

            def __call__(self, y_true, y_pred):
                return tf.reduce_mean((y_true - y_pred) ** 2, axis=-1)

        np.testing.assert_allclose(norm(ONE_HOT, tf.constant(LOGITS), Opaque()),
                                   norm(ONE_HOT, tf.constant(LOGITS), "mse"), rtol=1e-6)  # fmt: skip

    @pytest.mark.fault(12)
    def test_refuses_a_loss_without_gradient(self):
        with pytest.raises(ValueError, match="does not depend on the predictions"):
            norm(ONE_HOT, tf.constant(LOGITS), lambda t, p: tf.reduce_sum(t, axis=-1))


def heads():
    """(case, activation, loss on probabilities, the same loss on logits, targets)."""
    multi, two = keras.activations.softmax, keras.activations.sigmoid
    return [
        ("sparse", multi, SPARSE(), SPARSE(from_logits=True), LABELS),
        ("sparse_name", multi, "sparse_categorical_crossentropy", SPARSE(from_logits=True), LABELS),
        ("one_hot", multi, "categorical_crossentropy",
         keras.losses.CategoricalCrossentropy(from_logits=True), ONE_HOT),
        ("multi_label", two, "binary_crossentropy",
         keras.losses.BinaryCrossentropy(from_logits=True), ONE_HOT),
        ("focal", multi, keras.losses.CategoricalFocalCrossentropy(),
         keras.losses.CategoricalFocalCrossentropy(from_logits=True), ONE_HOT),
        ("binary_focal", two, keras.losses.BinaryFocalCrossentropy(),
         keras.losses.BinaryFocalCrossentropy(from_logits=True), ONE_HOT),
        ("bootstrap", multi, prl.Bootstrap(), prl.Bootstrap(from_logits=True), LABELS),
    ]  # fmt: skip


class TestHiddenLogits:
    """The loss layer is the logits: a probability head ranks as the same network with a logit head."""

    @pytest.mark.fault(12)
    @pytest.mark.parametrize("graph", [False, True])
    @pytest.mark.parametrize("hides", ["keras", "tensorflow", "reshaped"])
    @pytest.mark.parametrize(("case", "head", "loss", "logit_loss", "y"), heads(), ids=lambda v: str(v)[:12])
    def test_same_score_for_logit_and_probability_heads(self, case, head, loss, logit_loss, y, hides, graph):
        if hides == "tensorflow":
            head = {keras.activations.softmax: tf.nn.softmax, keras.activations.sigmoid: tf.sigmoid}[head]
        if hides == "reshaped":  # the attribute by which Keras finds the logits is lost
            keras_head, head = head, lambda z: tf.identity(keras_head(z))
        score = tf.function(lambda z: norm(y, head(z), loss)) if graph else lambda z: norm(y, head(z), loss)
        expected = norm(y, tf.constant(LOGITS), logit_loss)
        np.testing.assert_allclose(score(tf.constant(LOGITS)), expected, rtol=2e-3, atol=2e-5)

    def test_one_probability_is_a_sigmoid_whatever_the_loss(self):
        logits, y = LOGITS[:, :1], (LABELS % 2)[:, None]
        score = norm(y, tf.sigmoid(tf.constant(logits)), prl.Bootstrap())
        np.testing.assert_allclose(
            score, norm(y, tf.constant(logits), prl.Bootstrap(from_logits=True)), rtol=2e-3
        )
        assert np.all(score > 0)

    def test_the_classes_are_the_last_axis(self):
        logits, y = LOGITS[:, None], LABELS[:, None]  # [9, 1, 4]: sequences of one step
        expected = norm(LABELS, tf.constant(LOGITS), SPARSE(from_logits=True))
        for head in (keras.activations.softmax, tf.nn.softmax):
            np.testing.assert_allclose(
                norm(y, head(tf.constant(logits)), SPARSE()), expected, rtol=2e-3, atol=2e-5
            )

    def test_confidently_wrong_examples_score_highest(self):
        """Where the probability underflows, too."""
        logits = tf.constant([[200.0, -200.0, 0.0], [1.0, 0.0, 0.0]])
        for head in (keras.activations.softmax, tf.nn.softmax):
            scores = norm(np.array([1, 0]), head(logits), SPARSE()).numpy()
            np.testing.assert_allclose(scores[0], np.sqrt(2), rtol=1e-5)
            assert scores[1] < 0.7

    def test_probabilities_of_exactly_0_and_1(self):
        sure = np.eye(4, dtype=np.float32)[(LABELS + 1) % 4]
        np.testing.assert_allclose(norm(LABELS, sure, SPARSE()), np.full(9, np.sqrt(2)), rtol=1e-5)
        binary = keras.losses.BinaryCrossentropy()
        np.testing.assert_allclose(norm(np.eye(2)[:, :1], np.ones((2, 1)), binary), [0, 1], atol=1e-5)

    def test_loss_on_probabilities_without_cross_entropy_is_taken_through_the_head(self):
        """A hand-written -log p: with respect to p it would be self-paced learning."""

        def log_loss(y_true, y_pred):
            return -tf.math.log(tf.reduce_sum(y_true * y_pred, axis=-1))

        scores = norm(ONE_HOT, keras.activations.softmax(tf.constant(LOGITS)), log_loss)
        np.testing.assert_allclose(scores, np.linalg.norm(P - ONE_HOT, axis=1), rtol=1e-3)

    def test_ranking_does_not_depend_on_precision(self):
        half = tf.cast(tf.constant(LOGITS), tf.float16)
        expected = norm(LABELS, tf.cast(half, tf.float32), SPARSE(from_logits=True))
        scores = norm(LABELS, keras.activations.softmax(half), SPARSE())
        assert scores.dtype == tf.float32
        np.testing.assert_allclose(scores, expected, rtol=1e-4)


class TestAgainstSelfPacedLearning:
    def test_two_classes_and_mse_rank_as_the_loss_does(self):
        two = LOGITS[:, :2]
        y = LABELS % 2
        loss = SPARSE(from_logits=True)
        same = np.argsort(prl.scores.per_example_loss(y, two, loss))
        assert np.argsort(norm(y, tf.constant(two), loss)).tolist() == same.tolist()
        same = np.argsort(prl.scores.per_example_loss(ONE_HOT, LOGITS, "mse"))
        assert np.argsort(norm(ONE_HOT, tf.constant(LOGITS), "mse")).tolist() == same.tolist()

    def test_they_part_from_three_classes_on(self):
        """The paper's example in section 4: alpha has the smaller gradient, beta the smaller loss."""
        alpha = [0.08, 0.28, 0.08, 0.08, 0.08, 0.08, 0.08, 0.08, 0.08, 0.08]
        beta = [0.1, 0.3, 0.34, 0.05, 0.05, 0.1, 0.03, 0.03, 1e-9, 1e-9]
        logits = tf.math.log(tf.constant([alpha, beta]))
        y, loss = np.array([1, 1]), SPARSE(from_logits=True)
        losses = prl.scores.per_example_loss(y, logits, loss).numpy()
        gradients = norm(y, logits, loss).numpy()
        assert losses[1] < losses[0] and gradients[0] < gradients[1]


def test_a_function_of_no_module_is_a_score():
    found = eval("lambda y, p: tf.abs(y - p)[:, 0]", {"tf": tf, "__name__": None})
    y, p = np.array([[1.0], [2.0]]), np.array([[1.5], [4.0]])
    model = prl.RobustModel(keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)]), score=found)
    model.compile("sgd", found)
    assert model.train_on_batch(p, y)[0] > 0
    np.testing.assert_allclose(resolve(found).function(y, p, "mse", None), [0.5, 2])


class TestResolve:
    def test_takes_the_mean_of_a_functions_values_over_further_axes(self):
        y = RNG.normal(size=(3, 5)).astype(np.float32)
        score = resolve(lambda y_true, y_pred: abs(y_true - y_pred))
        np.testing.assert_allclose(score.function(y, np.zeros_like(y), "mse"), abs(y).mean(axis=1), rtol=1e-5)

    def test_refuses_an_unknown_name(self):
        with pytest.raises(ValueError, match="'loss', 'loss_layer_gradient', 'gradient'"):
            resolve("gradients")

    def test_takes_a_function_and_a_loss(self):
        margin = resolve(lambda y, p: -tf.reduce_max(p, axis=-1))
        np.testing.assert_allclose(margin.function(LABELS, tf.constant(LOGITS), None), -LOGITS.max(axis=1))
        error = resolve(keras.losses.MeanAbsoluteError())
        np.testing.assert_allclose(
            error.function(ONE_HOT, tf.constant(LOGITS), None),
            np.abs(LOGITS - ONE_HOT).mean(axis=1),
            rtol=1e-5,
        )
