"""Every method, killed in mid-epoch and resumed by Keras's own BackupAndRestore, ends as if undisturbed."""

import functools
import os
import signal
import subprocess
import sys

import keras
import numpy as np
import pytest
from arrays import assert_all_close, assert_all_equal
from project import PYTHONPATH

import prl_keras as prl

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(20, 4)).astype("float32"), RNG.integers(2, size=20)
EPOCHS = 3


def make(method, epsilon=0.4, dropout=None, seed=0):
    seeds = iter(range(seed, seed + 9))

    def network():
        random = keras.initializers.GlorotUniform(next(seeds))
        hidden = keras.layers.Dense(5, "tanh", kernel_initializer=random)
        drop = [] if dropout is None else [keras.layers.Dropout(dropout, seed=next(seeds))]
        return keras.Sequential([keras.Input((4,)), hidden, *drop, keras.layers.Dense(
            2, kernel_initializer=keras.initializers.GlorotUniform(next(seeds)))])  # fmt: skip

    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    loss = "mse" if method == "huber" else loss
    return prl.build(
        method, network, epsilon=epsilon, loss=loss, optimizer="adam", ramp_steps=8, run_eagerly=True
    )


def fit(model, method, *callbacks):
    y = np.eye(2)[Y] if method == "huber" else Y
    model.fit(X, y, batch_size=8, epochs=EPOCHS, shuffle=False, callbacks=list(callbacks), verbose=0)
    return model.get_weights()


@functools.cache
def undisturbed(method, dropout=None):
    """The weights of the straight run."""
    return fit(make(method, dropout=dropout), method)


def backup(directory, double_checkpoint=True):
    return keras.callbacks.BackupAndRestore(directory, double_checkpoint=double_checkpoint)


class KillInThirdEpoch(keras.callbacks.Callback):
    """As kill -9 does; or, for all the methods in one process, by an exception."""

    def __init__(self, really=False):
        super().__init__()
        self.really = really

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_begin(self, batch, logs=None):
        if (self.epoch, batch) == (2, 1):
            if self.really:
                os.kill(os.getpid(), signal.SIGKILL)
            raise InterruptedError


def stopped(method, directory, double_checkpoint=True, **kwargs):
    with pytest.raises(InterruptedError):
        fit(make(method, **kwargs), method, backup(directory, double_checkpoint), KillInThirdEpoch())


@pytest.mark.daily("co_prl_l")
@pytest.mark.fault(22)
@pytest.mark.parametrize("method", prl.METHODS)
def test_resumes_the_straight_run(method, tmp_path):
    # Keras saves no dropout seeds: of the methods that are plain Keras models without them.
    is_ours = prl.METHODS[method].score or prl.METHODS[method].exchange
    options = {"dropout": 0.5} if is_ours else {}
    stopped(method, tmp_path, double_checkpoint=False, **options)
    resumed = make(method, seed=10, **options)  # its own first weights must not matter
    backup_of_one = backup(tmp_path, double_checkpoint=False)
    assert_all_equal(fit(resumed, method, backup_of_one), undisturbed(method, **options))
    assert int(resumed.optimizer.iterations) == 3 * EPOCHS


KILLED = """
import sys
import tests.promises.resume_test as t
t.fit(t.make("prl_l"), "prl_l", t.backup(sys.argv[1]), t.KillInThirdEpoch(really=True))
"""


@pytest.mark.fault(22)
def test_after_kill_9(tmp_path):
    environment = {**os.environ, "PYTHONPATH": PYTHONPATH}
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], env=environment, capture_output=True)
    assert done.returncode == -signal.SIGKILL
    resumed = fit(make("prl_l"), "prl_l", backup(tmp_path))
    assert_all_close(resumed, undisturbed("prl_l"), rtol=0)  # of two processes


@pytest.mark.daily("standard")
@pytest.mark.fault(22)
@pytest.mark.parametrize("method", ["prl_l", "co_teaching", "standard"])
def test_a_truncated_newest_backup_falls_back_to_the_one_before(method, tmp_path):
    stopped(method, tmp_path)
    newest = tmp_path / "latest.weights.h5"
    newest.write_bytes(newest.read_bytes()[:2000])
    assert_all_equal(fit(make(method), method, backup(tmp_path)), undisturbed(method))


@pytest.mark.fault(22)
def test_a_backup_of_another_epsilon_method_or_network_is_refused(tmp_path):
    stopped("prl_l", tmp_path)
    for other, what in (
        (make("prl_l", epsilon=0.3), "rule was .*0.4.*, is now .*0.3"),
        (make("spl"), "score was 'loss_layer_gradient', is now 'loss'"),
        (make("co_prl_l"), "kind was 'RobustModel', is now 'CoTeachingModel'"),
    ):
        before = other.get_weights()
        with pytest.raises(ValueError, match=rf"(?s)backup in .* is of another training: .*{what}"):
            fit(other, "prl_l", backup(tmp_path))
        assert_all_equal(other.get_weights(), before)
    wider = keras.Sequential([keras.Input((4,)), keras.layers.Dense(9), keras.layers.Dense(2)])
    model = prl.RobustModel(wider)
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    with pytest.raises(ValueError, match=r"another training: .*weights was"):
        fit(model, "prl_l", backup(tmp_path))
    assert_all_equal(fit(make("prl_l"), "prl_l", backup(tmp_path)), undisturbed("prl_l"))


@pytest.mark.fault(22)
def test_a_model_checkpoint_goes_on_with_its_dropout(tmp_path):
    path = tmp_path / "model.keras"
    save = keras.callbacks.ModelCheckpoint(path)
    with pytest.raises(InterruptedError):
        fit(make("co_prl_l", dropout=0.5), "co_prl_l", save, KillInThirdEpoch())
    loaded = keras.models.load_model(path)
    loaded.fit(X, Y, batch_size=8, epochs=EPOCHS, initial_epoch=2, shuffle=False, verbose=0)
    assert_all_equal(loaded.get_weights(), undisturbed("co_prl_l", dropout=0.5))
