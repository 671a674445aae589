"""`python -m prl_keras.audit`: from a file to the report, killed on the way, and used wrongly."""

import os
import re
import subprocess
import sys
from unittest.mock import Mock

import keras
import numpy as np
import pandas as pd
import pytest
from page import page_of
from processes import python
from project import ROOT

import prl_keras as prl
from prl_keras.epsilon.intervals import EpsilonEstimate
from prl_keras.label_audit import images, results, training
from prl_keras.label_audit.command import main, parser

N = 120
EVIL = "<img src=x onerror=alert(1)>"
NAMES = ("cat", EVIL, "dog")


def made(folder, name="data.csv"):
    """A CSV file of three clusters with 12 wrong labels -> (path, whether each label is wrong)."""
    rng = np.random.default_rng(0)
    classes = np.arange(N) % 3
    labels, is_wrong = prl.corrupt("symmetric", classes, epsilon=0.1, rng=rng)
    x = rng.normal(size=(N, 4)) + 4 * np.eye(3, 4)[classes]
    frame = pd.DataFrame(x, columns=["a", "b", "c", "d"])
    frame.loc[3, "a"] = np.nan
    frame["shade"] = rng.choice(["light", "dark", EVIL], N)
    frame["kind"] = [NAMES[label] for label in labels]
    frame.to_csv(folder / name, index=False)
    return folder / name, is_wrong


def folder_of(data):
    return data.with_name("data_audit")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    data, is_wrong = made(tmp_path_factory.mktemp("table"))
    assert main([str(data), "--label=kind", "--epochs=25"]) == 0
    return data, is_wrong


class TestTable:
    def test_finds_the_wrong_labels_and_suggests_the_right_ones(self, finished):
        data, is_wrong = finished
        found = pd.read_csv(folder_of(data) / "labels.csv")
        assert list(found["row"]) == list(range(2, N + 2)) and set(found["rank"]) == set(range(1, N + 1))
        assert is_wrong[found["rank"] <= is_wrong.sum()].mean() > 0.9
        given = pd.read_csv(data)["kind"]
        assert list(found["given"]) == list(given)
        right = found["predicted"] == [NAMES[i % 3] for i in range(N)]
        assert right.mean() > 0.95
        flagged = found["is_flagged"]
        assert list(found["corrected"]) == list(np.where(flagged, found["predicted"], given))
        assert 0 < flagged.sum() < N / 4 and flagged.equals(found["rank"] <= flagged.sum())
        assert found["predicted_probability"].ge(found["given_probability"] - 1e-6).all()

    def test_the_report_stands_alone_and_names_are_text(self, finished):
        data, _ = finished
        page = page_of(folder_of(data) / "report.html")
        assert "Which labels of data.csv are wrong?" in page.text and "the header is row 1" in page.text
        assert "<img src=x" not in page.content and EVIL in page.text and "shade" in page.text
        assert sorted(os.listdir(folder_of(data))) == ["labels.csv", "report.html"]

    def test_a_finished_one_is_not_replaced_by_accident(self, finished, capsys, monkeypatch):
        data, _ = finished
        before = (folder_of(data) / "labels.csv").read_bytes()
        assert main([str(data), "--label=kind"]) == 1
        assert "holds a finished audit. Write --overwrite" in capsys.readouterr().err
        for wrong, message in (
            ([], "Write --label=COLUMN"),
            (["--label=Kind"], "Did you mean --label='kind'"),
            (["--label=kind", "--task=numbers"], "is no number"),
        ):
            assert main([str(data), *wrong]) == 1 and message in capsys.readouterr().err
        stop_after(2, monkeypatch)
        assert main([str(data), "--label=kind", "--overwrite", "--epochs=3"]) == 130
        assert (folder_of(data) / "labels.csv").read_bytes() == before
        monkeypatch.undo()
        assert main([str(data), "--label=kind", "--overwrite", "--epochs=3", "--epsilon=0.2"]) == 0
        found = pd.read_csv(folder_of(data) / "labels.csv")
        assert found["is_flagged"].sum() == 0.2 * N
        assert "told that 20% are wrong" in (folder_of(data) / "report.html").read_text()


