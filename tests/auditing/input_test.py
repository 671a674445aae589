"""What audit and estimate_epsilon make of odd data and losses, and what they refuse."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import prl_keras as prl

N = 60
RNG = np.random.default_rng(0)
X = RNG.normal(size=(N, 4)).astype(np.float32)
LABELS = RNG.integers(0, 3, N)
LOGITS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def network(outputs=3, middle=()):
    return keras.Sequential([keras.Input((4,)), *middle, keras.layers.Dense(outputs)])


def compiled(loss=LOGITS, **options):
    model = prl.RobustModel(network(**options), rule=prl.Trim(0.3))
    model.compile("sgd", loss)
    return model


@pytest.mark.parametrize("is_one_hot", [False, True])
def test_bootstrap_is_a_loss_of_classes(is_one_hot):
    y = np.eye(3, dtype="float32")[LABELS] if is_one_hot else LABELS
    model = compiled(prl.Bootstrap(from_logits=True))
    record = prl.SelectionRecord((X, y))
    model.fit(X, y, verbose=0, callbacks=[record])
    table = prl.audit(model, (X, y), record)
    np.testing.assert_array_equal(table["given"], LABELS)
    likely = keras.ops.softmax(model.network(X)).numpy()
    np.testing.assert_allclose(table.filter(like="probability_"), likely, rtol=1e-4)
    assert np.isfinite(record.given_probabilities).all()


def test_bootstrap_of_one_output_is_of_two_classes():
    y = (LABELS > 0).astype("int32")[:, None]
    model = compiled(prl.Bootstrap(from_logits=True), outputs=1)
    model.fit(X, y, verbose=0)
    table = prl.audit(model, (X, y))
    np.testing.assert_array_equal(table["given"], y[:, 0])
    likely = keras.ops.sigmoid(model.network(X)).numpy()[:, 0]
    np.testing.assert_allclose(table["probability_1"], likely, rtol=1e-4)


@pytest.mark.parametrize(
    "loss", ["hinge", "kl_divergence", lambda y, p: tf.reduce_sum((y - p) ** 2, axis=-1)]
)
@pytest.mark.parametrize("look", [prl.audit, prl.estimate_epsilon])
def test_a_loss_that_may_be_of_classes_or_targets_is_refused(loss, look):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, "softmax")])
    model.compile("sgd", loss)
    with pytest.raises(ValueError, match=r"is not known\. Compile the model with one of Keras's"):
        look(model, (X, np.eye(3, dtype="float32")[LABELS]))


class TestIgnoredLabels:
    @pytest.fixture(params=[-1, 2, 255])
    def trained(self, request):
        ignored = request.param
        y = np.where(np.arange(N) < 20, ignored, LABELS % 2)
        model = compiled(keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=ignored))
        record = prl.SelectionRecord((X, y))
        model.fit(X, y, epochs=3, verbose=0, callbacks=[record])
        return model, y, record

    @pytest.mark.daily("2-*")
    @pytest.mark.parametrize("is_recorded", [False, True])
    def test_rank_last(self, trained, is_recorded):
        model, y, record = trained
        table = prl.audit(model, (X, y), record if is_recorded else None, epsilon=0.5)
        assert table[["score", "given_probability"]][:20].isna().all(axis=None)
        assert np.isfinite(table["score"][20:]).all()
        assert (table["rank"][:20] > 40).all() and not table["is_flagged"][:20].any()
        assert table["is_flagged"].sum() == 20  # half of the 40

    @pytest.mark.daily("2")
    def test_count_for_nothing_in_the_estimate(self, trained):
        model, y, _ = trained
        assert prl.estimate_epsilon(model, (X, y)) == prl.estimate_epsilon(model, (X[20:], y[20:]))
        examples = np.arange(10, 40)
        with_ignored = prl.estimate_epsilon(model, (X, y), (examples, LABELS[examples]))
        without = prl.estimate_epsilon(model, (X[20:], y[20:]), (np.arange(20), LABELS[20:40]))
        assert with_ignored == without

    @pytest.mark.daily("2")
    def test_of_all_examples(self, trained):
        model, y, _ = trained
        with pytest.raises(ValueError, match="No example has a label"):
            prl.estimate_epsilon(model, (X, np.full(N, y[0])))
        with pytest.raises(ValueError, match="Fewer than 2 of the trusted"):
            prl.estimate_epsilon(model, (X, y), (np.arange(20), LABELS[:20]))

    @pytest.mark.long
    def test_count_for_nothing_while_training(self, trained):
        """The watch of fit sees what it sees of the same labels written as -1."""
        _, y, _ = trained
        ignored, estimates = y[0], []
        for labels, ignored in ((y, y[0]), (np.where(y == y[0], -1, y), -1)):
            keras.utils.set_random_seed(0)
            loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=int(ignored))
            pair = prl.build("co_prl_l", network, epsilon="auto", ramp_steps=2, loss=loss, optimizer="sgd")
            pair.fit(X, labels, epochs=2, verbose=0)
            estimates.append(pair.epsilon_estimate)
        assert estimates[0] == estimates[1]


@pytest.mark.parametrize(
    "loss, y, place",
    [
        (
            keras.losses.BinaryCrossentropy(from_logits=True),
            np.where(np.arange(N) == 50, 2, 0)[:, None],
            "50, 0",
        ),
        (keras.losses.CategoricalCrossentropy(from_logits=True), -np.eye(3)[LABELS], rf"0, {LABELS[0]}"),
    ],
)
@pytest.mark.parametrize("look", [prl.audit, prl.estimate_epsilon])
def test_shares_outside_0_to_1_are_refused_with_their_place(look, loss, y, place):
    model = compiled(loss, outputs=y.shape[1])
    with pytest.raises(ValueError, match=rf"labels in \[0, 1\]; y\[{place}\] is"):
        look(model, (X, y.astype("float32")), batch_size=16)


@pytest.mark.parametrize("nested", [lambda loss: [loss], lambda loss: {"out": loss}])
def test_a_loss_in_a_list_or_dict_is_that_of_the_one_output(nested):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="out")])
    model.compile("sgd", nested(LOGITS))
    found = prl.estimate_epsilon(model, (X, LABELS))
    model.compile("sgd", LOGITS)
    assert found == prl.estimate_epsilon(model, (X, LABELS))


def test_several_outputs_of_one_loss_are_refused_as_such():
    inputs = keras.Input((4,))
    model = keras.Model(inputs, [keras.layers.Dense(3)(inputs), keras.layers.Dense(3)(inputs)])
    model.compile("sgd", LOGITS)
    with pytest.raises(ValueError, match="has several outputs"):
        prl.audit(model, (X, (LABELS, LABELS)))


def test_what_is_no_record_or_batch_size_is_refused():
    with pytest.raises(ValueError, match="must be a SelectionRecord"):
        prl.audit(compiled(), (X, LABELS), record="record.npz")
    with pytest.raises(ValueError, match=r"of type ndarray .* go with the inputs: audit\(model, \(x, y\)\)"):
        prl.audit(compiled(), X, LABELS)
    with pytest.raises(ValueError, match="batch_size=0 must be a whole number"):
        prl.audit(compiled(), (X, LABELS), batch_size=0)


class TestNotFinite:
    """Also where the network makes a finite number of them, as ReLU does here."""

    @pytest.fixture
    def model(self):
        return compiled(middle=[keras.layers.Dense(8, "relu")])

    @pytest.mark.fault(6)
    def test_is_the_most_suspect(self, model):
        x = X.copy()
        x[:15] = np.nan
        table = prl.audit(model, (x, LABELS))
        assert np.isinf(table["score"][:15]).all() and (table["rank"][:15] <= 15).all()
        assert table["loss"][:15].isna().all()

    def test_counts_as_wrong(self, model):
        x = X.copy()
        x[:15] = np.nan
        estimate = prl.estimate_epsilon(model, (x, LABELS))
        good = prl.estimate_epsilon(model, (X[15:], LABELS[15:]))
        assert estimate == pytest.approx([0.25 + 0.75 * share for share in good])

    def test_counts_as_wrong_among_the_trusted(self, model):
        x = X.copy()
        x[:15] = np.nan
        assert prl.estimate_epsilon(model, (x, LABELS), (np.arange(N), LABELS)).estimate == 0.25


@pytest.mark.fault(8)
@pytest.mark.parametrize(
    "y, message",
    [
        (np.where(np.arange(N) == 41, 3, LABELS), r"at most 2 for 3 outputs; y\[41\] is 3"),
        (np.where(np.arange(N) == 41, -1, LABELS), r"y\[41\] is -1"),
        (LABELS + 0.5, "must be integers; y has dtype float64"),
        (LABELS.astype(str), "Write np.unique"),
    ],
)
@pytest.mark.parametrize("look", [prl.audit, prl.estimate_epsilon])
def test_labels_of_no_class_are_refused_with_their_place(look, y, message):
    with pytest.raises(ValueError, match=message):
        look(compiled(), (X, y), batch_size=16)


@pytest.mark.parametrize("look", [prl.audit, prl.estimate_epsilon, prl.score_examples])
def test_data_without_an_end_are_refused(look):
    class Endless(keras.utils.PyDataset):
        num_batches = None

    repeated = tf.data.Dataset.from_tensor_slices((X, LABELS)).batch(8).repeat()
    for data in (repeated, Endless()):
        with pytest.raises(ValueError, match="no end"):
            look(compiled(), data)
        with pytest.raises(ValueError, match="no end"):
            prl.SelectionRecord(data)


def test_a_list_is_that_of_the_inputs():
    inputs = [keras.Input((4,)), keras.Input((4,))]
    both = keras.Model(inputs, keras.layers.Dense(3)(keras.layers.Concatenate()(inputs)))
    model = prl.RobustModel(both, rule=prl.Trim(0.3))
    model.compile("sgd", LOGITS)
    record = prl.SelectionRecord(([X, 2 * X], LABELS))
    model.fit([X, 2 * X], LABELS, verbose=0, callbacks=[record])
    assert record.seen.all()
    table = prl.audit(model, ([X, 2 * X], LABELS), record)
    expected = keras.ops.softmax(both([X, 2 * X])).numpy()
    np.testing.assert_allclose(table.filter(like="probability_"), expected, rtol=1e-4)
    assert prl.score_examples(model, ([X, 2 * X], LABELS)).shape == (N,)


@pytest.mark.long
def test_networks_that_err_alike_are_not_trusted_to_know_it():
    """Two linear networks on a circle: they agree, and are wrong and unsure alike; all labels are right."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1000, 2)).astype("float32")
    y = (np.sum(x**2, axis=1) > 1.39).astype(int)
    networks = [
        keras.Sequential(
            [keras.Input((2,)), keras.layers.Dense(2, kernel_initializer=keras.initializers.GlorotUniform(i))]
        )
        for i in range(2)
    ]
    pair = prl.CoTeachingModel(*networks, rule=prl.Trim(0.1))
    pair.compile(keras.optimizers.Adam(0.01), LOGITS)
    pair.fit(x, y, epochs=8, verbose=0)
    estimate = prl.estimate_epsilon(pair, (x, y))
    assert estimate.estimate > 0.2 and estimate.low == 0


