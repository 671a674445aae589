"""The setting that a search found, trained on all the data: which network is kept, and what a kill leaves."""

from unittest.mock import Mock

import keras
import keras_tuner
import numpy as np
import pytest
from small_search import LOSS, examples, hypermodel, make_network

import prl_keras as prl
from prl_keras import files
from prl_keras.tuning.final import train_on_all
from prl_keras.tuning.hypermodel import RobustHyperModel


@pytest.fixture(scope="module")
def data():
    x, y = examples()
    return x, prl.corrupt("pairflip", y, 0.3, np.random.default_rng(0)).targets


def train(directory, data, model=None, values=None, **options):
    hp = keras_tuner.HyperParameters()
    model = model or hypermodel(epsilon=(0.0, 0.5))
    model.values(hp)
    hp.values |= values or {"epsilon": 0.3}
    options = {"epochs": 2, "trainings": 3, "seed": 4, "verbose": False, **options}
    return train_on_all(model, hp, *data, directory, **options)


def records(directory, trainings):
    return [files.read_json(directory / f"training_{index}.json") for index in range(trainings)]


def lower_half_of_each_class(network, x, y):
    """Mean probability that the given label does not get: `train_trimmed_loss` by its definition."""
    missing = 1 - keras.ops.softmax(network.predict(x, verbose=0)).numpy()[np.arange(len(y)), y]
    kept = [sorted(missing[y == label])[: int(sum(y == label) / 2)] for label in np.unique(y)]
    return np.mean(np.concatenate(kept))


@pytest.mark.daily("prl_l")
@pytest.mark.parametrize("method", ["prl_l", "standard"])
def test_the_network_of_the_lowest_trimmed_loss_is_kept(method, data, tmp_path):
    model, record = train(tmp_path, data, hypermodel(epsilon=0.3, method=method), test_data=data)
    every = records(tmp_path, 3)
    losses = [each["metrics"]["train_trimmed_loss"] for each in every]
    assert len(set(losses)) == 3 and record == every[int(np.argmin(losses))]
    assert [each["seed"] for each in every] == [4, 5, 6]
    assert lower_half_of_each_class(model, *data) == pytest.approx(min(losses), rel=1e-5)
    logs = model.evaluate(*data, verbose=0, return_dict=True)
    assert record["metrics"]["test_accuracy"] == pytest.approx(logs["accuracy"])
    assert record["metrics"]["train_accuracy"] == pytest.approx(logs["accuracy"])


def test_each_is_plain_fit_on_all_the_data(data, tmp_path):
    space = {"epsilon": 0.3, "ramp_epochs": 2, "batch_size": 16}
    model, record = train(tmp_path, data, hypermodel(**space, train_size=48))
    keras.utils.set_random_seed(record["seed"])
    fresh = prl.build("prl_l", make_network, epsilon=0.3, ramp_steps=2 * 4, loss=LOSS, optimizer="adam")
    fresh.fit(*data, batch_size=16, epochs=2, verbose=0)
    for ours, plain in zip(model.network.get_weights(), fresh.network.get_weights()):
        np.testing.assert_allclose(ours, plain, atol=1e-6)


def test_what_has_ended_is_not_done_again(data, tmp_path):
    whole = train(tmp_path / "whole", data)
    train(tmp_path / "cut", data, trainings=1)
    path = tmp_path / "cut" / "training_0.json"
    files.write_json(path, {**files.read_json(path), "seconds": -1.0})
    model, record = train(tmp_path / "cut", data)
    assert files.read_json(path)["seconds"] == -1.0
    assert record["metrics"] == whole[1]["metrics"]
    np.testing.assert_equal(model.get_weights(), whole[0].get_weights())


def test_one_that_goes_nan_is_recorded_and_does_not_count(data, tmp_path):
    def make():  # of the seed: every other one has an infinite weight
        network = make_network()
        if np.random.randint(2**31) % 2:
            network.layers[0].bias.assign([np.inf, -np.inf, 0.0])
        return network

    model, record = train(tmp_path, data, RobustHyperModel(make, loss=LOSS, epsilon=0.3), trainings=5)
    failed = ["failure" in each for each in records(tmp_path, 5)]
    assert any(failed) and not all(failed) and "failure" not in record
    assert all(np.isfinite(weights).all() for weights in model.get_weights())


@pytest.mark.long
def test_the_network_is_that_of_the_record_wherever_it_was_killed(data, tmp_path, monkeypatch):
    """Killed when the weights of a better one are written and its record is not."""
    train(tmp_path / "all", data, trainings=6)
    losses = [record["metrics"]["train_trimmed_loss"] for record in records(tmp_path / "all", 6)]
    better = next(i for i in range(1, 6) if losses[i] < min(losses[:i]))
    train(tmp_path / "cut", data, trainings=better)
    write = files.write_json

    def killed(path, value):
        if path.name == f"training_{better}.json":
            raise KeyboardInterrupt
        write(path, value)

    monkeypatch.setattr(files, "write_json", killed)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", data, trainings=better + 1)
    monkeypatch.undo()
    model, record = train(tmp_path / "cut", data, trainings=better)
    assert record["metrics"]["train_trimmed_loss"] == min(losses[:better])
    assert lower_half_of_each_class(model, *data) == pytest.approx(min(losses[:better]), rel=1e-5)


