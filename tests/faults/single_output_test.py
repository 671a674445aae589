"""One output whose inputs, targets and weights come in a list, a tuple or a tuple of `tf.data`."""

import keras
import numpy as np
import pytest
from arrays import assert_all_close
from small_classifier import BAD, DATA, LOSS, X, Y, compiled, generator, network

import prl_keras as prl

W = np.linspace(0.5, 2, 12)
FORMS = {
    "list": lambda: (X, [Y]),
    "tuple": lambda: (X, (Y,)),
    "both": lambda: ([X], [Y]),
    "dataset": lambda: (DATA(((X,), (Y,))).batch(4),),
    "dataset with weights": lambda: (DATA(((X,), (Y,), (W,))).batch(4),),
    "generator": lambda: ((((x,), (y,)) for x, y in generator(X, Y)),),
}


@pytest.mark.daily("both-loss_layer_gradient", "generator-loss_layer_gradient", "list-gradient")
@pytest.mark.fault(46)
@pytest.mark.filterwarnings("ignore:The structure of `inputs`")
@pytest.mark.parametrize("score", ["loss_layer_gradient", "gradient"])
@pytest.mark.parametrize("form", FORMS)
def test_is_trained_and_evaluated_as_in_keras(form, score):
    results = []
    for wrap in (lambda net: net, lambda net: prl.RobustModel(net, score, prl.Trim(0.0))):
        net = network()
        model = wrap(net)
        model.compile(keras.optimizers.SGD(0.1), LOSS, weighted_metrics=["accuracy"], run_eagerly=True)
        sizes = {"batch_size": 4} if len(FORMS[form]()) == 2 else {}
        log = model.fit(*FORMS[form](), epochs=1, shuffle=False, verbose=0, **sizes).history
        results.append([*net.get_weights(), log["loss"], log["accuracy"], model.test_on_batch(X, [Y])])
    assert_all_close(*results)


@pytest.mark.fault(46)
@pytest.mark.filterwarnings("ignore:The structure of `inputs`")
def test_is_scored_recorded_and_checked():
    model, listed = compiled(), ([X], [Y])
    record = prl.SelectionRecord(listed)
    model.fit(*listed, verbose=0, callbacks=[record])
    assert record.seen.all()
    np.testing.assert_array_equal(prl.score_examples(model, listed), prl.score_examples(model, (X, Y)))
    np.testing.assert_array_equal(model.example_weights(X, [Y])[0], model.example_weights(X, Y)[0])
    pytest.importorskip("pandas")
    of_lists, of_arrays = (prl.audit(model, data, record, 0.2) for data in (listed, (X, Y)))
    assert of_lists.equals(of_arrays)
    assert str(prl.check(model, listed)) == str(prl.check(model, (X, Y)))
    assert prl.estimate_epsilon(model, listed) == prl.estimate_epsilon(model, (X, Y))


@pytest.mark.fault(46)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.filterwarnings("ignore:The structure of `inputs`")
def test_has_its_labels_checked(form, monkeypatch):
    model = compiled()
    before = model.get_weights()
    monkeypatch.setitem(globals(), "Y", BAD)
    with pytest.raises(ValueError, match=r"at most 2 for 3 outputs; (y\[5\] is|there is a) 7"):
        model.fit(*FORMS[form](), verbose=0, **({"batch_size": 12} if len(FORMS[form]()) == 2 else {}))
    if len(FORMS[form]()) == 2:
        np.testing.assert_array_equal(before[0], model.get_weights()[0])


@pytest.mark.fault(46)
@pytest.mark.parametrize("y, shown", [({"out": Y}, "a dict of 'out'"), ([Y, Y], "a list of 2")])
def test_with_other_structures_is_refused_in_a_sentence(y, shown):
    with pytest.raises(ValueError, match=f"y is {shown}, and the network has one output: give its y as one"):
        compiled().fit(X, y, verbose=0)
