"""estimate_epsilon: how many labels are wrong, and an interval that holds the truth."""

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import prl_keras as prl
from prl_keras.auditing import estimate as noise_rate
from prl_keras.auditing.estimate import estimate_from
from prl_keras.auditing.predictions import Predictions

LOGITS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def classes(is_wrong, is_error, is_learnt, admitted):
    """Predictions of 20 classes: 0 is true, wrong labels say 1, an error predicts 1, what is learnt too."""
    labels = is_wrong.astype("int32")
    predicted = np.where(is_wrong, is_learnt, is_error).astype("int32")
    n = len(labels)
    probabilities = np.full((n, 20), admitted / 19, "float32")
    probabilities[np.arange(n), predicted] = 1 - admitted
    return Predictions(labels, predicted, probabilities, np.zeros(n, "float32"), None)


class TestClasses:
    def test_the_estimate_is_the_share_that_the_model_disagrees_with_but_for_its_errors(self):
        x = np.random.default_rng(0).normal(size=(200, 4)).astype("float32")
        y = np.random.default_rng(1).integers(0, 3, 200)
        model = prl.RobustModel(keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)]))
        model.compile("sgd", LOGITS)
        found = prl.estimate_epsilon(model, (x, y), batch_size=33)
        logits = model.predict(x, verbose=0)
        confidence = np.exp(logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))).max(axis=1)
        d, e = np.mean(logits.argmax(axis=1) != y), np.mean(1 - confidence) / 2
        assert found.estimate == pytest.approx((d - e) / (1 - e), rel=1e-4)
        assert 0 <= found.low <= found.estimate <= found.high <= 1

    @settings(deadline=None, max_examples=60)
    @given(
        epsilon=st.floats(0, 0.45), e=st.floats(0, 0.45), m=st.floats(0, 0.1), factor=st.floats(0.51, 1.9),
        seed=st.integers(0, 99),
    )  # fmt: skip
    def test_the_interval_holds_the_truth_where_the_model_admits_its_errors_roughly(
        self, epsilon, e, m, factor, seed
    ):
        """Of the docstring's assumptions; six standard deviations, so that chance has no part in it."""
        rng, n = np.random.default_rng(seed), 4000
        is_wrong, is_error, is_learnt = (rng.random(n) < share for share in (epsilon, e, m))
        found = estimate_from(classes(is_wrong, is_error, is_learnt, e * factor), confidence=1 - 1e-9)
        assert found.low <= is_wrong.mean() <= found.high

    def test_a_pair_admits_by_where_its_networks_disagree(self):
        rng = np.random.default_rng(0)
        x = rng.normal(size=(300, 4)).astype("float32")
        y = x[:, :3].argmax(axis=1)
        kernels = [np.zeros((4, 3), "float32") for _ in range(2)]
        for kernel in kernels:
            kernel[:3] = 100 * np.eye(3)
        pairs = []
        for change in (0, 60):  # of the second network
            kernels[1][3, 0] = change
            networks = [keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)]) for _ in range(2)]
            for each, kernel in zip(networks, kernels):
                each.set_weights([kernel, np.zeros(3)])
            pair = prl.CoTeachingModel(*networks)
            pair.compile("sgd", LOGITS)
            pairs.append(prl.estimate_epsilon(pair, (x, np.where(rng.random(300) < 0.3, (y + 1) % 3, y))))
        agreeing, disagreeing = pairs
        assert disagreeing.high - disagreeing.low > agreeing.high - agreeing.low + 0.1

    def test_of_a_sure_and_right_model_it_is_0(self):
        no = np.zeros(1000, bool)
        found = estimate_from(classes(no, no, no, 0.0))
        assert found == (0, 0, 0)

    def test_prints_with_three_decimals(self):
        assert str(prl.EpsilonEstimate(0.2034999, 0.1, 1 / 3)) == "0.203 (0.100 to 0.333)"

    def test_one_example(self):
        yes = np.ones(1, bool)
        found = estimate_from(classes(yes, yes, ~yes, 0.1))
        assert found.estimate == 1 and 0 <= found.low <= 1 == found.high