@pytest.mark.long
def test_what_cannot_be_written_is_no_failed_training(data, tmp_path, monkeypatch):
    whole = train(tmp_path / "whole", data)
    with monkeypatch.context() as patched:
        patched.setattr(keras.Model, "save_weights", Mock(side_effect=OSError(28, "No space left on device")))
        with pytest.raises(OSError, match=r"cannot be written.*No space left"):
            train(tmp_path / "full", data)
    assert not list((tmp_path / "full").glob("training_*"))
    assert train(tmp_path / "full", data)[1]["metrics"] == whole[1]["metrics"]


def test_one_that_failed_is_tried_again(data, tmp_path):
    train(tmp_path, data, trainings=2)
    path = tmp_path / "training_1.json"
    good = files.read_json(path)
    files.write_json(path, {**{k: v for k, v in good.items() if k != "metrics"}, "failure": "out of memory"})
    train(tmp_path, data, trainings=2)
    assert files.read_json(path)["metrics"] == good["metrics"]


def test_a_subclass_trains_as_it_searches(data, tmp_path):
    class Twice(RobustHyperModel):
        def build(self, hp):
            self.built = getattr(self, "built", 0) + 1
            return super().build(hp)

        def fit(self, hp, model, x, y, **options):
            return super().fit(hp, model, np.concatenate([x, x]), np.concatenate([y, y]), **options)

    space = {"loss": LOSS, "metrics": ["accuracy"], "epsilon": 0.3}
    model, _ = train(tmp_path, data, Twice(make_network, **space), trainings=1, epochs=1)
    assert int(model.optimizer.iterations) == 1  # of batches of 128 in 120


def test_damaged_files_are_named(data, tmp_path):
    train(tmp_path, data, trainings=1)
    weights = next(tmp_path.glob("*.weights.h5"))
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"training_0.weights.h5 is damaged or missing.*Remove the folder"):
        train(tmp_path, data, trainings=1)
    (tmp_path / "training_0.json").write_text("{")
    with pytest.raises(ValueError, match=r"training_0.json is damaged"):
        train(tmp_path, data, trainings=2)


def test_if_all_fail_it_says_why(data, tmp_path):
    space = hypermodel(epsilon=0.3, learning_rate=1e39, optimizer=keras.optimizers.SGD, method="standard")
    with pytest.raises(ValueError, match=r"All trainings .* failed, .*train_trimmed_loss is nan"):
        train(tmp_path, data, space)


def test_trainings_of_other_data_or_values_are_refused(data, tmp_path):
    x, y = data
    train(tmp_path, data, trainings=1)
    for changed, words in (
        ({"data": (x, 2 - y)}, "data was '60 examples"),
        ({"values": {"epsilon": 0.1}}, "epsilon was 0.3, is now 0.1"),
        ({"epochs": 3}, "epochs was 2, is now 3"),
        ({"test_data": data}, "test_data was None"),
        ({"model": hypermodel(epsilon=0.3, optimizer=keras.optimizers.SGD)}, "optimizer was 'Adam'"),
    ):
        with pytest.raises(ValueError, match=words):
            train(tmp_path, **{"data": data, **changed})


def test_labels_out_of_range_are_refused_before_the_first_training(data, tmp_path):
    x, y = data
    with pytest.raises(ValueError, match=r"^Class labels must be at least 0, and at most 2 .* Renumber"):
        train(tmp_path / "none", (x, y + 1))
    with pytest.raises(ValueError, match=r"^test_data: Class labels"):
        train(tmp_path / "none", data, test_data=(x, y + 1))
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("options", [{"trainings": 0}, {"epochs": 0}, {"seed": -1}, {"trainings": True}])
def test_bad_arguments_are_refused(options, data, tmp_path):
    (name, value), *_ = options.items()
    with pytest.raises(ValueError, match=f"{name}={value}"):
        train(tmp_path / "none", data, **options)
    assert not (tmp_path / "none").exists()


def test_another_network_is_another_training(data, tmp_path):
    def network(width, activation):
        return lambda: keras.Sequential(
            [keras.Input((4,)), keras.layers.Dense(width, activation), keras.layers.Dense(3)]
        )

    def model(*layer):
        return RobustHyperModel(network(*layer), loss=LOSS, metrics=["accuracy"], epsilon=(0.0, 0.5))

    train(tmp_path, data, model(4, "relu"), trainings=1)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    for other in ((4, "tanh"), (8, "relu")):
        with pytest.raises(ValueError, match=r"another: network was .* is now"):
            train(tmp_path, data, model(*other), trainings=1)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_of_equal_ones_that_which_has_weights_is_given(data, tmp_path):
    """Training 0 failed, 1 ended well, and 0 again as well: what it says is equal, and it has no weights."""
    _, first = train(tmp_path, data, trainings=1)
    (tmp_path / "training_0.weights.h5").rename(tmp_path / "training_1.weights.h5")
    files.write_json(tmp_path / "training_1.json", {**first, "training": 1})
    model, record = train(tmp_path, data, trainings=2)
    assert record == {**first, "training": 1}
    assert lower_half_of_each_class(model, *data) == pytest.approx(
        first["metrics"]["train_trimmed_loss"], rel=1e-5
    )
