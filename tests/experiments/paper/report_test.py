"""The report: what it leaves out, that it is repeatable, its tables 4 and 6."""

import dataclasses
import json

import keras
import numpy as np
import pandas as pd
import pytest
from made_up_runs import LEVELS, ROW, csv_line, lines_of, page_of, row_configs, write_levels, write_run

from prl_keras.experiments.paper import figures
from prl_keras.experiments.paper.protocol import PROTOCOLS
from prl_keras.experiments.paper.report import report, report_protocols
from prl_keras.experiments.paper.tables import TABLES
from prl_keras.experiments.runs import results


@pytest.fixture
def runs(tmp_path):
    write_levels(tmp_path / "runs")
    return tmp_path / "runs"


class TestWhatIsLeftOut:
    def test_damaged_and_foreign_files_are_named_and_change_no_number(self, runs, tmp_path):
        report(TABLES[2], "cpu", runs, tmp_path / "before")
        found = row_configs(2, seeds=range(5))
        cut = write_run(runs, dataclasses.replace(found["spl", 0, 0], seed=7, noise_seed=7), 0.50)
        (cut / "history.csv").write_text((cut / "history.csv").read_text()[:-30])
        write_run(runs, found["spl", 0, 3], 0.99, scale="paper")
        write_run(runs, found["spl", 0, 4], 0.99, metric="r2_score")
        moved = write_run(runs, dataclasses.replace(found["spl", 0, 4], seed=9, noise_seed=9), 0.99)
        moved.rename(moved.with_name(moved.name.replace("seed9", "seed8")))
        _, problems = report(TABLES[2], "cpu", runs, tmp_path / "after")
        assert len(problems) == 4
        text = (tmp_path / "after" / "table2.md").read_text()
        for part in (
            f"{cut.name} is not the result", "of scale 'paper', not 'cpu'", "holds r2_score, not accuracy",
            "name is not that of its config",
        ):  # fmt: skip
            assert any(part in problem for problem in problems), part
            assert part in text.split("## Left out")[1], part
        assert str(tmp_path) not in text
        before, after = (tmp_path / name / "table2.csv" for name in ("before", "after"))
        assert before.read_bytes() == after.read_bytes()

    def test_runs_of_other_tables_and_protocols_are_passed_over(self, runs, tmp_path):
        report(TABLES[2], "cpu", runs, tmp_path / "before")
        spl = row_configs(2)["spl", 0, 0]
        for change in ({"epochs": spl.epochs + 1}, {"assumed_epsilon": 0.35}, {"learning_rate": 0.01},
                       {"noise_seed": 5}, {"corruption": "symmetric"}):  # fmt: skip
            write_run(runs, dataclasses.replace(spl, **change), 0.99)
        _, problems = report(TABLES[2], "cpu", runs, tmp_path / "after")
        assert problems == []
        for name in ("table2.md", "table2.csv", "figure3.png"):
            assert (tmp_path / "before" / name).read_bytes() == (tmp_path / "after" / name).read_bytes()

    def test_runs_of_another_precision_have_a_report_of_their_own(self, runs, tmp_path):
        report(TABLES[2], "cpu", runs, tmp_path / "before")
        write_run(runs, dataclasses.replace(row_configs(2)["spl", 0, 0], precision="bfloat16"), 0.99)
        report(TABLES[2], "cpu", runs, tmp_path / "after")
        report(TABLES[2], "cpu", runs, tmp_path / "half", "bfloat16")
        before, after, half = (
            (tmp_path / name / "table2.md").read_text() for name in ("before", "after", "half")
        )
        assert before == after and "Precision" not in before and "--precision" not in before
        assert "- Precision: layers compute in bfloat16" in half
        assert "--scale=cpu --precision=bfloat16`" in half
        assert csv_line(tmp_path / "half", "spl")["mean"] == pytest.approx(99, abs=1)
        assert csv_line(tmp_path / "half", "standard")["seeds"] == 0

    def test_nothing_to_report_says_how_to_make_it(self, runs, tmp_path):
        for directory, table in ((tmp_path / "none", TABLES[2]), (runs, TABLES[1])):
            with pytest.raises(
                ValueError, match=rf"{directory} has none of .*reproduce --table={table.number} --scale"
            ):
                report(table, "cpu", directory, tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_missing_runs_are_counted(self, runs, tmp_path):
        write_run(runs, row_configs(2, seeds=(9,))["spl", 0, 9], 0.5)  # a seed beyond the protocol's
        text = page_of(2, runs, tmp_path)
        there, total = sum(map(len, LEVELS.values())), len(TABLES[2].configs("cpu"))
        assert f"{total - there} of {total + 1} runs are missing." in text
        for config in row_configs(6, seeds=range(PROTOCOLS["cifar10", "cpu"].seeds)).values():
            write_run(runs, config, 0.5)
        assert "All 6 runs are there." in page_of(6, runs, tmp_path)


class TestFiles:
    def test_the_same_results_give_the_same_bytes(self, runs, tmp_path):
        first, _ = report(TABLES[2], "cpu", runs, tmp_path / "a")
        second, _ = report(TABLES[2], "cpu", runs, tmp_path / "b")
        assert [path.name for path in first] == ["table2.md", "table2.csv", "figure3.png"]
        for one, other in zip(first, second, strict=True):
            assert one.read_bytes() == other.read_bytes()
        assert {path.name for path in (tmp_path / "a").iterdir()} == {path.name for path in first}
        write_run(runs, row_configs(2)["prl_l", 0, 0], 0.30)
        third, _ = report(TABLES[2], "cpu", runs, tmp_path / "c")
        for one, other in zip(first, third, strict=True):
            assert one.read_bytes() != other.read_bytes()

    @pytest.mark.daily("3-*")
    @pytest.mark.parametrize(("number", "row", "method", "metric", "picture"), [
        (1, "linadv: 10", "prl_g", "r2_score", "figure2.png"), (2, ROW, "spl", "accuracy", "figure3.png"),
        (3, ROW, "co_prl_l", "accuracy", "table3.png"),
    ])  # fmt: skip
    def test_pictures_are_small_pngs(self, tmp_path, number, row, method, metric, picture):
        write_run(tmp_path / "runs", row_configs(number, row)[method, 0, 0], 0.5, metric=metric)
        report(TABLES[number], "cpu", tmp_path / "runs", tmp_path)
        content = (tmp_path / picture).read_bytes()
        assert content.startswith(b"\x89PNG") and len(content) < 300_000
        assert b"Software" not in content

    @pytest.mark.daily("levels0-*")
    @pytest.mark.parametrize(("levels", "half"), [
        ((0.7, 0.9), 0.1),  # the range
        ((0.7, 0.9, 0.8), 4.302653 * 0.1 / np.sqrt(3)),  # t of 2 degrees of freedom, 97.5%
    ])  # fmt: skip
    def test_curves_are_means_over_seeds_and_what_lies_below_is_named(
        self, tmp_path, monkeypatch, levels, half
    ):
        drawn = []
        monkeypatch.setattr(figures.plt, "close", drawn.append)
        found = row_configs(1, "linadv: 40", range(3))
        for method, values in {"prl_g": levels, "huber": (0.1, 0.2), "standard": (-9, -8)}.items():
            for seed, level in enumerate(values):
                write_run(tmp_path / "runs", found[method, 0, seed], level, spread=0, metric="r2_score")
        report(TABLES[1], "cpu", tmp_path / "runs", tmp_path)
        panels = {axis.get_title(): axis for axis in drawn[0].axes}
        assert list(panels) == [row.label for row in TABLES[1].rows]
        axis = panels["linadv: 40"]
        assert [line.get_ydata()[-1] for line in axis.lines] == pytest.approx([0.15, 0.8])
        assert [line.get_color() for line in axis.lines] == [figures.COLORS[n] for n in ("huber", "prl_g")]
        vertices = axis.collections[1].get_paths()[0].vertices
        band = vertices[vertices[:, 0] == found["prl_g", 0, 0].epochs, 1]
        assert (band.max(), band.min()) == pytest.approx((0.8 + half, 0.8 - half), abs=1e-3)
        assert axis.get_ylim()[0] == -0.2
        texts = {title: axis.texts[0].get_text() for title, axis in panels.items()}
        assert texts.pop("linadv: 40") == "below: Standard" and set(texts.values()) == {"no runs"}

    def test_data_without_a_run_have_no_panels(self, runs, tmp_path, monkeypatch):
        drawn = []
        monkeypatch.setattr(figures.plt, "close", drawn.append)
        report(TABLES[2], "cpu", runs, tmp_path)
        titles = [axis.get_title() for axis in drawn[0].axes]
        assert titles == [row.label for row in TABLES[2].rows if row.dataset == "cifar10"]

    def test_the_caption_says_where_the_numbers_come_from(self, runs, tmp_path):
        text = page_of(2, runs, tmp_path)
        config = row_configs(2)["spl", 0, 0]
        hours = sum(map(len, LEVELS.values())) * config.epochs * 2.0 / 3600
        for part in (
            "Scale: cpu", "Data: made up", f"{config.epochs} epochs of batches of 128",
            config.network, "all training and all test examples", "seeds 0, 1, 2", f"took {hours:.2f} hours",
            "`python -m binaries.reproduce --table=2 --scale=cpu`",
        ):  # fmt: skip
            assert part in text, part

    def test_runs_on_different_data_are_not_averaged(self, runs, tmp_path):
        path = results.path_of(runs, row_configs(2)["spl", 0, 0]) / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"source": "other"}))
        with pytest.raises(
            ValueError, match=r"different data, such as made up \(cifar10_.*; other \(cifar10_features-spl-"
        ):
            report(TABLES[2], "cpu", runs, tmp_path)


