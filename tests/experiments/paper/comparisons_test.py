"""What a report says of its runs: means, intervals, tests and verdicts against NumPy and SciPy by hand."""

import numpy as np
import pandas as pd
import pytest
from made_up_runs import LEVELS, ROW, csv_line, lines_of, page_of, row_configs, write_levels, write_run
from scipy import stats

from prl_keras import METHODS
from prl_keras.experiments.paper import figures
from prl_keras.experiments.paper.protocol import PROTOCOLS
from prl_keras.experiments.paper.report import report
from prl_keras.experiments.paper.tables import TABLES


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    """They are most of a report's time; report_test.py draws them."""
    for name in ("plot_epochs", "plot_sensitivity"):
        monkeypatch.setattr(figures, name, lambda *args: args[-1].touch())


@pytest.fixture
def runs(tmp_path):
    write_levels(tmp_path / "runs")
    return tmp_path / "runs"


class TestCells:
    def test_mean_std_and_interval_are_those_of_numpy(self, runs, tmp_path):
        report(TABLES[2], "cpu", runs, tmp_path)
        line = csv_line(tmp_path, "prl_l")
        seeds = 100 * np.array(LEVELS["prl_l"])
        assert line["mean"] == pytest.approx(seeds.mean(), rel=1e-5)
        # Ten epochs of each seed, half of them 1 percent above its level and half below.
        pooled = np.concatenate([seeds - 1, seeds + 1])
        assert line["std"] == pytest.approx(np.std(pooled), rel=1e-5)
        half = 4.302653 * seeds.std(ddof=1) / np.sqrt(3)  # t of 2 degrees of freedom, 97.5%
        assert (line["ci_low"], line["ci_high"]) == pytest.approx(
            (seeds.mean() - half, seeds.mean() + half), rel=1e-5
        )
        assert (line["seeds"], line["scale"], line["source"]) == (3, "cpu", "made up")
        assert (line["paper_mean"], line["paper_std"]) == (71.42, 0.24)

    def test_one_seed_has_no_interval(self, tmp_path):
        write_run(tmp_path / "runs", row_configs(2)["prl_l", 0, 0], 0.6)
        report(TABLES[2], "cpu", tmp_path / "runs", tmp_path)
        line = csv_line(tmp_path, "prl_l")
        assert line["mean"] == pytest.approx(60) and np.isnan(line["ci_low"]) and line["seeds"] == 1
        assert f"| {ROW}" in (tmp_path / "table2.md").read_text()

    def test_r2_is_not_a_percentage_and_has_three_decimals(self, tmp_path):
        found = row_configs(1, "linadv: 40")
        write_run(tmp_path / "runs", found["standard", 0, 0], -32.1234, metric="r2_score")
        write_run(tmp_path / "runs", found["prl_g", 0, 0], 0.85678, spread=0, metric="r2_score")
        text = page_of(1, tmp_path / "runs", tmp_path)
        assert lines_of(text, "## Ours")["linadv: 40"]["PRL(G)"] == "**0.857 ± 0.000**"
        assert lines_of(text, "## Ours / paper")["linadv: 40"]["Standard"] == "-32.123 / -32.220"

    def test_layout_best_in_bold_fewer_seeds_and_missing(self, runs, tmp_path):
        text = page_of(2, runs, tmp_path)
        line = lines_of(text, "## Ours")[ROW]
        assert list(line) == [METHODS[name].title for name in TABLES[2].methods]
        assert line["Co-teaching"].startswith("**71.67 ± ") and line["Co-teaching"].endswith("**")
        assert [cell for cell in line.values() if "**" in cell] == [line["Co-teaching"]]
        assert line["Standard"] == "42.00 ± 2.24 (n=2)"
        assert line["Decouple"] == "-"
        assert lines_of(text, "## Ours")["CF10-sym-30"]["Standard"] == "-"
        total = len(TABLES[2].configs("cpu"))
        extra = sum(
            PROTOCOLS["cifar10_features", "cpu"].seeds <= s for v in LEVELS.values() for s in range(len(v))
        )
        there = sum(map(len, LEVELS.values()))
        assert f"{total + extra - there} of {total + extra} runs are missing." in text

    def test_what_looks_the_same_is_bold_together(self, tmp_path):
        found = row_configs(2)
        for method, level in (("spl", 0.5), ("prl_l", 0.6), ("co_prl_l", 0.60001)):
            write_run(tmp_path / "runs", found[method, 0, 0], level, spread=0)
        line = lines_of(page_of(2, tmp_path / "runs", tmp_path), "## Ours")[ROW]
        assert line["PRL(L)"] == line["Co-PRL(L)"] == "**60.00 ± 0.00**" and line["SPL"] == "50.00 ± 0.00"

    def test_a_run_that_is_not_finite_at_the_end_has_no_mean(self, runs, tmp_path):
        write_run(runs, row_configs(2)["co_teaching", 0, 0], 0.7, last=np.nan)
        text = page_of(2, runs, tmp_path)
        line = lines_of(text, "## Ours")[ROW]
        assert line["Co-teaching"] == "not finite ± -"
        assert line["Co-PRL(L)"].startswith("**71.33")
        assert "1 runs have last epochs that are not finite" in text

    def test_clean_targets_have_a_line_of_their_own(self, runs, tmp_path):
        clean = [config for config in TABLES[2].configs("cpu", [0]) if config.corruption == "none"]
        assert {config.dataset for config in clean} == {"cifar10_features", "cifar100_features"}
        for config, level in zip(clean, (0.9, 0.7), strict=True):
            write_run(runs, config, level, spread=0)
        text = page_of(2, runs, tmp_path)
        assert "Standard on clean targets of cifar100: 70.00 ± 0.00, 95% interval -, 1 seeds." in text
        assert "clean" not in lines_of(text, "## Ours")
        frame = pd.read_csv(tmp_path / "table2.csv").query("row.str.endswith('clean')").set_index("dataset")
        assert frame["mean"].to_dict() == {"cifar10": 90, "cifar100": 70}

    def test_table_3_has_a_column_for_each_epsilon_error(self, tmp_path):
        found = row_configs(3)
        assert len(found) == 5
        for (_, error, _), config in found.items():
            write_run(tmp_path / "runs", config, 0.6 + error, spread=0)
        line = lines_of(page_of(3, tmp_path / "runs", tmp_path), "## Ours / paper")[ROW]
        assert line == {
            "e - 0.1": "50.00 / 65.07", "e - 0.05": "55.00 / 70.07", "e": "60.00 / 73.78",
            "e + 0.05": "65.00 / 77.56", "e + 0.1": "70.00 / 79.36",
        }  # fmt: skip
        assert csv_line(tmp_path, "co_prl_l", number=3, error=-0.05)["mean"] == pytest.approx(55)


