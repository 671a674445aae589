"""What users of Keras do, with epsilon 0: the weights and the logs are those of plain Keras."""

import copy
import pickle

import keras
import numpy as np
import pytest
import tensorflow as tf
from arrays import assert_all_close, assert_all_equal
from keras import callbacks, layers
from small_classifier import DATA, LOSS, X, Y, network

import prl_keras as prl

ONE_HOT = keras.losses.CategoricalCrossentropy(from_logits=True)
FACTOR = keras.Variable(1.0)


def hidden():
    keras.utils.set_random_seed(0)  # a layer's initializer draws its seed when the layer is made
    return network(layers.Dense(5, activation="tanh"))


def compile_and_fit(model, *data, loss=LOSS, optimizer=None, metrics=None, **kwargs):
    optimizer = optimizer or keras.optimizers.Adam(0.05)
    model.compile(optimizer, loss, weighted_metrics=metrics, run_eagerly=True)
    sizes = {} if isinstance((data or (X,))[0], tf.data.Dataset) else {"batch_size": 6}
    kwargs = {"epochs": 1, "shuffle": False, "verbose": 0, **sizes, **kwargs}
    return model.fit(*data or (X, Y), **kwargs).history


def class_weight(model, net):
    targets = keras.utils.to_categorical(Y)
    weights = {0: 1.0, 1: 3.0}  # none for class 2
    return compile_and_fit(model, X, targets, loss=ONE_HOT, metrics=["accuracy"], class_weight=weights)


def weights_in_validation(model, net):
    data = DATA((X, Y, np.arange(12) / 5)).batch(5)
    return compile_and_fit(model, data, metrics=["accuracy"], validation_data=data)


def validation_split(model, net):
    data = tf.constant(X), tf.constant(Y)
    return compile_and_fit(model, *data, validation_split=0.25, sample_weight=tf.range(12.0))


def averaged_weights(model, net):
    optimizer = keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.5)
    swap = callbacks.SwapEMAWeights(swap_on_epoch=True)
    return compile_and_fit(model, optimizer=optimizer, callbacks=[swap], validation_data=(X, Y))


def best_weights(model, net):
    stop = callbacks.EarlyStopping(patience=1, restore_best_weights=True)
    slower = callbacks.ReduceLROnPlateau(patience=1, factor=0.5)
    options = {"epochs": 4, "callbacks": [stop, slower], "validation_data": (X[::2], Y[::2])}
    return compile_and_fit(model, optimizer=keras.optimizers.SGD(3.0), **options)


def another_loss(model, net):
    compile_and_fit(model)
    return compile_and_fit(model, X, X[:, :3], loss="mse")


def frozen_later(model, net):
    compile_and_fit(model)
    net.layers[0].trainable = False
    return compile_and_fit(model)


def unfrozen_later(model, net):
    net.layers[0].trainable = False
    compile_and_fit(model)
    net.layers[0].trainable = True
    return compile_and_fit(model)


def one_frozen_weight(model, net):
    net.layers[0].kernel.trainable = False
    return compile_and_fit(model)


def changed_variable(model, net):
    FACTOR.assign(1.0)
    loss = lambda y, y_pred: FACTOR * keras.losses.sparse_categorical_crossentropy(y, y_pred, True)  # noqa: E731
    change = callbacks.LambdaCallback(on_epoch_end=lambda *_: FACTOR.assign(0.1))
    return compile_and_fit(
        model, loss=loss, epochs=2, callbacks=[change], optimizer=keras.optimizers.SGD(0.1)
    )


def more_steps_than_data(model, net):
    return compile_and_fit(model, DATA((X, Y)).batch(5).repeat(), steps_per_epoch=2)


def small_integers(model, net):
    return compile_and_fit(model, X, np.where(Y == 1, 255, Y).astype("uint8"), loss=IGNORING)


IGNORING = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=255)
HABITS = [class_weight, weights_in_validation, validation_split, averaged_weights, best_weights, another_loss,
          frozen_later, unfrozen_later, one_frozen_weight, changed_variable, more_steps_than_data,
          small_integers]  # fmt: skip


@pytest.mark.daily(
    "loss_layer_gradient-class_weight",
    "loss_layer_gradient-averaged_weights",
    "loss_layer_gradient-changed_variable",
)
@pytest.mark.fault(56)
@pytest.mark.parametrize("score, habit", [
    *(("loss_layer_gradient", habit) for habit in HABITS),
    *(("gradient", habit) for habit in (unfrozen_later, one_frozen_weight, small_integers)),
])  # fmt: skip
def test_gives_what_plain_keras_gives(score, habit):
    plain, net = hidden(), hidden()
    expected = habit(plain, plain)
    found = habit(prl.RobustModel(net, score, prl.Trim(0.0)), net)
    assert_all_close(plain.get_weights(), net.get_weights())
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-5, atol=1e-6)


@pytest.mark.fault(56)
@pytest.mark.parametrize("make", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_trains_on_as_the_model_does(make):
    model = prl.RobustModel(hidden())
    compile_and_fit(model)
    other = make(model)
    for each in (model, other):
        each.fit(X, Y, batch_size=4, shuffle=False, verbose=0)
    assert_all_equal(model.get_weights(), other.get_weights())


@pytest.mark.fault(56)
def test_tables_train_and_are_recorded():
    pd = pytest.importorskip("pandas")
    index = np.arange(12)[::-1] + 100
    table, labels = pd.DataFrame(X.astype("float64"), index=index), pd.Series(Y.astype("int8"), index=index)
    weights = pd.Series(np.linspace(0.5, 2, 12), index=index)
    networks = hidden(), hidden()
    compile_and_fit(networks[0], X, Y, sample_weight=weights.to_numpy())
    model, record = prl.RobustModel(networks[1], rule=prl.Trim(0.0)), prl.SelectionRecord((table, labels))
    compile_and_fit(model, table, labels, sample_weight=weights, callbacks=[record])
    assert_all_equal(*(each.get_weights() for each in networks))
    assert record.seen.all()
    of_tables, of_arrays = (prl.audit(model, data, record, 0.2) for data in ((table, labels), (X, Y)))
    np.testing.assert_array_equal(of_tables["score"], of_arrays["score"])