class TestTargets:
    @pytest.mark.parametrize("epsilon", [0.1, 0.2, 0.4])
    def test_wrong_targets_far_off_are_counted(self, epsilon):
        rng = np.random.default_rng(0)
        is_wrong = rng.random(3000) < epsilon
        residuals = np.where(is_wrong, 5, 0.3)[:, None] * rng.normal(size=(3000, 4))
        found = estimate_from(Predictions(residuals, residuals, None, (residuals**2).mean(axis=1), None))
        assert abs(found.estimate - is_wrong.mean()) < 0.01
        assert found.low <= is_wrong.mean() <= found.high and found.high - found.low < 0.06

    def test_where_wrong_targets_lie_no_farther_off_nothing_is_known(self):
        rng = np.random.default_rng(0)
        losses = rng.chisquare(8, 3000)
        found = estimate_from(Predictions(losses, losses, None, losses, None))
        assert found.low == 0 and found.high > 0.3

    @pytest.mark.parametrize("epsilon", [0.0, 0.1, 0.3])
    @pytest.mark.parametrize("width", [1, 2, 10])
    @pytest.mark.parametrize("kind", ["normal", "heavy", "uneven"])
    def test_the_interval_holds_the_truth_whatever_the_errors_of_right_targets(self, kind, width, epsilon):
        rng = np.random.default_rng(0)
        size = (3000, width)
        errors = rng.standard_t(4, size) if kind == "heavy" else rng.normal(size=size)
        if kind == "uneven":  # some targets are harder than others
            errors *= np.exp(0.4 * rng.normal(size=(3000, 1)))
        is_wrong = rng.random(3000) < epsilon
        errors[is_wrong] += 6 * rng.normal(size=(is_wrong.sum(), width))
        found = estimate_from(Predictions(errors, errors, None, (errors**2).mean(axis=1), None))
        assert found.low <= is_wrong.mean() <= found.high
        if width == 10 and epsilon:
            assert found.high - found.low < 0.1 and abs(found.estimate - is_wrong.mean()) < 0.01
        if kind == "normal" and not epsilon:
            assert found.estimate == 0

    def test_through_a_model(self):
        rng = np.random.default_rng(0)
        x = rng.normal(size=(500, 3)).astype("float32")
        y = x @ rng.normal(size=(3, 2)) + 0.01 * rng.normal(size=(500, 2))
        noisy, is_wrong = prl.corrupt("uninoise", y.astype("float32"), 0.2, rng)
        model = prl.RobustModel(
            keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]), rule=prl.Trim(0.3)
        )
        model.compile(keras.optimizers.Adam(0.05), "mse")
        model.fit(x, noisy, batch_size=100, epochs=40, verbose=0)
        assert abs(prl.estimate_epsilon(model, (x, noisy)).estimate - is_wrong.mean()) < 0.03

    def test_losses_that_are_all_alike_or_zero(self):
        for losses in (np.zeros(10), np.ones(10), np.ones(1)):
            found = estimate_from(Predictions(losses, losses, None, losses, None))
            assert 0 <= found.low <= found.estimate <= found.high <= 1


class TestTrusted:
    DATA = np.zeros((10, 4), "float32"), np.zeros(10, int)

    @pytest.mark.parametrize("epsilon", [0.02, 0.05, 0.2, 0.4])
    @pytest.mark.parametrize("errors", [0.01, 0.1, 0.45])
    @pytest.mark.parametrize("k", [30, 100])
    def test_the_interval_holds_the_truth_as_often_as_it_says(self, k, errors, epsilon):
        """Of a good, a middling and a bad model, which admits none of its errors."""
        rng = np.random.default_rng(0)
        is_wrong, is_error = rng.random(5000) < epsilon, rng.random(5000) < errors
        found = classes(is_wrong, is_error, is_error, 0.0)
        is_held = []
        for _ in range(500):
            examples = rng.choice(5000, k, replace=False)
            estimate = noise_rate._corrected(found, examples, is_wrong[examples].astype(float), 0.9)
            is_held.append(estimate.low <= is_wrong.mean() <= estimate.high)
        assert np.mean(is_held) > 0.87  # 0.9 less two standard deviations over 500

    def test_where_all_are_trusted_it_is_exact(self):
        rng = np.random.default_rng(0)
        is_wrong = rng.random(50) < 0.2
        found = classes(is_wrong, rng.random(50) < 0.3, rng.random(50) < 0.3, 0.0)
        estimate = noise_rate._corrected(found, np.arange(50), is_wrong.astype(float), 0.9)
        assert estimate == pytest.approx([is_wrong.mean()] * 3)

    def test_a_good_model_makes_it_narrow(self):
        rng = np.random.default_rng(0)
        is_wrong = rng.random(5000) < 0.2
        examples = np.arange(100)
        wrong = is_wrong[examples].astype(float)
        good, useless = (
            noise_rate._corrected(
                classes(is_wrong, rng.random(5000) < e, rng.random(5000) < e, 0), examples, wrong, 0.9
            )
            for e in (0.005, 0.5)
        )
        assert good.high - good.low < 0.6 * (useless.high - useless.low)
        assert good.low <= is_wrong.mean() <= good.high

    @pytest.mark.parametrize(
        "trusted, message",
        [
            (([1, 1], [0, 0]), "all different"),
            (([1], [0]), "at least 2"),
            (([0.5, 1], [0, 0]), "places"),
            (([1, 99], [0, 0]), "0 to 9"),
            (([1, -1], [0, 0]), "0 to 9"),
            (([1, 2], [0, 0, 0]), "shape"),
            (([1, 2], [0, 3]), "0 to 2; they are 0 to 3"),
            (([1, 2], [0, -3]), "0 to 2"),
            (([1, 2], [0.5, 1]), "dtype"),
            (([1, 2], ["a", "b"]), "dtype"),
            ([1, 2, 3], "two arrays"),
            (5, "two arrays"),
        ],
    )
    def test_bad_ones_are_refused(self, trusted, message):
        with pytest.raises(ValueError, match=message):
            prl.estimate_epsilon(self.model(), self.DATA, trusted)

    def test_through_a_model(self):
        found = prl.estimate_epsilon(self.model(), self.DATA, ([0, 1, 2, 3], np.array([[0], [0], [0], [1]])))
        assert found.estimate == 0.25 and found.low < 0.1 and found.high > 0.5

    @pytest.mark.parametrize("confidence", [0, 1, 90, "0.9"])
    def test_a_confidence_that_is_none(self, confidence):
        with pytest.raises(ValueError, match=f"confidence={confidence!r}"):
            prl.estimate_epsilon(self.model(), self.DATA, confidence=confidence)

    def model(self):
        model = prl.RobustModel(keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)]))
        model.compile("sgd", LOGITS)
        return model
