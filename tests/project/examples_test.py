"""Every example in its smallest setting: what its table says, not only that it ends."""

import csv
import json
from importlib.util import find_spec

import numpy as np
import pytest
from matplotlib import image
from processes import python

TEXT = {"classify_text", "finetune_language_model"}


def table_of(text):
    """{method: {column: number}} of the Markdown table in `text`; an empty cell, "-", has no number."""
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line[:1] == "|"]
    return {
        row[0]: {name: float(cell) for name, cell in zip(rows[0][1:], row[1:]) if cell != "-"}
        for row in rows[2:]
    }


def table_by(name, *flags):
    if name in TEXT:
        pytest.importorskip("keras_hub", reason="needs requirements-text.txt")
    return table_of(python("-m", f"examples.{name}", "--smoke", *flags).stdout)


@pytest.mark.long
# How much better than plain training, and what share of wrong labels random scores find.
@pytest.mark.parametrize(
    ("name", "selecting", "lead", "chance"),
    [
        ("label_rows", "PRL(L), unit=element", 0.02, 0.2),
        ("tag_sequences", "PRL(L), unit=element", 0.03, 0.2),
        ("segment_images", "PRL(L), unit=element", 0.03, 0.2),
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


@pytest.mark.long
def test_a_language_model_loses_less_on_clean_text_and_is_the_same_when_loaded():
    table = table_by("finetune_language_model")
    plain, selected = table["plain"], table["PRL(L), unit=element"]
    assert 0 < selected["clean test loss"] < plain["clean test loss"] - 0.05
    assert selected["noise among the most suspect"] > 0.7
    assert max(row["change by saving and loading"] for row in table.values()) < 1e-3


# All in one process: importing TensorFlow and KerasHub takes longer than a training of two epochs.
SHORT = """
import contextlib, functools, importlib, io, json, sys
import keras
from absl import app, flags

fit = keras.Model.fit
cut = lambda *args, epochs=1, **kwargs: fit(*args, epochs=min(epochs, 2), **kwargs)
keras.Model.fit = functools.wraps(fit)(cut)
folder, *names = sys.argv[1:]
found = {}
for name in names:
    example = importlib.import_module(f"examples.{name}")
    flags.FLAGS(["example", "--smoke"])
    found[name] = {column: float(value) for column, value in example.run(example.METHODS[-1], 0).items()}
    if hasattr(example, "PRESET"):
        network, network.preprocessor = example.make_network()
        network.save_to_preset(f"{folder}/{name}")
        flags.FLAGS(["example", f"--preset={folder}/{name}"])
        loaded, preprocessor = example.make_network()
        assert loaded.preprocessor is None and type(loaded) is type(network)
        x = preprocessor(["the fox steals soup", "rain"])
        found[f"{name} of a preset"] = len(loaded(x[0] if isinstance(x, tuple) else x))
        del flags.FLAGS.preset  # both examples of text define it
said = io.StringIO()
with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
    try:
        app.run(importlib.import_module("examples.label_rows").main, ["label_rows", "seeds=5"])
    except SystemExit as end:
        found["unknown argument"] = [end.code, said.getvalue()]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """Of each example what two epochs with its last method give, and of a text network loaded again."""
    names = ["tag_sequences", "segment_images", *(sorted(TEXT) if find_spec("keras_hub") else ())]
    return json.loads(python("-c", SHORT, tmp_path_factory.mktemp("presets"), *names).stdout.splitlines()[-1])


@pytest.mark.long
@pytest.mark.parametrize("name", ["tag_sequences", "segment_images", *sorted(TEXT)])
def test_two_epochs_already_give_every_column(name, short):
    if name in TEXT:
        pytest.importorskip("keras_hub", reason="needs requirements-text.txt")
    found = short[name]
    if name == "finetune_language_model":
        assert 0 < found["clean test loss"] < 9 and 0 <= found["noise among the most suspect"] <= 1
        assert found["change by saving and loading"] < 1e-3
    else:
        assert {"clean test accuracy", "average precision"} <= set(found)
        assert all(0 < value <= 1 for value in found.values())


@pytest.mark.long
@pytest.mark.parametrize("name", sorted(TEXT))
def test_a_preset_takes_the_place_of_the_small_network(name, short):
    pytest.importorskip("keras_hub", reason="needs requirements-text.txt")
    assert short[f"{name} of a preset"] == 2


@pytest.mark.long
def test_an_unknown_argument_is_named(short):
    code, said = short["unknown argument"]
    assert code != 0 and "Unknown arguments ['seeds=5']" in said


# The examples of docs/examples.md: each leaves a picture and a table in its folder.


def example_in(folder, name, *flags):
    """The table that an example prints in its smallest setting, after a look at what it wrote."""
    done = python("-m", f"examples.{name}", "--smoke", f"--output_dir={folder}", *flags)
    pixels = image.imread(folder / f"{name}.png")
    assert min(pixels.shape[:2]) > 200 and len(np.unique(pixels.reshape(-1, pixels.shape[2]), axis=0)) > 10
    printed = [line.strip("| ").split(" | ") for line in done.stdout.splitlines() if line[:1] == "|"]
    with (folder / "results.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [printed[0], *printed[2:]]
    return table_of(done.stdout)


@pytest.mark.long
def test_labels_that_were_looked_at_are_fixed_and_help(tmp_path):
    table = example_in(tmp_path, "clean_my_labels")
    given, fixed = table["as given"], table["fixed"]
    assert given["wrong labels"] == 200 and table["true"]["wrong labels"] == 0
    found = given["wrong labels"] - fixed["wrong labels"]
    assert found > 170 and 0.8 * fixed["looked at"] < found <= fixed["looked at"]
    accuracy = "test accuracy, plain training"
    assert given[accuracy] + 0.015 < fixed[accuracy]
    assert "Which digits are wrong?" in (tmp_path / "report.html").read_text()


@pytest.mark.long
def test_regression_survives_wrong_targets(tmp_path):
    table = example_in(tmp_path, "regress_table")
    assert list(table) == ["plain", "PRL(L)"]
    assert table["plain"]["test R2, mean"] < 0 < table["PRL(L)"]["test R2, mean"]


@pytest.mark.long
def test_fine_tuning_on_a_folder_survives_files_in_wrong_folders(tmp_path):
    table = example_in(tmp_path, "classify_image_folder")
    assert table["plain"]["fine-tuned"] + 0.05 < table["PRL(L)"]["fine-tuned"]
    assert 0.8 < table["PRL(L)"]["average precision"] <= 1
    suspects = list(csv.DictReader((tmp_path / "suspects.csv").open()))
    assert len(suspects) == 240
    assert all(row["file"].startswith(f"train/{row['folder']}/") for row in suspects)


@pytest.mark.long
def test_a_folder_of_ones_own_takes_the_place_of_the_digits(tmp_path):
    refused = python("-m", "examples.classify_image_folder", f"--folder={tmp_path}", check=False)
    assert refused.returncode == 1 and f"{tmp_path} has no folder train: make" in refused.stderr
    rng = np.random.default_rng(0)
    for part, count in (("train", 40), ("test", 10)):
        for name, shade in (("dark", 0.1), ("light", 0.9)):
            folder = tmp_path / "images" / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = np.clip(shade + rng.normal(0, 0.05, (12, 10, 3)), 0, 1)
                image.imsave(folder / f"{number}.png", pixels)
    table = example_in(
        tmp_path / "out", "classify_image_folder", f"--folder={tmp_path / 'images'}", "--epsilon=0.1"
    )
    assert set(table["PRL(L)"]) == {"frozen backbone", "fine-tuned"}  # nobody knows which files are wrong
    suspects = list(csv.DictReader((tmp_path / "out/suspects.csv").open()))
    assert len(suspects) == 8 and {row["folder"] for row in suspects} <= {"dark", "light"}


@pytest.mark.long
def test_the_search_chooses_the_lowest_loss_and_repeats_no_trial(tmp_path):
    pytest.importorskip("keras_tuner")
    table = example_in(tmp_path, "search_epsilon")
    losses = [row["val_trimmed_loss"] for row in table.values()]
    assert table["found by val_trimmed_loss"]["val_trimmed_loss"] == min(losses)
    assert all(0 <= row["epsilon"] <= 0.6 and 0.3 < row["test accuracy"] <= 1 for row in table.values())
    records = {path: path.read_text() for path in (tmp_path / "search").glob("trial_*/execution_*.json")}
    assert len(records) == 3
    assert example_in(tmp_path, "search_epsilon") == table
    assert all(path.read_text() == text for path, text in records.items())  # none ran twice


@pytest.mark.long
def test_two_replicas_train_the_model_of_one_device(tmp_path):
    table = example_in(tmp_path, "two_replicas")
    one, several = table["one device"], table["2 replicas"]
    assert several["largest difference of weights"] < 1e-5
    assert one["test accuracy"] == several["test accuracy"] > 0.5
