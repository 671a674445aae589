"""What `fit` says of epsilon while it trains: the estimate of each epoch, and the warning."""

import warnings

import keras
import numpy as np
import pytest
from processes import run

import prl_keras as prl
from prl_keras.epsilon import intervals as noise_intervals
from tests.promises.replicas_test import SETUP

N = 60
RNG = np.random.default_rng(0)
X = RNG.normal(size=(N, 4)).astype("float32")
LABELS = RNG.integers(0, 3, N)
LOGITS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
REPLICAS = """
def estimated(strategy):
    with strategy.scope():
        model = build("co_prl_l", network)
    found = []
    for size in (8, 5):  # of 21: the last batches are of 5 and of 1, which leaves a replica without examples
        model.fit(x, y, batch_size=size, epochs=1, shuffle=False, verbose=0)
        found.append(model.epsilon_estimate)
    return found

one, several = estimated(tf.distribute.get_strategy()), estimated(mirrored)
np.testing.assert_allclose(one, several, rtol=1e-4, atol=1e-4)
assert one[0].high > 0
"""


def network(outputs=3, seed=0):
    random = keras.initializers.GlorotUniform(seed)
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(outputs, kernel_initializer=random)])


def fixed(*networks, loss=LOGITS, rule=prl.Trim(0.3), **options):
    """A model that training does not change, so that what its steps see is what it predicts."""
    model = (prl.CoTeachingModel if len(networks) == 2 else prl.RobustModel)(*networks, rule=rule)
    model.compile(keras.optimizers.SGD(0.0), loss, **options)
    return model


def own_loss(y, y_pred):
    return keras.ops.mean((y - y_pred) ** 2, axis=-1)


def softmax(logits):
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


class TestEstimate:
    @pytest.mark.daily("False-options0")
    @pytest.mark.parametrize(
        "options", [{}, {"jit_compile": True}, {"run_eagerly": True}, {"steps_per_execution": 3}]
    )
    @pytest.mark.parametrize("is_pair", [False, True])
    def test_is_that_of_the_predictions(self, is_pair, options):
        networks = [network(seed=seed) for seed in range(1 + is_pair)]
        model = fixed(*networks, **options)
        model.fit(X, LABELS, batch_size=7, epochs=2, verbose=0)
        parts = [softmax(n.predict(X, verbose=0)) for n in networks]
        mean = np.mean(parts, axis=0)
        unsure = np.mean(1 - mean.max(axis=1))
        disagree = np.mean(parts[0].argmax(axis=1) != parts[-1].argmax(axis=1))
        errors = noise_intervals.admitted_errors(unsure, disagree if is_pair else None, factor=4)
        if not is_pair:
            errors = errors._replace(few=0)
        expected = noise_intervals.of_classes(np.mean(mean.argmax(axis=1) != LABELS), errors, N, 0.9)
        np.testing.assert_allclose(model.epsilon_estimate, expected, rtol=1e-4)

    def test_of_targets_it_is_that_of_their_losses(self):
        x = RNG.normal(size=(2000, 4)).astype("float32")
        model = fixed(network(outputs=8), loss="mse", run_eagerly=True)
        errors = RNG.normal(size=(2000, 8)) * np.where(RNG.random((2000, 1)) < 0.3, 5, 0.1)
        targets = model.predict(x, verbose=0) + errors.astype("float32")
        model.fit(x, targets, batch_size=500, verbose=0)
        exact = prl.estimate_epsilon(model, (x, targets))
        np.testing.assert_allclose(model.epsilon_estimate, exact, atol=0.01)
        assert abs(exact.estimate - 0.3) < 0.03

    def test_padding_and_labels_of_no_class_do_not_count_and_bad_examples_are_wrong(self):
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-1)
        model = fixed(network(), network(), loss=loss, run_eagerly=True)
        model.network_b.set_weights(model.network_a.get_weights())
        x, labels, weights = X.copy(), model.predict(X, verbose=0).argmax(axis=1), np.ones(N)
        model.fit(x, labels, verbose=0)
        assert model.epsilon_estimate.estimate == 0
        labels[:10], weights[:10] = (labels[:10] + 1) % 3, 0
        labels[10:20] = -1
        x[20:25] = np.nan
        model.fit(x, labels, sample_weight=weights, verbose=0)
        np.testing.assert_allclose(model.epsilon_estimate.estimate, 5 / 40, rtol=1e-5)

    def test_of_several_outputs_other_losses_and_methods_without_a_rule_there_is_none(self):
        inputs, y = keras.Input((4,)), RNG.normal(size=(N, 1))
        two = keras.Model(inputs, [keras.layers.Dense(1)(inputs), keras.layers.Dense(1)(inputs)])
        plain = prl.RobustModel(network(), score=None)
        plain.compile("sgd", LOGITS, run_eagerly=True)
        mine = fixed(network(), loss=own_loss, run_eagerly=True)
        for model, targets in (
            (fixed(two, loss=["mse", "mse"], run_eagerly=True), [y, y]),
            (mine, RNG.normal(size=(N, 3))),
            (plain, LABELS),
        ):
            model.fit(X, targets, batch_size=N, verbose=0)
            assert model.epsilon_estimate is None

    @pytest.mark.parametrize("wrap", [list, tuple, keras.callbacks.CallbackList])
    def test_beside_the_users_own_callbacks(self, wrap):
        seen = []
        model = fixed(network(), run_eagerly=True)
        own = keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: seen.append(model.epsilon_estimate))
        for _ in range(2):
            callbacks = wrap([own])
            if wrap is keras.callbacks.CallbackList:
                callbacks = wrap([own], add_history=True, model=model)
            model.fit(X, LABELS, None, 2, 0, callbacks)  # by position
        assert len(seen) == 4 and None not in seen

    def test_of_a_model_that_train_on_batch_traced_first(self):
        model = fixed(network())
        model.train_on_batch(X, LABELS)
        model.fit(X, LABELS, batch_size=N, verbose=0)
        assert model.epsilon_estimate.high > 0

    @pytest.mark.long
    def test_several_replicas_count_as_one_device(self):
        run(SETUP + REPLICAS, "2")


