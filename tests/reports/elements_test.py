"""The report of sequences, pixels and attributes: what is in it, and that it stands alone."""

import re

import keras
import numpy as np
import pytest
from page import page_of

import prl_keras as prl
from prl_keras.reports.report import report_elements

RNG = np.random.default_rng(0)
SPARSE = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
NAMES = ["noun", "verb", "<other>"]


def audited(x, y, outputs, loss, *weights, epsilon=0.2):
    model = keras.Sequential([keras.Input(x.shape[1:]), keras.layers.Dense(outputs)])
    model.compile("sgd", loss)
    return prl.audit(model, (x, y, *weights), epsilon=epsilon), prl.estimate_epsilon(model, (x, y, *weights))


def worst_of(table):
    return table.index[np.argmin(table["example_rank"])][0]


class TestSequences:
    X = RNG.normal(size=(60, 6, 4)).astype("float32")
    WEIGHTS = (np.arange(6) < RNG.integers(2, 7, 60)[:, None]).astype("float32")
    Y = RNG.integers(0, 3, (60, 6))

    def test_steps_in_order_with_the_flagged_ones_marked(self, tmp_path):
        table, estimate = audited(self.X, self.Y, 3, SPARSE, self.WEIGHTS)
        words = np.array([f"w{i}" for i in range(360)]).reshape(60, 6)
        path = report_elements(
            table,
            tmp_path / "report.html",
            estimate,
            words,
            NAMES,
            title="Which tags are wrong?",
            about="Tagger",
        )
        page = page_of(path)
        assert path == tmp_path / "report.html" and (tmp_path / "report.csv").exists()
        for text in (
            "Which tags are wrong?",
            "Tagger",
            "90% interval",
            f"{len(table)} labels of 60 examples",
        ):
            assert text in page.text
        assert page.content.count("<ol ") == 50 and "The 50 most suspect examples" in page.text
        assert "<other>" not in page.content and "<other>" in page.text
        first = worst_of(table)
        rows = table.loc[first]
        block = page.content[page.content.index(f"data-id='{first}'") :]
        steps = re.findall("<li.*?</li>", block[: block.index("</ol>")])
        assert len(steps) == len(rows) == self.WEIGHTS[first].sum()
        for step, (at, row) in zip(steps, rows.iterrows()):
            given, predicted = (
                NAMES[int(row[which])].replace("<", "&lt;") for which in ("given", "predicted")
            )
            assert f"<small>{at} w{6 * first + at}" in step and step.index(given.rstrip(">")) > 0
            assert predicted.rstrip(">") in step[step.index("predicted </span>") :]
            assert ("flagged" in step) == row["is_flagged"]
            assert ("agrees" in step) == (given == predicted)

    def test_of_targets(self, tmp_path):
        table, estimate = audited(self.X, self.X[..., :1] * 2, 1, "mse")
        page = page_of(report_elements(table, tmp_path / "report.html", estimate))
        assert len(page.pictures) == 1 and "targets are flagged" in page.text
        assert "Class by class" not in page.text and page.content.count("<ol ") == 50

    def test_long_ones_are_cut(self, tmp_path):
        x = RNG.normal(size=(2, 400, 4)).astype("float32")
        table, _ = audited(x, RNG.integers(0, 3, (2, 400)), 3, SPARSE)
        page = page_of(report_elements(table, tmp_path / "report.html"))
        assert page.text.count("The first 300 of 400 steps.") == 2
        assert (
            "trusted=" not in page.text
            and "interval" not in page.text
            and "So many of the labels are flagged" in page.text
        )


