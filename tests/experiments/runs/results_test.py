"""Results of runs: what was cut, altered or made by something else is never read as a result."""

import dataclasses
import json
import math

import numpy as np
import pandas as pd
import pytest
from made_up_runs import write_folder

from prl_keras.experiments.runs import results
from prl_keras.experiments.runs.config import RunConfig

CONFIG = RunConfig("teacher", "prl_l", "signflip", 0.2, epochs=3, batch_size=500)
OTHER = RunConfig("teacher", "spl", "signflip", 0.2, epochs=3)
HISTORY = pd.DataFrame({
    "epoch": [1, 2, 3], "seconds": [0.51, 0.2, 0.2], "loss": [1.0, math.nan, 0.123456789],
    "test_r2_score": [-32.5, 0.5, 0.7], "kept_clean": [0.8, 0.9, 1.0], "score_threshold": [1.0, 1.0, 1.0],
})  # fmt: skip


def written(directory, config=CONFIG, history=HISTORY, scale="cpu"):
    return write_folder(directory, config, history, scale=scale, source="made up")


def packed(directory, *configs):
    """The file into which the runs go."""
    for config in configs or (CONFIG,):
        written(directory, config)
    return packed_again(directory)


def packed_again(directory):
    results.pack(directory / "table1.jsonl", results.read_all(directory)[0])
    return directory / "table1.jsonl"


def check(content):
    assert content["config"] == CONFIG and content["source"] == "made up" and content["scale"] == "cpu"
    assert content["history"]["test_r2_score"].tolist() == [-32.5, 0.5, 0.7]
    assert content["history"]["loss"][2] == 0.12346 and np.isnan(content["history"]["loss"][1])
    assert content["result"]["test_mean"] == pytest.approx((-32.5 + 0.5 + 0.7) / 3)
    assert content["result"]["test_metric"] == "r2_score"


def test_what_is_written_is_read(tmp_path):
    check(results.read(written(tmp_path), CONFIG, "cpu"))


def test_each_config_has_its_own_folder():
    others = [RunConfig("teacher", "prl_l", "signflip", 0.2, epochs=3, batch_size=b) for b in (64, 128)]
    assert len({results.path_of("", config).name for config in (CONFIG, *others)}) == 3


LATER = pytest.mark.parametrize("name, value", [("precision", "bfloat16"), ("recompute", True)])


@LATER
def test_a_field_that_came_later_does_not_rename_older_runs(name, value):
    assert results.path_of("", CONFIG).name == "teacher-prl_l-signflip-0.2-seed0-e756d1d3"
    other = dataclasses.replace(CONFIG, **{name: value})
    assert results.path_of("", other).name != results.path_of("", CONFIG).name


@LATER
@pytest.mark.parametrize("is_other", [None, False, True])
def test_a_field_that_came_later_is_read_if_it_is_there(tmp_path, name, value, is_other):
    config = dataclasses.replace(CONFIG, **{name: value}) if is_other else CONFIG
    path = written(tmp_path, config)
    if is_other is None:
        changed(path / "config.json", lambda c: c.pop(name))
    assert results.read(path, config)["config"] == config
    line = packed_again(tmp_path).read_text()
    assert (name in line) == bool(is_other)
    (content,), problems = results.read_all(tmp_path)
    assert content["config"] == config and not problems