class TestWarning:
    def contradicted(self, told, wrong, epochs=4, rule=None):
        """Two networks that both know the truth, told another epsilon than the share of wrong labels."""
        a, b = network(), network()
        b.set_weights(a.get_weights())
        labels = a.predict(X, verbose=0).argmax(axis=1)
        labels[: round(wrong * N)] += 1
        labels %= 3
        model = fixed(a, b, rule=rule or prl.Trim(told), run_eagerly=True)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(2):
                model.fit(X, labels, batch_size=N, epochs=epochs, verbose=0)
        return [str(w.message) for w in caught if "seems to be wrong" in str(w.message)]

    def test_too_little(self):
        (message,) = self.contradicted(0.1, 0.4)  # once
        assert message.startswith("epsilon=0.1 drops less than seems to be wrong") and "labels" in message
        assert "try epsilon=0.5," in message

    def test_too_much(self):
        (message,) = self.contradicted(0.45, 0.05)
        assert message.startswith("epsilon=0.45 drops more than seems to be wrong")

    @pytest.mark.daily("0.0-0.0", "0.2-0.1")
    @pytest.mark.parametrize("told, wrong", [(0.4, 0.4), (0.3, 0.2), (0.2, 0.1), (0.0, 0.0), (0.1, 0.1)])
    def test_the_truth_or_a_little_more_is_not_warned_of(self, told, wrong):
        assert not self.contradicted(told, wrong)

    def test_before_three_epochs_have_said_so_nothing_is(self):
        assert not self.contradicted(0.1, 0.4, epochs=1)

    def test_a_ramp_is_judged_by_its_end(self):
        assert not self.contradicted(0.4, 0.4, rule=prl.Trim(prl.linear_ramp(0.4, 8)))
        assert self.contradicted(0.1, 0.4, rule=prl.Trim(prl.linear_ramp(0.1, 2)))

    def test_an_epsilon_of_its_own_is_not_judged(self):
        assert not self.contradicted(None, 0.4, rule=prl.Trim(prl.EstimatedEpsilon(1)))

    def test_networks_that_have_learnt_nothing_and_admit_it_are_no_contradiction(self):
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            for networks in ([network()], [network(), network(seed=1)]):
                fixed(*networks, run_eagerly=True).fit(X, LABELS, batch_size=N, epochs=5, verbose=0)

    @pytest.mark.daily("0.1-True")
    @pytest.mark.parametrize("told, is_warned", [(0.1, True), (0.4, False), (0.45, False)])
    def test_trained_on_digits_of_which_40_percent_are_wrong(self, told, is_warned):
        from sklearn import datasets

        digits = datasets.load_digits()
        noisy, _ = prl.corrupt("symmetric", digits.target, 0.4, np.random.default_rng(0))
        keras.utils.set_random_seed(0)

        def make_network():
            layers = [keras.Input((64,)), keras.layers.Dense(64, "relu"), keras.layers.Dense(10)]
            return keras.Sequential(layers)

        adam = keras.optimizers.Adam(0.003)
        model = prl.build("co_prl_l", make_network, epsilon=told, loss=LOGITS, optimizer=adam)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model.fit(digits.data / 16, noisy, batch_size=128, epochs=15, verbose=0)
        assert is_warned == any("drops less" in str(w.message) for w in caught)
