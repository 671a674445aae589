"""The benchmark of finding wrong labels: what a case measures, and that none is measured twice."""

import dataclasses
import json

import numpy as np
import pytest

from prl_keras.experiments.audits import label_errors
from prl_keras.experiments.audits.label_errors import CASES, measure
from prl_keras.experiments.audits.tables import run_all, write_report

SETTING = ("digits", "pairflip", 0.3, 0)


@pytest.fixture
def short(monkeypatch):
    """Trainings of three epochs."""
    protocol = dataclasses.replace(label_errors.PROTOCOLS["digits", "cpu"], epochs=3, ramp_share=1 / 3)
    monkeypatch.setattr(label_errors, "PROTOCOLS", {**label_errors.PROTOCOLS, ("digits", "cpu"): protocol})


class TestMeasure:
    def test_a_training_on_all_the_data(self, short, tmp_path):
        pytest.importorskip("cleanlab", reason="requirements-peers.txt")
        result = measure("co_prl_l", *SETTING, tmp_path)
        assert result["trainings"] == 2 and result["achieved_epsilon"] == pytest.approx(0.3, abs=0.01)
        rankings = {"audit", "self_confidence", "score_examples", "times dropped", "margins, all epochs"}
        assert rankings <= set(result["rankings"])
        assert result["flags"]["true epsilon"]["flagged"] == pytest.approx(0.3, abs=0.01)
        flagged = result["flags"]["estimate"]["flagged"]
        assert flagged == pytest.approx(result["estimate"]["estimate"], abs=1e-3)
        for quality in result["rankings"].values():
            assert set(quality) == {"average_precision", "roc_auc", "precision_top"}
            assert 0.2 < quality["average_precision"] <= 1  # 0.3 of a ranking at random
        assert result["estimate"]["low"] <= result["estimate"]["estimate"] <= result["estimate"]["high"]
        assert result["trusted"]["low"] <= 0.3 <= result["trusted"]["high"]

    def test_plain_training_is_recorded_too(self, short, tmp_path):
        pytest.importorskip("cleanlab", reason="requirements-peers.txt")
        found = measure("standard", *SETTING, tmp_path)["rankings"]
        assert found["margins, all epochs"]["average_precision"] > 0.4 and "times dropped" not in found

    @pytest.mark.long
    def test_threshold_examples_rank_and_flag_every_example(self, short, tmp_path):
        result = measure("standard_threshold", *SETTING, tmp_path)
        epochs = {"margins, all epochs", "margins, first third", "margins, last third"}
        assert result["trainings"] == 2 and set(result["rankings"]) == set(result["flags"]) == epochs
        assert "estimate" not in result
        quality = result["rankings"]["margins, all epochs"]["average_precision"]
        flags = result["flags"]["margins, all epochs"]
        assert quality > 0.4 and 0 < flags["flagged"] < 1 and flags["recall"] > 0.5

    def test_folds_rank_every_example_once(self, short, tmp_path):
        pytest.importorskip("cleanlab", reason="requirements-peers.txt")
        result = measure("standard_2_folds", *SETTING, tmp_path)
        assert result["trainings"] == 1 and set(result["rankings"]) == {
            "self_confidence",
            "normalized_margin",
        }
        assert "estimate" not in result

    @pytest.mark.long
    def test_targets(self, short, tmp_path, monkeypatch):
        """The teacher in the place of the faces, with their protocol."""
        protocol = dataclasses.replace(label_errors.PROTOCOLS["celeb_a", "cpu"], epochs=5, learning_rate=0.01)
        monkeypatch.setattr(label_errors, "PROTOCOLS", {("teacher", "cpu"): protocol})
        result = measure("prl_l", "teacher", "uninoise", 0.2, 0, tmp_path)
        assert set(result["rankings"]) >= {"audit", "loss"}
        assert result["rankings"]["audit"]["roc_auc"] > 0.6

    def test_what_is_measured_is_read(self, short, tmp_path):
        made = {"rankings": {}, "mark": 1}
        (tmp_path / "digits-pairflip-0.3-prl_l-seed0.json").write_text(json.dumps(made))
        assert measure("prl_l", *SETTING, tmp_path) == made

    def test_clean_labels_have_no_ranking_but_an_estimate(self, short, tmp_path):
        pytest.importorskip("cleanlab", reason="requirements-peers.txt")
        result = measure("prl_l_told_more", "digits", "symmetric", 0.0, 0, tmp_path)
        assert result["achieved_epsilon"] == 0 and result["rankings"]["audit"]["average_precision"] is None
        assert "estimate" in result