class Subclass(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(3)

    def call(self, x):
        return self.dense(x)


LOOKS = [prl.audit, prl.estimate_epsilon, prl.score_examples]
DATA = tf.data.Dataset.from_tensor_slices


@pytest.mark.fault(8, 24)
@pytest.mark.parametrize("is_robust", [False, True])
@pytest.mark.parametrize("is_subclass", [False, True])
@pytest.mark.parametrize("look", [*LOOKS, prl.check])
def test_labels_out_of_range_are_refused_with_their_place_for_any_network(look, is_subclass, is_robust):
    model = Subclass() if is_subclass else network()
    model = prl.RobustModel(model) if is_robust else model
    model.compile("sgd", LOGITS)
    for value in (3, -1):
        data = X, np.where(np.arange(N) == 41, value, LABELS)
        with pytest.raises(ValueError, match=rf"Class labels must be.*y\[41\] is {value}"):
            report = look(model, data) if look is prl.check else look(model, data, batch_size=16)
            raise ValueError(str(report))  # of `check`


@pytest.mark.fault(24)
@pytest.mark.parametrize("look", [*LOOKS, prl.check, lambda model, data: prl.SelectionRecord(data)])
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (DATA((X, LABELS)), r"single examples.*dataset\.batch"),
        (DATA((X, np.eye(3)[LABELS])), r"x has 4, y has 3 rows"),
        (DATA((X, LABELS, np.ones(N))), r"single examples.*dataset\.batch"),
        ((X, LABELS[:5]), r"x has 60, y has 5 rows"),
        ((X, LABELS, np.ones(5)), r"x has 60, y has 60, sample_weight has 5 rows"),
        (DATA((X[None], LABELS[None, :50])), r"x has 60, y has 50 rows"),
    ],
)
def test_single_examples_and_unequal_lengths_are_refused(look, data, message):
    with pytest.raises(ValueError, match=message):
        report = look(compiled(), data)
        raise ValueError(str(report))  # of `check`


