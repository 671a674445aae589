"""Result files: what was cut, altered or made by something else is never read as a result."""

import json
import math

import numpy as np
import pandas as pd
import pytest

from prl_keras.experiments import results
from prl_keras.experiments.config import RunConfig

CONFIG = RunConfig("teacher", "prl_l", "signflip", 0.2, epochs=3, batch_size=500)
HISTORY = pd.DataFrame({
    "epoch": [1, 2, 3], "seconds": [0.51, 0.2, 0.2], "loss": [1.0, math.nan, 0.123456789],
    "test_r2_score": [-32.5, 0.5, 0.7], "kept_clean": [0.8, 0.9, 1.0], "score_threshold": [1.0, 1.0, 1.0],
})  # fmt: skip


def written(directory, config=CONFIG, history=HISTORY, scale="cpu"):
    path = results.path_of(directory, config)
    results.write(path, config, scale, history, {"source": "made up"})
    return path


def test_what_is_written_is_read(tmp_path):
    content = results.read(written(tmp_path), CONFIG, "cpu")
    assert content["config"] == CONFIG and content["source"] == "made up"
    assert content["history"]["test_r2_score"].tolist() == [-32.5, 0.5, 0.7]
    assert content["history"]["loss"][2] == 0.12346 and np.isnan(content["history"]["loss"][1])
    assert content["result"]["test_mean"] == pytest.approx((-32.5 + 0.5 + 0.7) / 3)
    assert content["result"]["test_metric"] == "r2_score"


def test_each_config_has_its_own_file():
    others = [RunConfig("teacher", "prl_l", "signflip", 0.2, epochs=3, batch_size=b) for b in (64, 128)]
    assert len({results.path_of("", config).name for config in (CONFIG, *others)}) == 3


def cut(path):
    path.write_text(path.read_text()[:-40])


def empty(path):
    path.write_text("")


def other_json(path):
    path.write_text("[1, 2]")


def without_history(path):
    content = json.loads(path.read_text())
    del content["history"]
    path.write_text(json.dumps(content))


def without_an_epoch(path):
    content = json.loads(path.read_text())
    content["history"] = {name: values[:-1] for name, values in content["history"].items()}
    path.write_text(json.dumps(content))


def other_columns(path):
    content = json.loads(path.read_text())
    del content["history"]["test_r2_score"]
    path.write_text(json.dumps(content))


def altered_config(path):
    content = json.loads(path.read_text())
    content["config"]["learning_rate"] = 0.5
    path.write_text(json.dumps(content))


def impossible_config(path):
    content = json.loads(path.read_text())
    content["config"]["epsilon"] = 7
    path.write_text(json.dumps(content))


def unknown_version(path):
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "version": 99}))


def text_for_numbers(path):
    content = json.loads(path.read_text())
    content["history"]["test_r2_score"] = ["a", "b", "c"]
    path.write_text(json.dumps(content))


def list_for_source(path):
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "source": ["x"]}))


def too_deep(path):
    path.write_text("[" * 100_000)


@pytest.mark.parametrize(
    "damage",
    [
        cut, empty, other_json, without_history, without_an_epoch, other_columns, altered_config,
        impossible_config, unknown_version, text_for_numbers, list_for_source, too_deep,
    ],
)  # fmt: skip
def test_a_damaged_or_foreign_file_is_named_and_left_out(tmp_path, damage):
    damage(written(tmp_path))
    good = written(tmp_path, RunConfig("teacher", "spl", "signflip", 0.2, epochs=3))
    with pytest.raises(ValueError, match="is not the result of a run"):
        results.read(results.path_of(tmp_path, CONFIG))
    contents, problems = results.read_all(tmp_path)
    assert [content["config"].method for content in contents] == ["spl"] and good.exists()
    assert len(problems) == 1 and results.path_of(tmp_path, CONFIG).name in problems[0]


def test_another_runs_file_under_this_name_is_refused(tmp_path):
    other = written(tmp_path, RunConfig("teacher", "spl", "signflip", 0.2, epochs=3))
    other.rename(results.path_of(tmp_path, CONFIG))
    with pytest.raises(ValueError, match="another config"):
        results.read(results.path_of(tmp_path, CONFIG), CONFIG)
    assert len(results.read_all(tmp_path)[1]) == 1


def test_another_scale_is_refused(tmp_path):
    with pytest.raises(ValueError, match="of scale 'cpu', not 'paper'"):
        results.read(written(tmp_path), CONFIG, "paper")
