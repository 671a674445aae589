"""Training.fit: a model kept from another run starts as a fresh one does."""

import numpy as np
import pytest

from prl_keras.experiments.data.load import load
from prl_keras.experiments.runs.config import RunConfig
from prl_keras.experiments.runs.training import Training, summarize, trace_key

TEACHER = {"dataset": "teacher", "epochs": 2, "batch_size": 500, "ramp_epochs": 1}
DIGITS = {"dataset": "digits", "epochs": 1, "batch_size": 480, "train_size": 960, "test_size": 50}


def train(config, directory, models=None):
    data = load(config.dataset)
    training = Training(config, data, models)
    table = training.fit(directory)
    return training.model, table.drop(columns="seconds")


def runs_of(fields, method, kinds):
    return [
        RunConfig(**fields, method=method, corruption=kind, epsilon=epsilon, assumed_epsilon=0.3, seed=seed)
        for kind, epsilon, seed in kinds
    ]


@pytest.mark.parametrize(
    "fields, method, kinds",
    [
        (TEACHER, "prl_l", [("signflip", 0.3, 0), ("linadv", 0.2, 1)]),
        (TEACHER, "prl_g", [("signflip", 0.3, 0), ("uninoise", 0.3, 1)]),
        (TEACHER, "normclip", [("signflip", 0.3, 0), ("linadv", 0.2, 1)]),
        (DIGITS, "co_prl_l", [("symmetric", 0.3, 0), ("pairflip", 0.2, 1)]),
        (DIGITS, "decouple", [("symmetric", 0.3, 0), ("pairflip", 0.2, 1)]),
    ],
)
def test_a_kept_model_gives_what_a_fresh_one_gives(tmp_path, fields, method, kinds):
    first, second = runs_of(fields, method, kinds)
    fresh_model, fresh_table = train(second, tmp_path / "fresh")
    fresh = [np.copy(w) for w in fresh_model.get_weights()]
    models = {}
    kept, _ = train(first, tmp_path / "first", models)
    again, table = train(second, tmp_path / "again", models)
    assert again is kept
    assert table.equals(fresh_table)
    for one, other in zip(again.get_weights(), fresh, strict=True):
        np.testing.assert_array_equal(one, other)


def test_only_corruption_and_seeds_may_differ_between_runs_that_share_a_model():
    config = RunConfig("teacher", "prl_l", "signflip", 0.2)
    shared = RunConfig("teacher", "prl_l", "linadv", 0.3, assumed_epsilon=0.2, seed=4, noise_seed=9)
    assert trace_key(config) == trace_key(shared)
    for field, value in (("epsilon", 0.3), ("batch_size", 64), ("learning_rate", 0.1), ("method", "spl")):
        assert trace_key(config) != trace_key(RunConfig(**{**vars(config), field: value}))


def test_few_models_are_kept():
    models = {}
    data = load("teacher")
    for batch_size in (100, 200, 300, 400, 500, 600):
        Training(RunConfig("teacher", "standard", "signflip", 0.2, batch_size=batch_size), data, models)
    assert [key.batch_size for key in models] == [300, 400, 500, 600]


def test_the_sizes_of_the_config_are_those_of_the_data(tmp_path):
    training = Training(RunConfig(**DIGITS, corruption="pairflip", epsilon=0.25), load("digits"))
    assert training.targets.shape == (960,) and training.dataset.test_x.shape[0] == 50
    assert training.corruption_rate == 0.25


def test_checkpoints_can_be_rarer_than_epochs(tmp_path):
    data = load("teacher")
    config = RunConfig("teacher", "prl_l", "signflip", 0.2, epochs=3, batch_size=500)
    Training(config, data).fit(tmp_path / "rare", checkpoint_seconds=1000)
    Training(config, data).fit(tmp_path / "each", checkpoint_seconds=0)
    assert not (tmp_path / "rare" / "checkpoints").exists()
    assert len(list((tmp_path / "each" / "checkpoints").iterdir())) == 2


def test_the_summary_is_over_the_last_ten_epochs(tmp_path):
    config = RunConfig("teacher", "prl_l", "signflip", 0.2, epochs=12, batch_size=2000)
    table = Training(config, load("teacher")).fit(tmp_path)
    result = summarize(table, "regression")
    assert result["test_mean"] == pytest.approx(np.mean(table["test_r2_score"][2:]))
    assert result["test_std"] == pytest.approx(np.std(table["test_r2_score"][2:]))
    assert result["epochs"] == 12
