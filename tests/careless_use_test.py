"""What a careless user ran into once, and what is said or done now."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import prl_keras as prl
from prl_keras.experiments.config import RunConfig
from prl_keras.experiments.run import run

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(32, 6)).astype(np.float32), RNG.integers(0, 3, 32)
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def network(seed=0, outputs=3):
    keras.utils.set_random_seed(seed)
    return keras.Sequential([keras.Input((6,)), layers.Dense(outputs)])


def fit(model, x=X, y=Y, optimizer="adam", **kwargs):
    model.compile(optimizer, LOSS)
    model.fit(x, y, epochs=2, batch_size=16, shuffle=False, verbose=0, **kwargs)
    return model


@pytest.mark.parametrize("optimizer", ["adam", "rmsprop"])
@pytest.mark.parametrize("microbatch_size", [None, 5])
def test_prl_g_with_an_embedding_is_plain_fit_at_epsilon_zero(optimizer, microbatch_size):
    """Optimizers with state treat an embedding's sparse gradient in their own way."""

    def text():
        keras.utils.set_random_seed(0)
        pooled = layers.GlobalAveragePooling1D()
        return keras.Sequential([keras.Input((4,), dtype="int32"), layers.Embedding(9, 4), pooled,
                                 layers.Dense(3)])  # fmt: skip

    x = RNG.integers(0, 9, (32, 4))
    plain = fit(text(), x, optimizer=optimizer)
    robust = prl.RobustModel(text(), "gradient", prl.Trim(0.0), microbatch_size=microbatch_size)
    fit(robust, x, optimizer=optimizer)
    for a, b in zip(plain.get_weights(), robust.network.get_weights()):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_prl_g_with_a_looping_recurrent_layer_is_slow_but_right():
    def recurrent():
        keras.utils.set_random_seed(0)
        return keras.Sequential([keras.Input((4, 2)), layers.Dense(3), layers.LSTM(4), layers.Dense(3)])

    x = RNG.normal(size=(6, 4, 2)).astype(np.float32)
    with pytest.warns(UserWarning, match="unroll=True"):
        norms = prl.scores.gradient_norm(x, Y[:6], recurrent(), LOSS)
    one_by_one = recurrent()
    for i in range(6):
        with tf.GradientTape() as tape:
            loss = LOSS(Y[i : i + 1], one_by_one(x[i : i + 1]))
        gradient = tape.gradient(loss, one_by_one.trainable_weights)
        assert float(norms[i]) == pytest.approx(float(tf.linalg.global_norm(gradient)), rel=1e-4)
    fit(prl.RobustModel(recurrent(), "gradient"), np.tile(x, (5, 1, 1)), Y[:30])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_numpy_epsilons_mean_their_decimal(dtype):
    for percent in range(100):
        rule = prl.Trim(dtype(percent / 100))
        assert np.count_nonzero(rule(np.arange(1000.0))) == max(1, 1000 - 10 * percent)
    labels = np.zeros(1000, int)
    assert prl.corrupt("symmetric", labels, dtype(0.7), 0, num_classes=3).is_corrupted.sum() == 700


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: prl.RobustModel(network(), prl.Trim(0.6)), r"is a rule, not a score; write rule=Trim"),
        (lambda: prl.RobustModel(network(), rule=prl.Trim), r"must be a rule such as"),
        (lambda: fit(prl.RobustModel(network(), rule=lambda s, r, t: tf.reduce_sum(s))),
         r"one weight per example, shape \(batch,\), but gave shape \(\)"),
        (lambda: fit(prl.RobustModel(network(), rule=lambda s, r, t: s[:, None])), r"one weight per example"),
        (lambda: fit(prl.CoTeachingModel(keras.Sequential([layers.Dense(3)]),
                                         keras.Sequential([layers.Dense(4)]))), r"different output shapes"),
        (lambda: prl.SelectionQuality(X, Y, np.arange(32), 16), r"must be bool"),
        (lambda: fit(prl.RobustModel(network()), y=Y.tolist()), r"y is a list; write np.asarray"),
        (lambda: fit(prl.RobustModel(network()), y=np.eye(3)[Y]), r"np.argmax\(y, axis=-1\)"),
        (lambda: fit(prl.RobustModel(network()), y=np.array(["a"] * 32)), r"np.unique"),
        (lambda: prl.build("prl_l", network(), epsilon=0.3, loss=LOSS, optimizer="sgd"),
         r"must be a function without arguments"),
        (lambda: prl.scores.per_example_loss(np.ones((4, 1)), tf.ones((4, 3)), "mse"),
         r"\(4, 1\) against predictions of shape \(4, 3\)"),
    ],
)  # fmt: skip
def test_is_refused_in_a_sentence(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_network_without_trainable_weights_is_refused():
    model = prl.RobustModel(network())
    model.network.trainable = False
    with pytest.raises(ValueError, match="no trainable weights"):
        fit(model)


def test_a_pair_with_the_same_initial_weights_is_warned_of():
    with pytest.warns(UserWarning, match="same initial weights"):
        prl.CoTeachingModel(network(1), network(1))


def test_replaced_losses_keep_the_reduction():
    loss = keras.losses.MeanSquaredError(reduction="sum")
    built = prl.build("huber", network, epsilon=0.0, loss=loss, optimizer="sgd")
    assert built.loss.reduction == "sum"
    assert prl.build("spl", network, epsilon=0.3, loss=LOSS, optimizer="sgd", metrics="accuracy").compiled


class TestDamagedRuns:
    CONFIG = RunConfig("teacher", "prl_l", "signflip", 0.2, epochs=4, batch_size=500)

    @pytest.fixture
    def stopped(self, tmp_path):
        """A run that was stopped after two epochs."""

        def stop(epoch, logs):
            if epoch == 2:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            interrupt = keras.callbacks.LambdaCallback(on_epoch_begin=stop)
            run(self.CONFIG, tmp_path, verbose=0, callbacks=[interrupt])
        return tmp_path

    @pytest.mark.parametrize("damage", ["truncated", "cut", "gone", "empty"])
    def test_history(self, stopped, damage):
        path = stopped / "history.csv"
        lines = path.read_text().splitlines(keepends=True)
        text = {"truncated": "".join(lines[:2]), "cut": "".join(lines)[:-40], "empty": ""}.get(damage)
        path.unlink() if damage == "gone" else path.write_text(text)
        if damage == "cut":  # the row is there, its end is not
            path.write_text("".join(lines[:2]) + lines[2][:3])
        with pytest.raises(ValueError, match=r"history\.csv is damaged.*--overwrite"):
            run(self.CONFIG, stopped, resume=True, verbose=0)

    def test_config(self, stopped):
        for text in ("null", "{}", '{"a'):
            (stopped / "config.json").write_text(text)
            with pytest.raises(ValueError, match=r"config\.json is damaged.*--overwrite"):
                run(self.CONFIG, stopped, resume=True, verbose=0)
        (stopped / "config.json").unlink()
        with pytest.raises(ValueError, match=r"without config\.json.*--overwrite"):
            run(self.CONFIG, stopped, resume=True, verbose=0)
        assert run(self.CONFIG, stopped, overwrite=True, verbose=0)["epochs"] == 4