def test_rows_without_a_label_keep_their_places(tmp_path):
    data, _ = made(tmp_path)
    header, *lines = data.read_text().splitlines()
    lines[5:5] = ["1,2,3,4,dark,", ",,,,,", "", "1,2,3,4,dark,nan"]
    data.write_text("\n".join([header, *lines]) + "\n")
    assert main([str(data), "--label=kind", "--epochs=2", "--epsilon=0.1"]) == 0
    frame, found = pd.read_csv(data), pd.read_csv(folder_of(data) / "labels.csv")
    assert list(found["given"].fillna("")) == list(frame["kind"].fillna(""))
    assert list(found["row"]) == [*range(2, 9), 10, *range(11, N + 6)]  # row 9 is a blank line
    assert found["is_flagged"].dtype == bool and found["is_flagged"].sum() == 0.1 * N
    left_out = found.loc[5:7].drop(columns=["row", "is_flagged"])
    assert left_out.isna().all(axis=None) and not found["is_flagged"][5:8].any()
    assert found.drop(index=range(5, 8)).notna().all(axis=None)
    assert ",1.0," not in (folder_of(data) / "labels.csv").read_text()  # ranks are whole numbers
    frame["kind"] = found["corrected"]
    assert list(frame.index[frame["kind"].isna()]) == [5, 6, 7]


def test_a_folder_of_images(tmp_path, capsys, monkeypatch):
    rng = np.random.default_rng(0)
    for i in range(60):
        pixels = np.zeros((8, 8, 3)) + 40 * rng.uniform(size=(8, 8, 1))
        pixels[:, 4 * (i % 2) : 4 + 4 * (i % 2)] += 200
        name = ("left", "right")[(i + (i < 4)) % 2]  # four in the wrong folder
        (tmp_path / "photos" / name).mkdir(parents=True, exist_ok=True)
        keras.utils.save_img(tmp_path / "photos" / name / f"{i}.png", pixels, scale=False)
    (tmp_path / "photos" / "left" / "broken.png").write_bytes(b"")
    assert main([str(tmp_path / "photos"), "--epochs=20"]) == 0
    out = capsys.readouterr().out
    assert "photos: 60 images in 2 classes" in out and "left/broken.png" in out
    found = pd.read_csv(tmp_path / "photos_audit" / "labels.csv")
    worst = found.sort_values("rank")["file"].head(4)
    assert {int(name.split("/")[1].removesuffix(".png")) for name in worst} == set(range(4))
    monkeypatch.setattr(images, "_pixels", Mock(side_effect=AssertionError))  # none is read again for this
    for flags, message in (([], "finished audit"), (["--label=side"], "Leave --label out")):
        assert main([str(tmp_path / "photos"), *flags]) == 1 and message in capsys.readouterr().err
    page = page_of(tmp_path / "photos_audit" / "report.html")
    assert "left/broken.png" in page.text and len(page.pictures) == 2 + 50


@pytest.mark.long
def test_labels_that_are_numbers(tmp_path, capsys):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(N, 3))
    price = 1000 + 100 * x @ [1, 2, -1]
    price[:6] += 2000
    pd.DataFrame(np.c_[x, price], columns=["a", "b", "c", "price"]).to_csv(tmp_path / "data.csv", index=False)
    assert main([str(tmp_path / "data.csv"), "--label=price", "--epochs=30"]) == 0
    assert "its labels are taken as numbers" in capsys.readouterr().out
    found = pd.read_csv(tmp_path / "data_audit" / "labels.csv")
    assert set(found.sort_values("rank")["row"].head(6)) == set(range(2, 8))
    assert (found["predicted"] - price)[10:].abs().median() < 100
    assert "Which numbers of data.csv are wrong?" in (tmp_path / "data_audit" / "report.html").read_text()


@pytest.mark.long
@pytest.mark.parametrize("estimate", [(0.4, 0.0, 0.5), (0.1, 0.05, 0.15)])
def test_the_console_doubts_an_estimate_as_the_page_does(tmp_path, capsys, monkeypatch, estimate):
    monkeypatch.setattr(results, "estimate_from", lambda found: EpsilonEstimate(*estimate))
    data, _ = made(tmp_path)
    assert main([str(data), "--label=kind", "--epochs=2"]) == 0
    out, page = capsys.readouterr().out, page_of(folder_of(data) / "report.html")
    after = out[out.index("look wrong") :]
    notes = re.findall("^note: (.*)$", after, flags=re.MULTILINE)
    assert len(notes) == (3 if estimate[0] == 0.4 else 0) and all(note in page.text for note in notes)
    assert ("other columns hardly tell the labels" in after) == ("column corrected" in after) == bool(notes)
    assert "estimate_epsilon" not in page.text and "trusted=" not in page.text + out


