"""The cut of the area under the margin, and the runs that train on what it leaves."""

import dataclasses
import types

import keras
import numpy as np
import pytest

from prl_keras.experiments.data.load import load
from prl_keras.experiments.runs import threshold_examples
from prl_keras.experiments.runs.config import RunConfig
from prl_keras.experiments.runs.training import Training

CONFIG = RunConfig("digits", "standard", "symmetric", 0.4, epochs=3, batch_size=64, network="mlp")


@pytest.fixture
def recorded(monkeypatch):
    """What stands in the place of the `SelectionRecord`s: random margins for each training."""
    made = []

    def record(data):
        _, labels = data
        margins = np.random.default_rng(len(made)).standard_normal((9, len(labels)))
        made.append(types.SimpleNamespace(labels=labels, margins=margins))
        return made[-1]

    monkeypatch.setattr(threshold_examples.prl, "SelectionRecord", record)
    monkeypatch.setattr(threshold_examples, "fit", lambda *arguments: None)
    return made


def test_each_training_judges_all_but_its_threshold_examples(recorded):
    data = load("digits")
    labels = np.random.default_rng(0).permutation(data.train_y)
    found = threshold_examples.below_threshold(CONFIG, data, labels)
    own = [np.flatnonzero(record.labels == 10) for record in recorded]
    assert [len(rows) for rows in own] == 2 * [len(labels) // 11] and not set(own[0]) & set(own[1])
    for record, rows in zip(recorded, own):
        assert (np.delete(record.labels, rows) == np.delete(labels, rows)).all()
    epochs = {"all epochs": slice(0, 9), "first third": slice(0, 3), "last third": slice(6, 9)}
    for name, part in epochs.items():
        means = [record.margins[part].mean(axis=0) for record in recorded]
        cuts = [np.percentile(mean[rows], 99) for mean, rows in zip(means, own)]
        for i in range(len(labels)):
            judges = [cuts[j] - means[j][i] for j in (0, 1) if i not in own[j]]
            assert found[name][i] == pytest.approx(sum(judges) / len(judges), abs=1e-5)


@pytest.mark.parametrize(
    "method, assumed, told",
    [("standard", 0.0, 1 / 11), ("prl_l", 0.4, 0.4 * 10 / 11 + 1 / 11), ("prl_l", "auto", "auto")],
)
def test_a_method_is_told_of_the_threshold_examples(recorded, monkeypatch, method, assumed, told):
    configs = []
    build = threshold_examples.build_model
    monkeypatch.setattr(
        threshold_examples, "build_model", lambda config, data: configs.append(config) or build(config, data)
    )
    config = dataclasses.replace(CONFIG, method=method, assumed_epsilon=assumed)
    data = load("digits")
    threshold_examples.below_threshold(config, data, data.train_y)
    for config in configs:
        assert config.told_epsilon == (told if told == "auto" else pytest.approx(told, abs=1e-3))


def test_a_run_trains_on_what_is_left_and_reports_on_all(tmp_path, monkeypatch):
    data = load("digits")
    whole = Training(CONFIG, data)
    below = np.where(np.arange(len(data.train_y)) % 3 == 0, 0.5, -0.5)
    monkeypatch.setattr(threshold_examples, "below_threshold", lambda *given: {"all epochs": below})
    cut = Training(dataclasses.replace(CONFIG, aum_cut=True), data, models={})
    kept = below < 0
    np.testing.assert_array_equal(cut.dataset.train_x, data.train_x[kept])
    np.testing.assert_array_equal(cut.targets, whole.targets[kept])
    np.testing.assert_array_equal(cut.is_corrupted, whole.is_corrupted[kept])
    assert cut.corruption_rate == whole.corruption_rate == pytest.approx(0.4, abs=0.01)
    seen = []
    monkeypatch.setattr(
        "prl_keras.experiments.runs.training.Memorized",
        lambda *given: seen.append(given) or keras.callbacks.Callback(),
    )
    table = cut.fit(tmp_path)
    assert len(table) == 3 and np.isfinite(table["loss"]).all()
    assert [len(part) for part in seen[0]] == 3 * [len(below)]


@pytest.mark.long
def test_wrong_labels_are_left_out(tmp_path):
    config = dataclasses.replace(CONFIG, epochs=15)
    whole, cut = (Training(dataclasses.replace(config, aum_cut=way), load("digits")) for way in (False, True))
    assert len(cut.targets) < len(whole.targets)
    assert cut.is_corrupted.mean() < 0.5 * whole.is_corrupted.mean()


def test_nothing_left_is_said(monkeypatch):
    monkeypatch.setattr(threshold_examples, "below_threshold", lambda *given: {"all epochs": np.ones(1437)})
    with pytest.raises(ValueError, match="leaves no example to train on"):
        Training(dataclasses.replace(CONFIG, aum_cut=True), load("digits"))


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"method": "prl_l"}, "aum_cut=True is for method='standard'"),
        ({"aum_cut": 1}, "aum_cut"),
        ({"dataset": "teacher", "corruption": "signflip"}, "aum_cut=True is for classes"),
    ],
)
def test_what_it_does_not_go_with(fields, message):
    with pytest.raises((ValueError, TypeError), match=message):
        config = dataclasses.replace(CONFIG, **{"aum_cut": True, **fields})
        Training(config, load(config.dataset))