def changed(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


DAMAGES = {
    "cut config": lambda run: (run / "config.json").write_text((run / "config.json").read_text()[:-40]),
    "empty config": lambda run: (run / "config.json").write_text(""),
    "other JSON": lambda run: (run / "config.json").write_text("[1, 2]"),
    "too deep": lambda run: (run / "config.json").write_text("[" * 100_000),
    "altered config": lambda run: changed(run / "config.json", lambda c: c.update(learning_rate=0.5)),
    "impossible config": lambda run: changed(run / "config.json", lambda c: c.update(epsilon=7)),
    "a field less": lambda run: changed(run / "config.json", lambda c: c.pop("epsilon")),
    "list for source": lambda run: changed(run / "config.json", lambda c: c.update(source=["x"])),
    "no history": lambda run: (run / "history.csv").unlink(),
    "empty history": lambda run: (run / "history.csv").write_text(""),
    "an epoch less": lambda run: HISTORY[:-1].to_csv(run / "history.csv", index=False),
    "other columns": lambda run: HISTORY[["epoch", "loss"]].to_csv(run / "history.csv", index=False),
    "text for numbers": lambda run: HISTORY.assign(test_r2_score="a").to_csv(
        run / "history.csv", index=False
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_or_foreign_run_is_named_and_left_out(tmp_path, name):
    path = written(tmp_path)
    DAMAGES[name](path)
    good = written(tmp_path, OTHER)
    with pytest.raises(ValueError, match="is not the result of a run"):
        results.read(path)
    contents, problems = results.read_all(tmp_path)
    assert [content["config"].method for content in contents] == ["spl"] and good.exists()
    assert len(problems) == 1 and path.name in problems[0]


def test_a_run_that_is_not_finished_is_no_result_and_no_problem(tmp_path):
    (written(tmp_path) / "result.json").unlink()
    assert results.read_all(tmp_path) == ([], [])
    with pytest.raises(ValueError, match=r"it has no result\.json"):
        results.read(results.path_of(tmp_path, CONFIG))


def test_another_runs_folder_under_this_name_is_refused(tmp_path):
    other = written(tmp_path, OTHER)
    other.rename(results.path_of(tmp_path, CONFIG))
    with pytest.raises(ValueError, match="another config"):
        results.read(results.path_of(tmp_path, CONFIG), CONFIG)
    assert len(results.read_all(tmp_path)[1]) == 1


def test_another_scale_is_refused(tmp_path):
    with pytest.raises(ValueError, match="of scale 'cpu', not 'paper'"):
        results.read(written(tmp_path), CONFIG, "paper")


class TestPack:
    def test_what_is_packed_is_read_and_its_folder_is_gone(self, tmp_path):
        path = packed(tmp_path)
        assert [file.name for file in tmp_path.iterdir()] == [path.name]
        (content,), problems = results.read_all(tmp_path)
        assert not problems
        check(content)

    def test_it_adds_to_what_was_packed_and_is_repeatable(self, tmp_path):
        packed(tmp_path)
        path = packed(tmp_path, OTHER)
        both = path.read_bytes()
        assert {content["config"] for content in results.read_all(tmp_path)[0]} == {CONFIG, OTHER}
        results.pack(tmp_path / "table1.jsonl", results.read_all(tmp_path)[0])
        assert path.read_bytes() == both
        path.unlink()
        assert packed(tmp_path, OTHER, CONFIG).read_bytes() == both

    def test_a_kill_before_the_folders_are_gone_loses_and_doubles_nothing(self, tmp_path):
        path = packed(tmp_path)
        before = path.read_bytes()
        written(tmp_path)  # as if it had not gone
        assert len(results.read_all(tmp_path)[0]) == 1
        results.pack(tmp_path / "table1.jsonl", results.read_all(tmp_path)[0])
        assert path.read_bytes() == before and not results.path_of(tmp_path, CONFIG).exists()

    def test_a_run_that_was_made_again_replaces_its_line(self, tmp_path):
        before = packed(tmp_path).read_text()
        written(tmp_path, history=HISTORY.assign(test_r2_score=0.25))
        again = packed_again(tmp_path).read_text()
        assert again != before and len(again.splitlines()) == 1
        assert results.read_all(tmp_path)[0][0]["result"]["test_final"] == 0.25

    def test_a_damaged_line_goes_when_its_run_was_made_again(self, tmp_path):
        path = packed(tmp_path, CONFIG, OTHER)
        whole = path.read_text()
        first, second = whole.splitlines()
        path.write_text(f"{first[:-40]}\n{second}\n")
        written(tmp_path, results._packed(first)["config"])
        assert packed_again(tmp_path).read_text() == whole
        assert results.read_all(tmp_path)[1] == []

    def test_what_else_lies_in_a_folder_stays(self, tmp_path):
        (written(tmp_path) / "notes.txt").write_text("mine")
        results.pack(tmp_path / "table1.jsonl", results.read_all(tmp_path)[0])
        assert [file.name for file in results.path_of(tmp_path, CONFIG).iterdir()] == ["notes.txt"]

    @pytest.mark.parametrize("damage", ["cut", "version", "not JSON"])
    def test_a_damaged_line_is_named_and_the_others_are_read(self, tmp_path, damage):
        path = packed(tmp_path, CONFIG, OTHER)
        first, second = path.read_text().splitlines()
        first = {
            "cut": first[:-40],
            "version": first.replace('"version": 1', '"version": 9'),
            "not JSON": "x",
        }[damage]
        path.write_text(f"{first}\n{second}\n")
        contents, problems = results.read_all(tmp_path)
        assert len(contents) == 1 and len(problems) == 1
        assert f"{path}, line 1, is not the result of a run" in problems[0]