def stop_after(epochs, monkeypatch):
    """Stops the next training as Ctrl+C does, after so many epochs; backups are made in each."""

    def on_epoch_end(self, epoch, logs=None):
        if epoch + 1 == epochs:
            raise KeyboardInterrupt

    monkeypatch.setattr(training, "_SECONDS", 0)
    monkeypatch.setattr(training._Progress, "on_epoch_end", on_epoch_end)


def count_epochs(monkeypatch):
    """A list that gets the number of each epoch that is trained."""
    epochs = []
    monkeypatch.setattr(
        training._Progress, "on_epoch_end", lambda self, epoch, logs=None: epochs.append(epoch)
    )
    return epochs


class TestStopped:
    def test_the_same_command_goes_on(self, tmp_path, monkeypatch, capsys):
        data, _ = made(tmp_path)
        command = [str(data), "--label=kind", "--epochs=5"]
        stop_after(3, monkeypatch)
        assert main(command) == 130 and "The same command goes on" in capsys.readouterr().err
        assert not (folder_of(data) / "report.html").exists()
        epochs = count_epochs(monkeypatch)
        monkeypatch.setattr(results, "write_report", Mock(side_effect=KeyboardInterrupt))
        capsys.readouterr()
        assert main(command) == 130 and epochs == [3, 4]  # and stopped again, when it writes
        shown = capsys.readouterr()
        before, after = shown.out.split("Going on after epoch 3 of 5.")
        assert "Training: 5 epochs. --epochs=N" in before and not after.strip()
        assert "starts anew" not in shown.out and "0/5" not in shown.err and "3/5" in shown.err
        monkeypatch.undo()
        epochs = count_epochs(monkeypatch)
        assert main(command) == 0 and epochs == []
        assert "Going on after epoch 5 of 5." in capsys.readouterr().out
        assert len(pd.read_csv(folder_of(data) / "labels.csv")) == N
        assert sorted(os.listdir(folder_of(data))) == ["labels.csv", "report.html"]

    @pytest.mark.long
    def test_another_command_starts_anew(self, tmp_path, monkeypatch, capsys):
        data, _ = made(tmp_path)
        command = [str(data), "--label=kind", "--epochs=3"]
        stop_after(2, monkeypatch)
        assert main(command) == 130
        epochs = count_epochs(monkeypatch)
        assert main([*command, "--seed=1"]) == 0 and epochs == [0, 1, 2]
        out = capsys.readouterr().out
        assert "Going on" not in out and "starts anew, for it was begun with another --seed." in out

    @pytest.mark.long
    def test_it_says_that_other_data_start_anew(self, tmp_path, monkeypatch, capsys):
        data, _ = made(tmp_path)
        stop_after(2, monkeypatch)
        assert main([str(data), "--label=kind", "--epochs=5"]) == 130
        assert "anew" not in capsys.readouterr().out
        data.write_text(data.read_text().replace("cat", "dog", 1))
        stop_after(1, monkeypatch)
        assert main([str(data), "--label=kind", "--epochs=4"]) == 130
        text = "Training starts anew, for it was begun with other data and another --epochs."
        assert text in capsys.readouterr().out

    @pytest.mark.long
    def test_after_kill_9(self, tmp_path):
        data, _ = made(tmp_path)
        arguments = ["-m", "prl_keras.audit", str(data), "--label=kind", "--epochs=200"]
        process = subprocess.Popen([sys.executable, *arguments], cwd=ROOT, stderr=subprocess.PIPE, text=True)
        while not re.search(r" [1-9]\d*/200", process.stderr.readline()):  # the bar may skip epochs
            assert process.poll() is None
        process.kill()
        process.wait()
        python(*arguments)
        assert sorted(os.listdir(folder_of(data))) == ["labels.csv", "report.html"]