class TestWhatIsCompared:
    def test_p_values_are_those_of_scipy(self, runs, tmp_path):
        levels = {"prl_l": (0.81, 0.80, 0.85), "spl": (0.80, 0.78, 0.82)}
        write_levels(runs, levels, "CF10-sym-50")
        lines = lines_of(page_of(2, runs, tmp_path), "### PRL(L) minus SPL")
        first = stats.ttest_rel(LEVELS["prl_l"], LEVELS["spl"])
        second = stats.ttest_rel(levels["prl_l"], levels["spl"])
        low, high = (100 * value for value in first.confidence_interval(0.95))
        adjusted = stats.false_discovery_control([first.pvalue, second.pvalue])
        assert lines[ROW] == {
            "pairs": "3", "difference": "9.00", "95% interval": f"{low:.2f} to {high:.2f}",
            "p (t)": f"{first.pvalue:.2g}", "p (t, BH)": f"{adjusted[0]:.2g}", "p (Wilcoxon)": "-",
        }  # fmt: skip
        assert lines["CF10-sym-50"]["p (t, BH)"] == f"{adjusted[1]:.2g}" != f"{second.pvalue:.2g}"
        ours, theirs = ((*LEVELS[name], *levels[name]) for name in ("prl_l", "spl"))
        pooled = lines["all, by row and seed"]
        assert (pooled["pairs"], pooled["p (t)"]) == ("6", f"{stats.ttest_rel(ours, theirs).pvalue:.2g}")
        difference = np.round(np.subtract(ours, theirs), 9)
        assert pooled["p (Wilcoxon)"] == f"{stats.wilcoxon(difference).pvalue:.2g}"
        means = [np.mean(np.reshape(values, (2, 3)), axis=1) for values in (ours, theirs)]
        by_row = lines["all, by row"]
        assert (by_row["pairs"], by_row["p (t)"]) == ("2", f"{stats.ttest_rel(*means).pvalue:.2g}")

    def test_pairs_share_their_seed(self, tmp_path):
        found = row_configs(2, seeds=range(4))
        for seed in (0, 1, 2):
            write_run(tmp_path / "runs", found["prl_l", 0, seed], 0.6 + 0.1 * seed)
        for seed in (1, 2, 3):
            write_run(tmp_path / "runs", found["spl", 0, seed], 0.5 + 0.01 * seed**2)
        line = lines_of(page_of(2, tmp_path / "runs", tmp_path), "### PRL(L) minus SPL")[ROW]
        assert (line["pairs"], line["difference"]) == ("2", f"{100 * (0.19 + 0.26) / 2:.2f}")

    @pytest.mark.daily("*best*", "*behind*")
    @pytest.mark.parametrize(
        ("co_prl_l", "verdict", "best"),
        [((0.69, 0.71, 0.74), "within noise", "Co-teaching"), ((0.75, 0.76, 0.70), "best", "Co-PRL(L)"),
         ((0.695, 0.714, 0.725), "behind", "Co-teaching"), ((0.69,), "one seed", "Co-teaching")],
    )  # fmt: skip
    def test_verdicts(self, tmp_path, co_prl_l, verdict, best):
        write_levels(tmp_path / "runs", {"co_teaching": LEVELS["co_teaching"], "co_prl_l": co_prl_l})
        lines = lines_of(page_of(2, tmp_path / "runs", tmp_path), "## Is a PRL variant the best?")
        assert (lines[ROW]["the PRL variant is"], lines[ROW]["best"]) == (verdict, best)
        assert lines["CF10-sym-30"]["the PRL variant is"] == "missing"

    def test_best_and_last_epoch_and_what_is_memorized(self, tmp_path):
        found = row_configs(2, seeds=(0, 1))
        # In the last ten epochs 60 -+ 1 and 70 -+ 1: the best is the 41st epoch, the first of the high ones.
        for seed, level, memorized in ((0, 0.6, 0.25), (1, 0.7, 0.35)):
            write_run(tmp_path / "runs", found["prl_l", 0, seed], level, memorized=memorized)
        write_run(tmp_path / "runs", found["spl", 0, 0], 0.5, last=0.4)
        text = page_of(2, tmp_path / "runs", tmp_path)
        line = lines_of(text, "## Best and last epoch")[ROW]
        assert (line["PRL(L)"], line["SPL"]) == ("66.00 (41) / 64.00", "51.00 (41) / 40.00")
        assert lines_of(text, "## Memorized wrong labels")[ROW]["PRL(L)"] == "30.0"
        assert csv_line(tmp_path, "prl_l")["memorized"] == pytest.approx(30)
        assert np.isnan(csv_line(tmp_path, "spl")["memorized"])

    def test_agreement_with_the_paper(self, runs, tmp_path):
        text = page_of(2, runs, tmp_path)
        paper = (
            TABLES[2].paper().query("dataset == 'cifar10' and corruption == 'pairflip' and epsilon == 0.45")
        )
        paper = paper.set_index("method")["accuracy_mean"]
        means = [np.mean(LEVELS[name]) for name in LEVELS]
        rho = stats.spearmanr(means, paper[list(LEVELS)]).statistic
        tau = stats.kendalltau(means, paper[list(LEVELS)]).statistic
        assert tau < rho < 1
        lines = lines_of(text, "## Agreement with the paper")
        found = {"Spearman's rho": f"{rho:.2f}", "Kendall's tau": f"{tau:.2f}"}
        assert lines[ROW] == {"cells compared": "5", **found}
        assert lines["mean"] == {"cells compared": "", **found}  # of the one row that has runs
        # Ours has Co-teaching ahead, the paper Co-PRL(L); PRL(L) is ahead of SPL in both.
        assert f"- {ROW}: Co-PRL(L) and Co-teaching\n" in text
        assert f"- {ROW}: PRL(L) and SPL" not in text
