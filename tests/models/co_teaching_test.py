"""CoTeachingModel: what is exchanged, what is reported, what is refused."""

import keras
import numpy as np
import pytest
from arrays import assert_all_close, assert_all_equal

import prl_keras as prl

RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 5)).astype(np.float32)
Y = RNG.integers(0, 3, 40)


def network(seed, outputs=3, regularizer=None):
    return keras.Sequential([
        keras.Input((5,)),
        keras.layers.Dense(
            outputs, kernel_initializer=keras.initializers.GlorotUniform(seed), kernel_regularizer=regularizer
        ),
    ])  # fmt: skip


def compiled(score="loss", rule=prl.Trim(0.25), exchange="swap", **kwargs):
    model = prl.CoTeachingModel(network(1, **kwargs), network(2, **kwargs), score, rule, exchange)
    model.compile(
        keras.optimizers.SGD(0.1),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def cross_entropy(network):
    logits = network(X).numpy().astype(np.float64)
    return np.log(np.exp(logits).sum(axis=1)) - logits[range(len(Y)), Y]


class TestSwap:
    def test_each_network_trains_on_what_the_other_keeps(self):
        model = compiled()
        weights_a, weights_b = (w.numpy() for w in model.example_weights(X, Y))
        for weights, other in ((weights_a, model.network_b), (weights_b, model.network_a)):
            expected = np.zeros(40)
            expected[np.argsort(cross_entropy(other))[:30]] = 40 / 30
            np.testing.assert_allclose(weights, expected, rtol=1e-6)
        assert not np.array_equal(weights_a, weights_b)


class TestDisagreement:
    def differing(self, model):
        return model.network_a(X).numpy().argmax(1) != model.network_b(X).numpy().argmax(1)

    def test_keeps_the_examples_whose_predicted_class_differs(self):
        model = compiled(score=None, exchange="disagreement")
        differing = self.differing(model)
        assert 0 < differing.sum() < 40
        for weights in model.example_weights(X, Y):
            np.testing.assert_allclose(weights, differing * 40 / differing.sum(), rtol=1e-6)

    def test_with_a_score_each_network_ranks_the_differing_ones_itself(self):
        model = compiled(exchange="disagreement")
        differing = self.differing(model)
        kept = int(0.75 * differing.sum() + 1e-6)
        for weights, own in zip(model.example_weights(X, Y), model.networks):
            ranked = np.where(differing, cross_entropy(own), np.inf)
            expected = np.zeros(40)
            expected[np.argsort(ranked)[:kept]] = 40 / kept
            np.testing.assert_allclose(weights, expected, rtol=1e-6)

    def test_changes_nothing_where_all_agree(self):
        model = compiled(score=None, exchange="disagreement")
        model.network_b.set_weights(model.network_a.get_weights())
        before = model.get_weights()
        logs = model.train_on_batch(X, Y, return_dict=True)
        assert logs["kept_fraction"] == 0 and logs["loss"] == 0
        assert_all_equal(before, model.get_weights())

    def test_of_a_single_output_compares_the_sides_of_one_half(self):
        model = prl.CoTeachingModel(
            network(1, outputs=1), network(2, outputs=1), score=None, exchange="disagreement"
        )
        model.compile("sgd", keras.losses.BinaryCrossentropy(from_logits=True))
        differing = (model.network_a(X).numpy() > 0) != (model.network_b(X).numpy() > 0)
        weights = model.example_weights(X, (Y > 0)[:, None])[0].numpy()
        np.testing.assert_array_equal(weights > 0, differing[:, 0])

    def test_refuses_regression(self):
        model = prl.CoTeachingModel(
            network(1, outputs=1), network(2, outputs=1), score=None, exchange="disagreement"
        )
        model.compile("sgd", "mse")
        with pytest.raises(ValueError, match=r"compares predicted classes.*regression"):
            model.fit(X, np.ones((40, 1)), verbose=0)


class TestSwapDisagreement:
    def expected(self, model, among):
        kept = int(0.75 * among.sum() + 1e-6)
        for other in model.networks[::-1]:
            weights = np.zeros(40)
            weights[np.argsort(np.where(among, cross_entropy(other), np.inf))[:kept]] = 40 / kept
            yield weights

    def test_each_network_trains_on_what_the_other_keeps_of_the_differing_ones(self):
        model = compiled(exchange="swap_disagreement")
        differing = model.network_a(X).numpy().argmax(1) != model.network_b(X).numpy().argmax(1)
        assert 0 < differing.sum() < 40
        assert_all_close(model.example_weights(X, Y), self.expected(model, differing), rtol=1e-6, atol=0)

    def test_changes_nothing_where_all_agree(self):
        model = compiled(exchange="swap_disagreement")
        model.network_b.set_weights(model.network_a.get_weights())
        before = model.get_weights()
        assert model.train_on_batch(X, Y, return_dict=True)["kept_fraction"] == 0
        assert_all_equal(before, model.get_weights())

    @pytest.mark.long
    def test_is_swap_in_the_warm_up_and_not_after_it(self):
        fitted = {}
        for exchange, steps in (("swap", 0), ("swap_disagreement", 4), ("swap_disagreement", 3)):
            model = compiled(exchange=exchange)
            model.warm_up_steps = steps
            model.fit(X, Y, batch_size=10, shuffle=False, verbose=0)
            fitted[exchange, steps] = np.concatenate([w.ravel() for w in model.get_weights()])
        np.testing.assert_array_equal(fitted["swap", 0], fitted["swap_disagreement", 4])
        assert not np.array_equal(fitted["swap", 0], fitted["swap_disagreement", 3])

    def test_goes_on_after_saving_where_it_was(self, tmp_path):
        model = compiled(exchange="swap_disagreement")
        model.warm_up_steps = 4
        model.fit(X, Y, batch_size=20, verbose=0)
        model.save(tmp_path / "pair.keras")
        again = keras.models.load_model(tmp_path / "pair.keras")
        assert (again.exchange, again.warm_up_steps) == ("swap_disagreement", 4)
        for each in (model, again):
            each.fit(X, Y, batch_size=10, shuffle=False, verbose=0)
        assert_all_equal(model.get_weights(), again.get_weights())


class TestReports:
    def test_evaluate_is_the_mean_of_the_two_networks_and_never_trimmed(self):
        model = compiled()
        loss, accuracy = model.evaluate(X, Y, batch_size=16, verbose=0)
        assert loss == pytest.approx(np.mean([cross_entropy(n) for n in model.networks]), rel=1e-5)
        expected = np.mean([n(X).numpy().argmax(1) == Y for n in model.networks])
        assert accuracy == pytest.approx(expected, rel=1e-6)

    def test_predict_is_the_mean_of_the_two_outputs(self):
        model = compiled()
        expected = (model.network_a(X).numpy() + model.network_b(X).numpy()) / 2
        np.testing.assert_allclose(model.predict(X, verbose=0), expected, rtol=1e-5, atol=1e-6)

    def test_fit_logs_the_kept_fraction_and_the_threshold(self):
        model = compiled()
        thresholds = [np.sort(cross_entropy(n))[29] for n in model.networks]
        history = model.fit(X, Y, batch_size=40, verbose=0).history
        assert history["kept_fraction"] == [pytest.approx(0.75)]
        assert history["score_threshold"] == [pytest.approx(np.mean(thresholds), rel=1e-5)]
        assert history["loss"][0] != history["loss_all"][0]

    def test_regularizers_count_once_and_for_their_own_network(self):
        model = compiled(score=None, rule=None, regularizer=keras.regularizers.L2(0.1))
        model.exchange = "swap"
        plain = network(1, regularizer=keras.regularizers.L2(0.1))
        plain.compile(keras.optimizers.SGD(0.1), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        logs = model.train_on_batch(X, Y, return_dict=True)
        losses = [cross_entropy(n).mean() for n in (network(1), network(2))]
        penalties = [0.1 * np.sum(n.get_weights()[0] ** 2) for n in (network(1), network(2))]
        assert logs["loss"] == pytest.approx(np.mean(losses) + np.mean(penalties), rel=1e-5)
        plain.train_on_batch(X, Y)
        assert_all_close(plain.get_weights(), model.network_a.get_weights())


class TestRefuses:
    @pytest.mark.fault(28)
    def test_the_same_network_twice(self):
        one = network(1)
        with pytest.raises(ValueError, match="same object"):
            prl.CoTeachingModel(one, one)

    @pytest.mark.fault(28)
    def test_shared_layers(self):
        shared = keras.layers.Dense(4)
        networks = []
        for _ in range(2):
            inputs = keras.Input((5,))
            networks.append(keras.Model(inputs, keras.layers.Dense(3)(shared(inputs))))
        with pytest.raises(ValueError, match="share 2 variables"):
            prl.CoTeachingModel(*networks)

    @pytest.mark.fault(28)
    def test_different_output_shapes(self):
        with pytest.raises(ValueError, match=r"different output shapes, \(None, 3\) and \(None, 2\)"):
            prl.CoTeachingModel(network(1), network(2, outputs=2))

    def test_an_unknown_exchange(self):
        with pytest.raises(ValueError, match=r"exchange='swop'.*'swap' or 'disagreement'"):
            prl.CoTeachingModel(network(1), network(2), exchange="swop")

    def test_a_warm_up_of_an_exchange_that_compares_nothing(self):
        with pytest.raises(ValueError, match=r"warm_up_steps=5.*exchange='swap' compares none"):
            prl.CoTeachingModel(network(1), network(2), warm_up_steps=5)
