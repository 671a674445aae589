"""The report of a run: what is in it, that it stands alone, and that a browser shows it."""

import json
import re
import shutil
import warnings

import keras
import numpy as np
import pandas as pd
import pytest
from page import page_of
from processes import python

from prl_keras.experiments.audits import report
from prl_keras.experiments.audits.report import audit_run
from prl_keras.experiments.data.dataset import Dataset
from prl_keras.experiments.runs.config import RunConfig
from prl_keras.experiments.runs.run import run

DIGITS = RunConfig("digits", "co_prl_l", "pairflip", 0.3, assumed_epsilon=0.4, epochs=5, ramp_epochs=2)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    directory = tmp_path_factory.mktemp("digits")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run(DIGITS, directory, verbose=0)
    return directory


@pytest.fixture(scope="module")
def page(digits):
    return page_of(audit_run(digits))


@pytest.fixture
def copy(digits, tmp_path):
    """A copy, to damage."""
    return shutil.copytree(digits, tmp_path / "run")


class TestOfClasses:
    def test_stands_alone_and_says_what_it_should(self, digits, page):
        flagged = pd.read_csv(digits / "audit.csv")["is_flagged"].sum()
        assert page.tags.count("img") == 2 + flagged > 52  # the scores, the classes, the suspects
        for words in ("Which labels of digits are wrong?", "90% interval", "Co-PRL(L)", "told to drop 40%"):
            assert words in page.text
        assert len(re.findall(r"<td class='far' data-value='[01]\.\d+'>\d+%</td>", page.content)) == flagged

    def test_the_table_has_all_examples_and_agrees(self, digits, page):
        table = pd.read_csv(digits / "audit.csv", index_col="example")
        assert len(table) == 1437 and table["times_seen"].max() == DIGITS.epochs
        flagged = int(re.search(r"([\d,]+) labels are flagged", page.text)[1].replace(",", ""))
        assert table["is_flagged"].sum() == flagged
        first = table.sort_values("rank").index[0]
        assert re.search("data-id='(.*?)'", page.content)[1] == str(first)
        recorded = np.load(digits / "selection.npz")["probabilities"][-2:].astype("float32")
        np.testing.assert_allclose(table["score"], 1 - recorded.mean(axis=0), rtol=1e-4, atol=1e-6)

    def test_the_truth_is_reported_apart_and_true(self, page):
        text = page.text
        wrong, right, found = map(float, re.findall(r"([\d.]+)%", text[text.index("on purpose") :]))
        assert wrong == pytest.approx(30, abs=0.1) and right > 60 and found > 60

    @pytest.mark.long
    def test_without_what_training_recorded(self, copy, tmp_path):
        (copy / "selection.npz").unlink()
        page = page_of(audit_run(copy, tmp_path / "else.html"))
        assert "dropped" not in page.text and page.tags.count("img") >= 52
        assert (tmp_path / "else.csv").exists() and not (tmp_path / "else.html.csv").exists()


@pytest.mark.long
def test_of_targets(tmp_path):
    config = RunConfig("teacher", "prl_l", "uninoise", 0.2, epochs=6, batch_size=100)
    run(config, tmp_path, verbose=0)
    page = page_of(audit_run(tmp_path))
    assert "Which targets of teacher are wrong?" in page.text and page.tags.count("img") == 1
    assert page.tags.count("tr") >= 51 and "given_0" in page.text


@pytest.mark.long
def test_of_a_method_that_drops_nothing_and_clean_labels(tmp_path):
    run(RunConfig("digits", "standard", "none", 0, epochs=2), tmp_path, verbose=0)
    page = page_of(audit_run(tmp_path))
    assert not (tmp_path / "selection.npz").exists() and "on purpose" not in page.text
    assert "Ranked by Standard, trained for 2 epochs." in page.text


