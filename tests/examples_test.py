"""Every example in its smallest setting: what its table says, not only that it ends."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
TEXT = {"classify_text", "finetune_language_model"}


def run(*arguments):
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def table_of(text):
    """{method: {column: number}} of the Markdown table in `text`."""
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line[:1] == "|"]
    return {row[0]: {name: float(cell) for name, cell in zip(rows[0][1:], row[1:])} for row in rows[2:]}


def table_by(name, *flags):
    if name in TEXT:
        pytest.importorskip("keras_hub", reason="needs requirements-text.txt")
    done = run("-m", f"examples.{name}", "--smoke", *flags)
    assert done.returncode == 0, done.stderr[-3000:]
    return table_of(done.stdout)


# How much better than plain training, and what share of wrong labels random scores find.
@pytest.mark.parametrize(
    ("name", "selecting", "lead", "chance"),
    [
        ("tag_sequences", "PRL(L), unit=element", 0.03, 0.2),
        ("segment_images", "PRL(L), unit=element", 0.03, 0.2),
        ("label_rows", "PRL(L), unit=element", 0.02, 0.2),
        ("classify_text", "PRL(L)", 0.03, 0.3),
    ],
)
def test_dropping_ends_above_plain_training_and_finds_wrong_labels(name, selecting, lead, chance, tmp_path):
    table = table_by(name, f"--output={tmp_path / 'table.md'}")
    assert list(table) == ["plain", selecting]
    plain, selected = table["plain"], table[selecting]
    assert plain["clean test accuracy"] + lead < selected["clean test accuracy"] <= 1
    assert 2 * chance < selected["average precision"] <= 1
    text = (tmp_path / "table.md").read_text()
    assert table_of(text) == table
    assert f"    python -m examples.{name} --smoke" in text


def test_a_language_model_loses_less_on_clean_text_and_is_the_same_when_loaded():
    table = table_by("finetune_language_model")
    plain, selected = table["plain"], table["PRL(L), unit=element"]
    assert 0 < selected["clean test loss"] < plain["clean test loss"] - 0.05
    assert selected["noise among the most suspect"] > 0.7
    assert max(row["change by saving and loading"] for row in table.values()) < 1e-3


MAKES_PRESET = """
import sys
import keras_hub
from absl import flags
from examples import {name} as example

flags.FLAGS(["example"])
network, network.preprocessor = example.make_network()
network.save_to_preset(sys.argv[1])
flags.FLAGS(["example", "--preset=" + sys.argv[1]])
loaded, preprocessor = example.make_network()
assert loaded.preprocessor is None and type(loaded) is type(network)
x = preprocessor(["the fox steals soup", "rain"])
assert loaded(x[0] if isinstance(x, tuple) else x).shape[0] == 2
"""


@pytest.mark.parametrize("name", sorted(TEXT))
def test_a_preset_takes_the_place_of_the_small_network(name, tmp_path):
    pytest.importorskip("keras_hub", reason="needs requirements-text.txt")
    done = run("-c", MAKES_PRESET.format(name=name), str(tmp_path / "preset"))
    assert done.returncode == 0, done.stderr[-3000:]


def test_an_unknown_argument_is_named():
    done = run("-m", "examples.label_rows", "seeds=5")
    assert done.returncode != 0 and "Unknown arguments ['seeds=5']" in done.stdout + done.stderr
