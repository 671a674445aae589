"""A folder with a search of other settings: no result of it is taken for one of these."""

import keras
import keras_tuner
import pytest
from small_search import LOSS, examples, make_network

from prl_keras.tuning.final import train_on_all
from prl_keras.tuning.hypermodel import RobustHyperModel
from prl_keras.tuning.objectives import resolve_objective
from prl_keras.tuning.tuner import make_tuner


def network(rate=0.1, **layer):
    def make():
        layers = [keras.layers.Dropout(rate), keras.layers.Dense(3, **layer)]
        return keras.Sequential([keras.Input((4,)), *layers])

    return make


BASE = {"make_network": network(), "loss": LOSS, "optimizer": lambda rate: keras.optimizers.SGD(rate)}
OTHERS = {
    "loss": {"loss": keras.losses.SparseCategoricalCrossentropy()},
    "optimizer": {"optimizer": lambda rate: keras.optimizers.SGD(rate, momentum=0.9, nesterov=True)},
    "regularizer": {"make_network": network(kernel_regularizer="l2")},
    "rate": {"make_network": network(rate=0.5)},
    "frozen": {"make_network": network(trainable=False)},
}


def hypermodel(**changes):
    return RobustHyperModel(**{**BASE, "epsilon": [0.1], **changes})


def tuner_of(model, directory):
    return make_tuner("grid", model, "val_loss", directory, epochs=1)


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    directory = tmp_path_factory.mktemp("searched")
    tuner_of(hypermodel(), directory / "search").search(*examples(), verbose=0)
    train_on_all(hypermodel(), chosen(), *examples(), directory / "final", epochs=1, verbose=False)
    return directory


def chosen():
    hp = keras_tuner.HyperParameters()
    hp.Choice("epsilon", [0.1])
    return hp


@pytest.mark.fault(59)
@pytest.mark.parametrize("name", OTHERS)
def test_a_folder_of_other_settings_is_refused(name, searched):
    model = hypermodel(**OTHERS[name])
    with pytest.raises(ValueError, match=r"is another: (loss|optimizer|network)\b.* was .*, is now"):
        tuner_of(model, searched / "search").search(*examples(), verbose=0)
    with pytest.raises(ValueError, match=r"is another: (loss|optimizer|network)\b.* was .*, is now"):
        train_on_all(model, chosen(), *examples(), searched / "final", epochs=1, verbose=False)


@pytest.mark.fault(59)
def test_a_folder_of_another_ramp_is_refused(tmp_path):
    tuner_of(hypermodel(ramp_epochs=1, train_size=48), tmp_path).search(*examples(), verbose=0)
    with pytest.raises(ValueError, match="train_size was 48, is now 6"):
        tuner_of(hypermodel(ramp_epochs=1, train_size=6), tmp_path)


def test_the_same_settings_made_anew_go_on(searched):
    again = {"make_network": network(), "optimizer": lambda rate: keras.optimizers.SGD(rate)}
    tuner = tuner_of(hypermodel(**again), searched / "search")
    tuner.search(*examples(), verbose=0)
    assert len(tuner.oracle.trials) == 1


@pytest.mark.parametrize(
    "direction, name", [("maximum", "val_mine"), ("max", "val_loss"), ("min", "val_accuracy")]
)
def test_a_direction_that_looks_for_the_worst_is_refused(direction, name):
    with pytest.raises(ValueError, match=f"The direction of {name} is '{direction}'; write '"):
        resolve_objective(keras_tuner.Objective(name, direction))


def test_what_make_tuner_and_the_space_cannot_take_is_refused(tmp_path):
    with pytest.raises(ValueError, match="must be a RobustHyperModel"):
        tuner_of(lambda hp: make_network(), tmp_path)
    with pytest.raises(ValueError, match="write ramp_epochs and train_size"):
        hypermodel(ramp_steps=10)
