"""Searches and final trainings with damaged files or a full disk: a sentence, and nothing lost."""

import contextlib
import json
import resource
import shutil

import keras
import keras_tuner
import pytest
from small_search import LOSS, examples, hypermodel, search

from prl_keras import files
from prl_keras.tuning import report
from prl_keras.tuning.final import train_on_all
from prl_keras.tuning.hypermodel import RobustHyperModel


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    directory = tmp_path_factory.mktemp("whole")
    search(directory, examples(), kind="grid", max_trials=2, epochs=1, space={"epsilon": [0.1, 0.2]})
    train(directory / "final")
    return directory


@pytest.fixture
def place(whole, tmp_path):
    """A copy, to damage."""
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    return tmp_path


def go_on(place, **options):
    options = {"kind": "grid", "max_trials": 2, "epochs": 1, "space": {"epsilon": [0.1, 0.2]}, **options}
    return search(place, examples(), **options)


def train(directory, model=None, **options):
    model, hp = model or hypermodel(epsilon=0.3), keras_tuner.HyperParameters()
    model.values(hp)
    return train_on_all(model, hp, *examples(), directory, epochs=1, trainings=2, verbose=False, **options)


def contents(directory):
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def damages(text, names):
    """Every file that a cut, a lost field or a field of another kind makes."""
    value = json.loads(text)
    yield text[: len(text) // 2]
    yield "{}"
    for name in names:
        yield json.dumps({key: item for key, item in value.items() if key != name})
        yield json.dumps({**value, name: 5})


@pytest.mark.fault(45)
def test_a_damaged_oracle_is_named(place):
    path = place / "search" / "oracle.json"
    text = path.read_text()
    for damaged in damages(
        text, ("trials", "ongoing_trials", "start_order", "hyperparameters", "ordered_ids")
    ):
        path.write_text(damaged)
        before = contents(place)
        with pytest.raises(ValueError, match=r"oracle\.json is damaged: .*--overwrite"):
            go_on(place)
        assert contents(place) == before
    state = json.loads(text)
    del next(iter(state["trials"].values()))["hyperparameters"]
    path.write_text(json.dumps(state))
    with pytest.raises(ValueError, match=r"oracle\.json is damaged: KeyError: 'hyperparameters'"):
        go_on(place)


@pytest.mark.fault(45)
def test_a_damaged_file_of_the_tuner_harms_nothing(place):
    (place / "search" / "tuner0.json").write_text("{")
    assert len(go_on(place).oracle.trials) == 2


@pytest.mark.fault(45)
@pytest.mark.parametrize("field", ["trial", "execution", "epochs", "seconds", "metrics", None])
def test_a_damaged_execution_is_named(field, place):
    path = sorted(place.glob("search/trial_*/execution_0.json"))[-1]
    good = files.read_json(path)
    lost = json.dumps({key: value for key, value in good.items() if key != field})
    path.write_text(lost if field else lost[:50])
    with pytest.raises(
        ValueError, match=r"execution_0\.json is damaged: .* Remove .*: the training is repeated"
    ):
        report.executions(place / "search")


@pytest.mark.fault(45)
def test_a_damaged_execution_ends_no_trial_as_failed(place):
    """The search was killed when the last trial ran and its execution had ended."""
    path = place / "search" / "oracle.json"
    state = json.loads(path.read_text())
    name = state["end_order"].pop()
    state["trials"][name]["status"] = "RUNNING"
    state["ongoing_trials"] = {"tuner0": name}
    path.write_text(json.dumps(state))
    record = place / "search" / f"trial_{name}" / "execution_0.json"
    good = files.read_json(record)
    record.write_text(json.dumps({**good, "metrics": {}}))
    with pytest.raises(
        ValueError, match=r"execution_0\.json is damaged: it lacks the metric val_trimmed_loss"
    ):
        go_on(place)
    record.unlink()
    assert go_on(place).oracle.trials[name].status == "COMPLETED"
    assert files.read_json(record)["metrics"] == good["metrics"]


@pytest.mark.fault(45)
@pytest.mark.parametrize("field", ["training", "epochs", "seconds", "metrics"])
def test_a_damaged_final_training_is_named_and_removed_it_is_repeated(field, place):
    path = place / "final" / "training_1.json"
    good = files.read_json(path)
    path.write_text(json.dumps({key: value for key, value in good.items() if key != field}))
    before = contents(place)
    with pytest.raises(
        ValueError, match=r"training_1\.json is damaged: it lacks .* Remove .*: the training is"
    ):
        train(place / "final")
    assert contents(place) == before
    path.unlink()
    train(place / "final")
    assert files.read_json(path)["metrics"] == good["metrics"]


@pytest.mark.fault(45)
def test_damaged_weights_of_a_trial_are_named(place):
    tuner = go_on(place)
    for path in place.rglob("checkpoint*.h5"):
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"h5 is damaged or missing: .*Train anew with the trial's"):
        tuner.get_best_models()


@contextlib.contextmanager
def full_disk(size):
    """Files may have so many bytes and no more, which fails as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.fault(45)
def test_a_full_disk_in_the_final_trainings_is_a_sentence(tmp_path):
    """HDF5 would crash the process as it closes the file."""

    def wide():
        return keras.Sequential([keras.Input((4,)), keras.layers.Dense(2000), keras.layers.Dense(3)])

    model = RobustHyperModel(wide, loss=LOSS, metrics=["accuracy"], epsilon=0.3)
    with (
        full_disk(50_000),
        pytest.raises(OSError, match=r"training_0\.weights\.h5 cannot be written.*Make room"),
    ):
        train(tmp_path, model)
    assert [path.name for path in tmp_path.iterdir()] == ["settings.json"]
    _, record = train(tmp_path, model)
    assert record["metrics"]["train_trimmed_loss"] < 1
