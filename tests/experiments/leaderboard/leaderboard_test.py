"""The leaderboard: which runs it makes, its statistics, its page, and the program."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from prl_keras import files
from prl_keras.experiments.data.load import load
from prl_keras.experiments.leaderboard import cost, entries, page, standing
from prl_keras.experiments.leaderboard.entries import CLEAN, NOISES, Noise, Setting
from prl_keras.experiments.programs.leaderboard import leaderboard
from prl_keras.experiments.runs.config import RunConfig
from prl_keras.experiments.runs.models import build_model
from prl_keras.methods import METHODS

KNOWN = entries.entries()
SETTING = Setting("digits", Noise("symmetric", 0.5))


class TestEntries:
    def test_are_all_methods_for_classes_and_more(self):
        for name, row in METHODS.items():
            if "classification" in row.tasks:
                assert (KNOWN[name].method, KNOWN[name].ema) == (name, 0)
                assert KNOWN[name].told == ("true" if row.drops_a_fraction else "nothing")
        assert "huber" not in KNOWN
        assert KNOWN["co_prl_l auto"].told == "auto"
        assert KNOWN["standard EMA 0.999"].ema == 0.999
        assert KNOWN["standard AUM"].config(SETTING, 0).aum_cut

    def test_what_a_method_is_told(self):
        told = {name: entry.config(SETTING, 0).told_epsilon for name, entry in KNOWN.items()}
        assert (told["prl_l"], told["co_prl_l auto"], told["gce"]) == (0.5, "auto", 0.0)
        assert KNOWN["prl_l"].config(SETTING, 3).ramp_epochs == 8
        assert KNOWN["gce"].config(SETTING, 3).ramp_epochs == 0

    @pytest.mark.parametrize("name", ["gmm", "co_teaching_plus"])
    def test_who_begins_with_plain_training(self, name):
        model = build_model(KNOWN[name].config(SETTING, 0), load("digits"))  # 8 epochs of 12 steps
        assert (model if name == "co_teaching_plus" else model.rule).warm_up_steps == 96

    def test_a_seed_is_that_of_the_network_and_of_the_noise(self):
        config = KNOWN["prl_l"].config(SETTING, 3)
        assert (config.seed, config.noise_seed, config.network) == (3, 3, "mlp")

    def test_clean_labels_are_for_entries_that_do_not_know_so(self):
        found = entries.configs(KNOWN.values(), [Setting("digits", CLEAN)], [0])
        names = {name for name, _ in found.values()}
        assert {"standard", "gce", "bare", "auto"} <= names
        assert not {"prl_l", "spl", "co_teaching"} & names

    def test_half_of_two_classes_is_no_setting(self):
        assert Noise("symmetric", 0.5) in {setting.noise for setting in entries.settings(["wine"])}
        found = {setting.noise for setting in entries.settings(["breast_cancer"])}
        assert found == {*NOISES, CLEAN} - {Noise("symmetric", 0.5)}

    def test_all_runs_differ(self):
        noisy, clean = len(KNOWN) * len(NOISES), sum(entry.told != "true" for entry in KNOWN.values())
        assert len(entries.configs(KNOWN.values(), entries.settings())) == 5 * 3 * (noisy + clean)


def content(name, seed, accuracy, changed=None, setting=SETTING, memorized=0.5):
    """A finished run with these accuracies, in [0, 1], of its epochs."""
    epochs = len(accuracy)
    history = pd.DataFrame({
        "epoch": range(1, epochs + 1), "seconds": 1.0, "test_accuracy": accuracy,
        "changed": np.linspace(0.9, 0.1, epochs) if changed is None else changed,
    })  # fmt: skip
    if setting.noise.epsilon:
        history["memorized"] = memorized
    config = KNOWN[name].config(setting, seed)
    return {"config": config, "history": history, "source": "made up", "device": "CPU", "place": "nowhere"}


def wanted(settings=(SETTING,)):
    return entries.configs(KNOWN.values(), settings)


class TestRunValues:
    def test_the_three_epochs(self):
        accuracy = [0.5, 0.6, 0.9, 0.7, 0.65, 0.6, 0.55, 0.5]
        # From the second epoch on, averages of three: .5 .4 .3 .23 .27 .33 .4, lowest at the fifth epoch.
        changed = [1.0, 0.5, 0.3, 0.1, 0.3, 0.4, 0.3, 0.5]
        found = standing.run_values([content("prl_l", 0, accuracy, changed)], wanted()).iloc[0]
        assert (found["last"], found["best"], found["best_epoch"]) == (50, 90, 3)
        assert (found["chosen_epoch"], found["chosen"]) == (5, 65)
        assert found["memorized"] == 50

    def test_without_a_minimum_the_last_epoch_is_chosen(self):
        found = standing.run_values([content("prl_l", 0, [0.9, 0.8, 0.7])], wanted()).iloc[0]
        assert (found["chosen_epoch"], found["chosen"]) == (3, pytest.approx(70))

    def test_other_runs_are_left_out(self):
        other = content("prl_l", 0, [0.5])
        other["config"] = RunConfig(epochs=1)
        assert standing.run_values([other], wanted()).empty


def written(folder, levels, costs):
    """The page and its table: runs of two seeds, on clean labels those of entries that do not know so."""
    settings = SETTING, Setting("digits", CLEAN)
    contents = [
        content(name, seed, [0.3, level + seed / 1000], setting=setting)
        for name, level in levels.items()
        for setting in settings
        for seed in (0, 1)
        if setting.noise.epsilon or KNOWN[name].told != "true"
    ]
    return page.write_page(contents, wanted(settings), KNOWN, costs, folder, "make")


LEVELS = {"standard": (0.5, 0.6), "prl_l": (0.8, 0.7), "gce": (0.4, 0.8)}


class TestStanding:
    OTHER = Setting("digits", Noise("pairflip", 0.45))

    @pytest.fixture(scope="class")
    def runs(self):
        contents = [
            content(name, seed, [0.3, level + noise], setting=setting)
            for name, levels in LEVELS.items()
            for setting, level in zip((SETTING, self.OTHER), levels)
            for seed, noise in enumerate((-0.01, 0.0, 0.01) if name != "gce" else (0.01, -0.01, 0.0))
        ]
        return standing.run_values(contents, wanted((SETTING, self.OTHER)))

    def test_means_gains_and_the_worst_setting(self, runs):
        found = standing.standing(runs, [SETTING.label, self.OTHER.label]).set_index("entry")
        assert list(found.index) == ["prl_l", "gce", "standard"]
        assert found["last"].tolist() == pytest.approx([75, 60, 55])
        assert found["gain"].tolist() == pytest.approx([20, 5, 0])
        assert found["worst"].tolist() == pytest.approx([10, -10, 0])
        assert found["runs"].tolist() == [6, 6, 6]

    def test_p_is_that_of_a_paired_test_and_adjusted(self, runs):
        found = standing.standing(runs, [SETTING.label, self.OTHER.label]).set_index("entry")
        by_pair = runs.set_index(["setting", "seed", "entry"])["last"].unstack()
        p = {name: stats.ttest_rel(by_pair[name], by_pair["standard"]).pvalue for name in ("prl_l", "gce")}
        for name, value in p.items():
            assert found.loc[name, "p"] == pytest.approx(value)
        assert found.loc["prl_l", "p_bh"] == pytest.approx(2 * p["prl_l"])
        assert np.isnan(found.loc["standard", "p"])

    def test_only_the_given_settings_count(self, runs):
        found = standing.standing(runs, [self.OTHER.label]).set_index("entry")
        assert found["last"].to_dict() == pytest.approx({"gce": 80, "prl_l": 70, "standard": 60})

    def test_differences_by_setting(self, runs):
        found = standing.differences(runs, "gce", "standard", "last", "last").set_index("setting")
        assert found["difference"].to_dict() == pytest.approx({SETTING.label: -10, self.OTHER.label: 20})
        assert found.loc[SETTING.label, "ci_high"] < 0 < found.loc[self.OTHER.label, "ci_low"]
        assert found["pairs"].tolist() == [3, 3]

    def test_the_page_says_who_loses_to_plain_training(self, tmp_path):
        levels = {"standard": 0.6, "prl_l": 0.5, "gce": 0.7}
        paths = written(tmp_path / "page", levels, {"prl_l": 1.25})
        text = paths[0].read_text()
        line = next(line for line in text.splitlines() if line.startswith("| digits, symmetric 50"))
        assert "1: `prl_l`" in line and "`gce`" not in line
        assert "has 60.05 at its chosen epoch: below it end `prl_l`." in text
        order = [line.split("`")[1] for line in text.splitlines() if line.startswith("| `")][:3]
        assert order == ["gce", "standard", "prl_l"]
        assert "| `prl_l`    | true epsilon |" in text and "1.25 |" in text
        assert "10.00 (10.00 to 10.00)" in text.split("## Clean labels")[1]
        assert pd.read_csv(paths[1]).set_index(["entry", "noise"])["seeds"].eq(2).all()

    def test_the_page_compares_the_default(self, tmp_path):
        levels = {"standard": 0.6, "prl_l": 0.9, "spl": 0.8, "auto": 0.85}
        text = written(tmp_path, levels, {})[0].read_text()
        part = text.split("## The default")[1].split("##")[0]
        assert "less `prl_l`" in part and "spl" not in part
        lines = {
            line.split(" | ")[0].strip("| "): line for line in part.splitlines() if line.startswith("| ")
        }
        for name in ("digits, symmetric 50", "mean of the noisy settings"):
            assert "25.00" in lines[name] and "-5.00" in lines[name]
        assert "25.00" in lines["digits, clean"] and lines["digits, clean"].split("|")[3].strip() == "-"
        assert "`auto`" in text.split("## Without epsilon")[1].split("##")[0]
        assert "`prl_l`" not in text.split("## Without epsilon")[1].split("##")[0]

    def test_nothing_to_report(self, tmp_path):
        with pytest.raises(ValueError, match="No run of the leaderboard is finished"):
            page.write_page([], wanted(), KNOWN, {}, tmp_path, "make")


@pytest.mark.long
def test_costs_are_medians_of_ratios_within_a_round(monkeypatch):
    monkeypatch.setattr(cost, "_SHAPE", (256, 64))
    measure, rounds = cost._epoch, iter([1, 1, 1, 1, 1, 3, 10, 20, 2, 20])  # the first epoch of each traces

    def scripted(*arguments):
        assert measure(*arguments) > 0
        return next(rounds)

    monkeypatch.setattr(cost, "_epoch", scripted)
    found = cost.relative_costs([KNOWN["standard"], KNOWN["co_prl_l auto"]], rounds=4)
    assert found == {"standard": 1, "co_prl_l auto": 2.5}


def test_the_trainings_of_the_cut_cost_too(monkeypatch):
    monkeypatch.setattr(cost, "_SHAPE", (256, 64))
    rounds = iter([1, 1, 2, 4])  # the first epoch of each traces
    monkeypatch.setattr(cost, "_epoch", lambda *arguments: next(rounds))
    assert cost.relative_costs([KNOWN["standard AUM"]], rounds=1) == {"standard": 1, "standard AUM": 6}


def test_only_seeds_that_are_complete_are_compared():
    chosen = {name: KNOWN[name] for name in ("standard", "prl_l")}
    some = entries.configs(chosen.values(), [SETTING], [0, 1])
    contents = [content("standard", 0, [0.5]), content("prl_l", 0, [0.6]), content("prl_l", 1, [0.9])]
    runs = standing.run_values(contents, some)
    found = standing.complete(runs, some)
    assert found[["entry", "seed"]].values.tolist() == [["standard", 0], ["prl_l", 0]]
    assert len(standing.complete(runs[1:], some)) == 2  # none is


def test_the_interval_of_a_setting():
    runs = standing.run_values([content("prl_l", seed, [0.5 + seed / 10]) for seed in (0, 1, 2)], wanted())
    found = standing.cells(runs).iloc[0]
    half = stats.t.ppf(0.975, 2) * 10 / 3**0.5
    assert (found["low"], found["high"]) == pytest.approx((60 - half, 60 + half))


class TestProgram:
    def run(self, output_dir, **options):
        return leaderboard(output_dir, ["standard"], ["digits"], ["0"], **options)

    def test_makes_the_missing_runs_and_the_page(self, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr(entries, "EPOCHS", {**entries.EPOCHS, "digits": 2})
        assert not self.run(tmp_path, dry_run=True)
        assert "6 runs to do of 6" in capsys.readouterr().out and not (tmp_path / "runs").exists()
        assert not self.run(tmp_path)
        text = (tmp_path / "README.md").read_text()
        assert "Runs: 6 of " in text and "digits 0" in text and "| `standard`" in text
        assert not self.run(tmp_path)
        assert "0 runs to do of 6" in capsys.readouterr().out
        (tmp_path / "README.md").unlink()
        assert not self.run(tmp_path, report=True)
        assert (tmp_path / "README.md").read_text() == text

    @pytest.mark.long
    def test_costs_of_other_entries_stay(self, tmp_path, monkeypatch):
        monkeypatch.setattr(entries, "EPOCHS", {**entries.EPOCHS, "digits": 1})
        assert not self.run(tmp_path)
        (tmp_path / "cost.json").write_text('{"standard": 2.0, "gce": 1.5}')
        monkeypatch.setattr(cost, "relative_costs", lambda chosen: {entry.name: 1.0 for entry in chosen})
        assert not self.run(tmp_path, cost=True)
        assert files.read_json(tmp_path / "cost.json") == {"standard": 1.0, "gce": 1.5}

    @pytest.mark.long
    def test_other_data_get_a_page_of_their_own(self, tmp_path, monkeypatch):
        monkeypatch.setattr(entries, "EPOCHS", {**entries.EPOCHS, "wine": 2})
        assert not leaderboard(tmp_path, ["standard", "auto"], ["wine"], ["0"])
        text = (tmp_path / "README.md").read_text()
        assert "--datasets=wine --output_dir=DIR --entries=standard,auto`" in text
        assert "Runs: 12 of 60; " in text and "wine 0" in text and "digits" not in text

    @pytest.mark.parametrize(
        "options, message",
        [
            ({"entries": ["prl"]}, r"--entries=prl is unknown; choose of standard, "),
            ({"datasets": ["mnist"]}, r"--datasets=mnist is unknown; choose of digits, "),
            ({"seeds": ["x"]}, r"--seeds=x must be whole numbers"),
            ({"report": True, "cost": True}, r"write one of them"),
            ({"shard": "3/2"}, r"--shard=3/2 must be i/n"),
        ],
    )
    def test_bad_flags(self, tmp_path, options, message):
        with pytest.raises(ValueError, match=message):
            leaderboard(tmp_path, **options)