@pytest.mark.fault(24)
@pytest.mark.parametrize("look", [*LOOKS, lambda model, data: prl.SelectionRecord(data)])
def test_arrays_of_unequal_lengths_for_several_inputs_are_refused(look):
    with pytest.raises(ValueError, match=r"cut into batches by their rows.*x has 60 and 4, y has 60 rows"):
        look(compiled(), ([X, X[:4]], LABELS))


ONE_HOT = keras.losses.CategoricalCrossentropy(from_logits=True)


@pytest.mark.fault(8)
class TestLabelsOfNoClass:
    """A one-hot row of zeros, of several ones, or of equal shares: no class, and not class 0."""

    ODD = ((0, 0, 0), (1, 1, 0), (0, 0.5, 0.5), (1, 1, 1), (0.2, 0.3, 0.5))
    Y = np.concatenate([ODD, np.eye(3)[LABELS[5:]]]).astype("float32")

    def test_have_no_score_and_count_for_nothing(self):
        model = compiled(ONE_HOT)
        table = prl.audit(model, (X, self.Y), epsilon=0.5)
        assert table["given"][:5].tolist() == [-1, -1, -1, -1, 2]
        assert table["score"][:4].isna().all() and np.isfinite(table["score"][4:]).all()
        assert (table["rank"][:4] > N - 4).all() and not table["is_flagged"][:4].any()
        assert prl.estimate_epsilon(model, (X, self.Y)) == prl.estimate_epsilon(model, (X[4:], self.Y[4:]))

    def test_train_as_in_keras_and_are_of_no_class_in_the_logs(self):
        model, plain = compiled(ONE_HOT), network()
        model.rule = prl.Trim(0.0)
        plain.set_weights(model.get_weights())
        for each in (model, plain):
            each.compile(keras.optimizers.SGD(0.1), ONE_HOT, run_eagerly=True)
            each.fit(X[:4], self.Y[:4], shuffle=False, verbose=0)
        for a, b in zip(model.get_weights(), plain.get_weights()):
            np.testing.assert_allclose(a, b, rtol=1e-5)
        assert model.kept_by_class is None or np.isnan(model.kept_by_class).all()

    def test_steps_without_a_class_have_no_row(self):
        y = np.eye(3, dtype="float32")[np.arange(12).reshape(4, 3) % 3]
        y[1, 2] = 0
        model = prl.RobustModel(keras.Sequential([keras.Input((3, 4)), keras.layers.Dense(3)]))
        model.compile("sgd", ONE_HOT)
        table = prl.audit(model, (X[:12].reshape(4, 3, 4), y))
        assert len(table) == 11 and (1, 2) not in table.index
        assert table["given_probability"].between(0, 1).all()