def test_the_trainings_that_a_case_costs():
    assert {name: case.trainings for name, case in CASES.items()} == {
        "prl_l": 1, "prl_l_told_more": 1, "co_prl_l": 2, "co_prl_l_told_more": 2, "co_prl_l_auto": 2,
        "prl_l_5_folds": 4, "standard": 1, "standard_2_folds": 1, "standard_5_folds": 4,
        "standard_threshold": 2, "prl_l_threshold": 2,
    }  # fmt: skip


def test_quality_is_that_of_scikit_learn():
    is_wrong = np.array([True, False, True, False] * 50)
    perfect = label_errors._quality(is_wrong, is_wrong.astype(float))
    assert perfect == {"average_precision": 1, "roc_auc": 1, "precision_top": 1}
    assert label_errors._quality(is_wrong, 1.0 - is_wrong)["precision_top"] == 0


def test_the_quality_of_flags():
    is_wrong, is_flagged = np.arange(10) < 4, (np.arange(10) >= 1) & (np.arange(10) < 6)
    found = label_errors._quality_of_flags(is_wrong, is_flagged)
    assert found == pytest.approx({"flagged": 0.5, "precision": 3 / 5, "recall": 3 / 4, "f1": 6 / 9})
    none = label_errors._quality_of_flags(is_wrong, np.zeros(10, bool))
    assert none == {"flagged": 0, "precision": None, "recall": 0, "f1": 0}
    assert label_errors._quality_of_flags(np.zeros(10, bool), is_flagged)["recall"] is None


class TestReport:
    def write(self, directory, case, seed, value, epsilon=0.2):
        estimate = {"estimate": 0.21, "low": 0.1, "high": 0.3}
        result = {
            "dataset": "digits", "corruption": "symmetric", "epsilon": epsilon, "seed": seed, "case": case,
            "trainings": CASES[case].trainings, "achieved_epsilon": epsilon,
            "rankings": {"audit": dict.fromkeys(("average_precision", "roc_auc", "precision_top"), value)},
            "flags": {"estimate": {"flagged": 0.21, "precision": value, "recall": value, "f1": value}},
            "estimate": estimate, "trusted": {**estimate, "high": 0.15},
        }  # fmt: skip
        (directory / f"{case}-{seed}-{epsilon}.json").write_text(json.dumps(result))

    def test_has_means_over_the_seeds_and_says_which_intervals_missed(self, tmp_path):
        for seed, value in enumerate((0.5, 0.7)):
            self.write(tmp_path, "prl_l", seed, value)
            self.write(tmp_path, "prl_l", seed, value + 0.1, epsilon=0.4)
        write_report(tmp_path, tmp_path / "report.md")
        text = (tmp_path / "report.md").read_text()
        assert "means over 2 seeds" in text
        assert text.index("F1 of the flags") < text.index("Epsilon, in short")
        line = next(line for line in text[text.index("F1 of") :].splitlines() if "prl_l: estimate" in line)
        assert [cell.strip() for cell in line.split("|")[2:-1]] == ["1", "0.600", "0.700", "0.650"]
        line = next(line for line in text.splitlines() if line.startswith("| prl_l: audit"))
        assert [cell.strip() for cell in line.split("|")[2:-1]] == ["1", "0.600", "0.700", "0.650"]
        assert text.count("(missed)") == 6  # 0.4 is in no interval, and 0.2 in no trusted one

    def test_of_nothing_and_of_an_unknown_case(self, tmp_path):
        with pytest.raises(ValueError, match="holds no results"):
            write_report(tmp_path, tmp_path / "report.md")
        with pytest.raises(ValueError, match="choose from prl_l"):
            run_all("digits", ["symmetric"], [0.2], [0], ["best"], tmp_path)