class TestSeconds:
    def test_medians_without_the_first_epoch_and_ratios_of_the_same_seed(self, tmp_path):
        found = row_configs(6, seeds=range(3))
        per_seed = {"standard": (10, 20, 30), "prl_g": (40, 60, 60), "prl_l": (15, 25, 60)}
        for method, values in per_seed.items():
            for seed, value in enumerate(values):
                config = found[method, 0, seed]
                assert config.epochs == 3
                seconds = [1000.0, value - 1, value + 1]
                write_run(tmp_path / "runs", config, 0.5, seconds=seconds)
        report(TABLES[6], "cpu", tmp_path / "runs", tmp_path)
        frame = pd.read_csv(tmp_path / "table6.csv").set_index("method")
        assert frame["seconds"].to_dict() == {"standard": 20, "prl_g": 60, "prl_l": 25}
        ratios = frame[["ratio", "ratio_low", "ratio_high"]]
        assert ratios.loc["prl_g"].tolist() == [3, 2, 4]
        assert ratios.loc["prl_l"].tolist() == [1.5, 1.25, 2]
        assert frame.loc["prl_g", ["paper_seconds", "paper_ratio"]].tolist() == [145.55, 3.93]
        line = lines_of((tmp_path / "table6.md").read_text(), "## Ours and the paper's")
        assert list(line) == [ROW]  # three lines of one row; the last is PRL(L)
        assert line[ROW]["ratio (range)"] == "1.50 (1.25 to 2.00)"

    def test_without_standard_there_is_no_ratio(self, tmp_path):
        config = row_configs(6)["prl_g", 0, 0]
        write_run(tmp_path / "runs", config, 0.5, seconds=7.0)
        report(TABLES[6], "cpu", tmp_path / "runs", tmp_path)
        frame = pd.read_csv(tmp_path / "table6.csv").set_index("method")
        assert frame.loc["prl_g", "seconds"] == 7 and np.isnan(frame.loc["prl_g", "ratio"])


def test_table_4_is_the_protocols_beside_the_paper(tmp_path):
    paths = report_protocols(tmp_path)
    assert [path.name for path in paths] == ["table4.md", "table4.csv"]
    frame = pd.read_csv(paths[1])
    assert list(zip(frame["dataset"], frame["scale"])) == [key for key in PROTOCOLS if key[0] != "digits"]
    for line in frame.to_dict("records"):
        protocol = PROTOCOLS[line["dataset"], line["scale"]]
        assert (line["batch_size"], line["learning_rate"]) == (protocol.batch_size, protocol.learning_rate)
        assert (line["epochs"], line["network"]) == (protocol.epochs, protocol.network)
        for name in ("batch_size", "learning_rate", "optimizer", "momentum"):
            assert line[name] == line[f"paper_{name}"]
        assert line["momentum"] == pytest.approx(keras.optimizers.Adam().beta_1)
    assert (
        lines_of(paths[0].read_text(), "# Table 4: Hyperparameters")["celeb_a"]["paper batch size"] == "512"
    )