@pytest.mark.long
def test_of_bootstrap(tmp_path):
    run(RunConfig("digits", "bootstrap", "symmetric", 0.2, epochs=2, train_size=200), tmp_path, verbose=0)
    page = page_of(audit_run(tmp_path))
    assert "Which labels of digits are wrong?" in page.text and page.tags.count("img") >= 52


def test_of_sequences(tmp_path, monkeypatch):
    """A folder as a run leaves it, of a data set with a label for each step."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 6, 4)).astype("float32"), rng.integers(0, 3, (60, 6))
    data = Dataset("digits", "classification", x, y, x, y, 3, "sequences", ("a", "b", "c"))
    monkeypatch.setattr(report, "load", lambda name: data)
    config = RunConfig("digits", "standard", "none", 0, epochs=1)
    (tmp_path / "config.json").write_text(json.dumps({**vars(config), "source": "sequences"}))
    model = keras.Sequential([keras.Input((None, 4)), keras.layers.Dense(3)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.save(tmp_path / "model.keras")
    page = page_of(audit_run(tmp_path))
    assert "Which labels of digits are wrong?" in page.text and "360 labels of 60 examples" in page.text
    assert page.content.count("<ol ") == 50 and (tmp_path / "audit.csv").exists()


class TestFaults:
    def test_a_folder_without_a_finished_run(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"no config.json and no model.keras"):
            audit_run(tmp_path)
        with pytest.raises(FileNotFoundError, match="nowhere"):
            audit_run(tmp_path / "nowhere")

    def test_other_data_than_the_runs(self, copy):
        config = json.loads((copy / "config.json").read_text())
        (copy / "config.json").write_text(json.dumps({**config, "source": "digits of someone else"}))
        with pytest.raises(ValueError, match="digits of someone else"):
            audit_run(copy)

    def test_a_config_of_another_version_is_named(self, copy):
        config = json.loads((copy / "config.json").read_text())
        del config["assumed_epsilon"]
        (copy / "config.json").write_text(json.dumps(config))
        with pytest.raises(ValueError, match="has no assumed_epsilon: it is damaged, or of another version"):
            audit_run(copy)

    def test_an_output_that_is_no_page(self, digits, tmp_path):
        for output in (tmp_path / "table.csv", tmp_path):
            with pytest.raises(ValueError, match="must be a file of HTML"):
                audit_run(digits, output)
        assert not list(tmp_path.iterdir())

    def test_a_record_that_is_cut(self, copy):
        (copy / "audit.html").unlink(missing_ok=True)
        record = copy / "selection.npz"
        record.write_bytes(record.read_bytes()[:1000])
        with pytest.raises(ValueError, match=r"selection\.npz is damaged"):
            audit_run(copy)
        assert not (copy / "audit.html").exists()

    @pytest.mark.parametrize("place", [100, 0.5, None])
    def test_a_model_that_is_damaged(self, copy, place):
        content = bytearray((copy / "model.keras").read_bytes())
        if place is None:
            content = content[:1000]
        else:
            middle = place if place == 100 else int(place * len(content))
            content[middle : middle + 64] = bytes(64)
        (copy / "model.keras").write_bytes(content)
        with pytest.raises(ValueError, match=r"model\.keras is damaged: .*Train again"):
            audit_run(copy)

    def test_the_program_says_it_in_a_line(self, tmp_path):
        done = python("-m", "binaries.audit", f"--run_dir={tmp_path}", check=False)
        assert done.returncode == 1 and "is no finished run" in done.stdout + done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.long
def test_a_killed_run_has_the_record_of_an_undisturbed_one(digits, tmp_path):
    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 4:
                raise KeyboardInterrupt

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(KeyboardInterrupt):
            run(DIGITS, tmp_path, verbose=0, callbacks=[Stop()])
        run(DIGITS, tmp_path, resume=True, verbose=0)
    one, other = (np.load(folder / "selection.npz") for folder in (digits, tmp_path))
    for name in one.files:
        np.testing.assert_array_equal(one[name], other[name])