class TestPixels:
    X = RNG.uniform(size=(25, 5, 4, 3)).astype("float32")

    def test_the_picture_both_masks_and_the_flags(self, tmp_path):
        y = RNG.integers(0, 3, self.X.shape[:3])
        y[:, 0] = 255
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=255)
        table, estimate = audited(self.X, y, 3, loss)
        page = page_of(report_elements(table, tmp_path / "report.html", estimate, self.X, NAMES))
        assert len(page.pictures) == 2 + 4 * 20 and "The 20 most suspect examples" in page.text
        first = worst_of(table)
        np.testing.assert_allclose(page.picture(f"Picture of example {first}"), 255 * self.X[first], atol=1)
        given, predicted, flagged = (
            page.picture(f"{what} of example {first}:")
            for what in ("Given mask", "Predicted mask", "Flagged pixels")
        )
        assert given.shape == (5, 4, 3) and all(
            (part[0] == 255).all() for part in (given, predicted, flagged)
        )
        rows, counted = table.loc[first], y[first, 1:].ravel()
        colors = given[1:].reshape(-1, 3)
        assert len({tuple(color) for color in colors}) == len(set(counted))
        for label in set(counted):
            assert len({tuple(color) for color in colors[counted == label]}) == 1
        same = (given[1:] == predicted[1:]).all(axis=-1).ravel()
        np.testing.assert_array_equal(same, rows["given"] == rows["predicted"])
        np.testing.assert_array_equal((flagged[1:] == [176, 0, 32]).all(axis=-1).ravel(), rows["is_flagged"])
        alt = next(text for _, text in page.pictures if text.startswith(f"Given mask of example {first}:"))
        assert re.search(r"(noun|verb|<other>) \d+%", alt) and "&" not in alt

    def test_of_targets_and_without_inputs(self, tmp_path):
        y = self.X[..., :1].copy()
        y[3] = np.nan
        table, estimate = audited(self.X, y, 1, "mse")
        page = page_of(report_elements(table, tmp_path / "report.html", estimate))
        assert len(page.pictures) == 1 + 3 * 20 and "(dark blue)" in page.text
        assert page.text.index("#3, score inf") < page.text.index("#", page.text.index("#3, score inf") + 1)

    def test_inputs_of_any_range(self):
        from prl_keras.reports.pictures import in_unit_range

        image = np.array([[[0], [255]]], "uint8")
        np.testing.assert_array_equal(in_unit_range(image), image / 255)
        np.testing.assert_allclose(in_unit_range(np.array([[[-2.0], [0], [2]]])), [[[0], [0.5], [1]]])
        np.testing.assert_array_equal(in_unit_range(self.X[0]), self.X[0])


class TestAttributes:
    X = RNG.normal(size=(60, 4)).astype("float32")

    def test_the_flagged_ones_of_each_example(self, tmp_path):
        y = RNG.integers(0, 2, (60, 5))
        table, estimate = audited(self.X, y, 5, keras.losses.BinaryCrossentropy(from_logits=True))
        attributes = ["smiling", "young", "hat", "beard", "glasses"]
        page = page_of(
            report_elements(
                table,
                tmp_path / "report.html",
                estimate,
                class_names=("no", "yes"),
                attribute_names=attributes,
            )
        )
        first = worst_of(table)
        line = re.search(f"<tr class='item' data-id='{first}'>.*", page.content)[0]
        flagged = table.loc[first].query("is_flagged").sort_values("rank")
        assert re.findall(r"<li>(\w+): given", line) == [attributes[at] for at in flagged.index]
        given = re.findall("class='given'>(.*?)<", line)
        assert given == [("no", "yes")[label] for label in flagged["given"]]

    def test_at_each_step_and_of_pictures(self, tmp_path):
        x = RNG.uniform(size=(10, 3, 3, 3)).astype("float32")
        y = RNG.integers(0, 2, x.shape)
        table, _ = audited(x, y, 3, keras.losses.BinaryCrossentropy(from_logits=True))
        page = page_of(report_elements(table, tmp_path / "report.html", inputs=x))
        assert len(page.pictures) == 2 + 10 and re.search(
            r"row \d, column \d, attribute \d: given", page.text
        )


class TestFaults:
    def test_what_does_not_go_with_the_table(self, tmp_path):
        table, _ = audited(TestSequences.X, TestSequences.Y, 3, SPARSE)
        path = tmp_path / "report.html"
        for options, message in (
            ({"inputs": TestSequences.X[:5]}, "inputs are 5, and the table goes up to 59"),
            ({"class_names": ["a", "b"]}, "class_names are 2"),
        ):
            with pytest.raises(ValueError, match=message):
                report_elements(table, path, **options)
        with pytest.raises(ValueError, match="must be a file of HTML"):
            report_elements(table, tmp_path)
        with pytest.raises(ValueError, match="is empty"):
            report_elements(table[:0], path)
        with pytest.raises(ValueError, match="has a row for each example"):
            report_elements(table.reset_index(drop=True), path)
        assert not list(tmp_path.iterdir())