class TestWrongUse:
    @pytest.mark.parametrize("arguments, message", [
        (["nowhere.csv", "--label=kind"], "nowhere.csv does not exist"),
        (["data.csv"], "Write --label=COLUMN"),
        (["data.csv", "--label=king"], "Did you mean --label='kind'"),
        (["a photo.PNG"], "a photo.PNG is an image; give the folder that it lies in."),
        (["data.csv", "--label=kind", "--output_dir=data.csv/x"], "cannot be made"),
        (["empty"], "has no images"),
        (["empty", "--output_dir=empty/audit"], "is in the folder of the images"),
        (["empty", "--task=numbers"], "a folder of images has classes"),
    ])  # fmt: skip
    def test_is_a_line_and_leaves_nothing(self, tmp_path, monkeypatch, capsys, arguments, message):
        made(tmp_path)
        (tmp_path / "empty").mkdir()
        (tmp_path / "a photo.PNG").write_bytes(b"\x89PNG")
        monkeypatch.chdir(tmp_path)
        assert main(arguments) == 1
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1 and message in error
        assert sorted(os.listdir(tmp_path)) == ["a photo.PNG", "data.csv", "empty"]
        assert not os.listdir("empty")

    @pytest.mark.parametrize("flag", [
        "--epsilon=0.7", "--epsilon=much", "--epsilon=nan", "--epochs=0", "--epochs=1.5", "--seed=-1",
        "--lable=a", "--task=text",
    ])  # fmt: skip
    def test_a_bad_flag_is_named(self, capsys, flag):
        with pytest.raises(SystemExit, match="2"):
            main(["data.csv", "--label=kind", flag])
        assert flag.split("=")[0] in capsys.readouterr().err

    @pytest.mark.parametrize("name, instead", [
        ("photos.npz", "Audit arrays in Python, with prl.audit."), ("x.NPY", "Audit arrays in Python"),
        ("table.xlsx", "Save the table as CSV, UTF-8."), ("table.parquet", "Save the table as CSV"),
    ])  # fmt: skip
    def test_other_files_are_told_what_it_takes(self, tmp_path, capsys, name, instead):
        (tmp_path / name).write_bytes(b"PK\3\4\xff")
        assert main([str(tmp_path / name), "--label=kind"]) == 1
        error = capsys.readouterr().err
        assert "cannot be read: give a CSV file or a folder of images." in error and instead in error

    def test_missing_packages_are_named_as_for_pip(self, tmp_path, monkeypatch, capsys):
        data, _ = made(tmp_path)
        for module in ("sklearn", "tqdm"):
            monkeypatch.setitem(sys.modules, module, None)
        assert main([str(data), "--label=kind"]) == 1
        error = capsys.readouterr().err
        assert error == "error: The audit needs scikit-learn, tqdm: pip install scikit-learn tqdm\n"

    def test_help_says_the_defaults(self):
        text = " ".join(parser().format_help().split())
        for default in ("NAME_audit beside", "auto, numbers if", "20 to 100", "auto, which estimates", "0)"):
            assert f"default: {default}" in text

    def test_two_at_once(self, tmp_path, capsys):
        from prl_keras import files

        data, _ = made(tmp_path)
        folder_of(data).mkdir()
        with files.locked(folder_of(data)):
            assert main([str(data), "--label=kind"]) == 1
        assert "Another process is at work" in capsys.readouterr().err


@pytest.mark.long
def test_audit_stays_the_function():
    """Whether the program is imported or run, and the program is found by its name."""
    code = """if True:
        import importlib, runpy, sys
        import prl_keras as prl
        function = prl.audit
        import prl_keras.audit
        assert prl_keras.audit is function and prl.audit is function
        assert importlib.import_module("prl_keras.audit") is function
        from prl_keras import audit
        assert audit is function
        del sys.modules["prl_keras.audit"]
        sys.argv = ["audit", "--help"]
        try:
            runpy.run_module("prl_keras.audit", run_name="__main__", alter_sys=True)
        except SystemExit as end:
            assert not end.code
        assert prl.audit is function
    """
    assert "python -m prl_keras.audit flowers.csv --label=species" in python("-c", code).stdout
