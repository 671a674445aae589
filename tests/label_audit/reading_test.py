"""What is read from a CSV file or a folder of images, and what is refused."""

import keras
import numpy as np
import pandas as pd
import pytest

from prl_keras.label_audit.images import read_images
from prl_keras.label_audit.tables import read_table

RNG = np.random.default_rng(0)


def written(folder, lines, name="data.csv"):
    path = folder / name
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def rows(line, n=12):
    """Rows with the labels a and b; "{i}" is the number of the row and "{x}" a random number."""
    return [line.format(i=i, x=RNG.normal(), label="ab"[i % 2]) for i in range(n)]


class TestTables:
    def test_numbers_are_standardized_and_missing_ones_marked(self, tmp_path):
        lines = ["size,kind", "1,a", "3,b", ",a", "nan,b", *["1,a", "3,b"] * 4]
        found = read_table(written(tmp_path, lines), "kind")
        assert found.inputs.shape == (12, 2) and found.inputs.dtype == np.float32
        np.testing.assert_allclose(found.inputs.mean(axis=0), 0, atol=1e-6)
        np.testing.assert_allclose(found.inputs.std(axis=0), 1, atol=1e-6)
        assert (found.inputs[[2, 3], 1] > 0).all() and (found.inputs[[0, 1, 4], 1] < 0).all()
        assert list(found.targets[:4]) == [0, 1, 0, 1] and found.class_names == ["a", "b"]
        assert found.ids == list(range(2, 14)) and "12 labelled rows" in found.source

    def test_categories_texts_and_what_is_left_out(self, tmp_path):
        header = "id,name,colour,text,constant,label"
        colours, words = ["red", "blue", "n/a"], ["a good day indeed", "a bad night again", "so so it was"]
        lines = [f"{i},person{i},{colours[i % 3]},{words[i // 4]},same,{'ab'[i % 2]}" for i in range(1, 12)]
        found = read_table(written(tmp_path, [header, *lines]), "label")
        assert found.inputs.shape == (11, 3 + 9) and "2 columns to learn from" in found.source
        (note,) = [note for note in found.notes if "left out" in note]
        for text in (
            "id (numbers the rows)",
            "name (11 different values, such as 'person1')",
            "constant (one value)",
        ):
            assert text in note

    def test_semicolons_decimal_commas_and_a_byte_order_mark(self, tmp_path):
        lines = ["\ufeffsize;kind", *[f"{i},5;{'ab'[i % 2]}" for i in (3, 1, 4, 1, 5, 9, 2, 6, 5, 3)]]
        found = read_table(written(tmp_path, lines), "kind")
        assert found.inputs.shape == (10, 1) and found.inputs[5, 0] == found.inputs.max()

    @pytest.mark.parametrize("bad, note", [
        ({}, ""),
        ({12: "forty"}, "age: 1 cell is no number and counts as missing: 'forty' in row 14."),
        ({3: "x" * 60, 7: "?", 12: "forty"},
         f"age: 2 cells are no numbers and count as missing: the first is '{'x' * 37}...' in row 5."),
        ({i: f"about {i}" for i in range(0, 50, 13)}, "age (50 different values, such as 'about 0')"),
    ])  # fmt: skip
    def test_typos_in_a_column_of_numbers_count_as_missing(self, tmp_path, bad, note):
        ages = [bad.get(i, f"{100 + i * i}") for i in range(50)]
        lines = [f"{x},{age},{'ab'[i % 2]}" for i, (x, age) in enumerate(zip(RNG.normal(size=50), ages))]
        found = read_table(written(tmp_path, ["size,age,kind", *lines]), "kind")
        assert note in " ".join(found.notes) and bool(found.notes) == bool(note)
        is_missing = [i in bad for i in range(50)]
        if len(bad) > 3:
            assert found.inputs.shape == (50, 1)
        elif bad:
            assert list(found.inputs[:, 2] > 0) == is_missing

    def test_few_numbers_show_no_typos(self, tmp_path):
        lines = ["size,age,kind", *rows("{x},{i}.5,{label}", 9), "1,forty,a"]
        found = read_table(written(tmp_path, lines), "kind")
        assert "age (10 different values, such as '0.5')" in found.notes[0]

    def test_numbers_of_the_rows_with_a_typo_are_no_input(self, tmp_path):
        lines = ["size,id,kind", *rows("{x},{i},{label}", 30), "1,forty,a"]
        (note,) = read_table(written(tmp_path, lines), "kind").notes
        assert note == "Columns that are left out: id (numbers the rows)."

    @pytest.mark.parametrize("cells, numbers", [
        (["50,644.00", "1,234.5", "950,000", "7"], [50644, 1234.5, 950000, 7]),
        (["1,234,567", "-2,345,678", "950,000", "12.5"], [1234567, -2345678, 950000, 12.5]),
        (["3,14", "2,718", "1,234"], [3.14, 2.718, 1.234]),
    ])  # fmt: skip
    def test_thousands_separators_and_decimal_commas(self, tmp_path, cells, numbers):
        lines = [f'"{cell}",{x}' for x, cell in zip(RNG.normal(size=20 * len(cells)), 20 * cells)]
        path = written(tmp_path, ["pay,size", *lines])
        found = read_table(path, "pay", "numbers")
        mean, deviation = found.scale
        np.testing.assert_allclose(found.targets[:, 0] * deviation + mean, 20 * numbers, rtol=1e-3)
        (inputs,) = read_table(path, "size").inputs.T
        np.testing.assert_allclose(inputs * np.std(numbers) + np.mean(numbers), 20 * numbers, rtol=1e-3)

    def test_rows_are_numbered_as_in_a_spreadsheet(self, tmp_path):
        lines = ["size,kind", *rows("{x},{label}", 4), ",", "1.5,", *rows("{x},{label}", 8)]
        found = read_table(written(tmp_path, lines), "kind")
        assert found.ids == [2, 3, 4, 5, *range(8, 16)]
        assert found.all_ids == list(range(2, 16))
        assert any("1 empty rows" in note for note in found.notes)
        assert any("1 rows have no label" in note and "rows 7" in note for note in found.notes)

    def test_a_blank_line_counts_but_is_no_row_as_in_pandas(self, tmp_path):
        lines = ["", *rows("{x},{label}", 3), "", ",", "  ", ",", '""', *rows("{x},{label}", 9), "", ",", ""]
        path = written(tmp_path, ["size,kind", *lines])
        found = read_table(path, "kind")
        assert len(found.all_ids) == len(pd.read_csv(path)) == 12 + 4
        assert found.ids == [3, 4, 5, *range(11, 20)] and set(found.ids) < set(found.all_ids)
        kinds = dict(zip(found.ids, found.given))
        assert [kinds.get(i, "") for i in found.all_ids] == list(pd.read_csv(path)["kind"].fillna(""))

    def test_a_column_that_says_the_same_as_the_label_is_no_input(self, tmp_path):
        lines = ["size,number,kind", *[f"{i * i % 7},{1 + i % 2},{'ab'[i % 2]}" for i in range(12)]]
        found = read_table(written(tmp_path, lines), "kind")
        assert found.inputs.shape == (12, 1) and "number (says the same as the label)" in found.notes[0]

    def test_copies_and_classes_of_one_are_named(self, tmp_path):
        lines = ["size,kind", "1,a", "1,b", "1,b", "2,c", *[f"{i},{'ab'[i % 2]}" for i in (5, 3, 8, 9, 6, 7)]]
        notes = " ".join(read_table(written(tmp_path, lines), "kind").notes)
        assert "2 rows repeat the inputs of another one. Copies with different labels" in notes
        assert "are wrong: 2 = 3 = 4." in notes and "cannot be checked: c." in notes

    def test_copies_with_different_numbers_may_all_be_right(self, tmp_path):
        lines = ["age,pay", "30,100.5", "30,200.5", *[f"{i * i},{i}.5" for i in range(10)]]
        notes = " ".join(read_table(written(tmp_path, lines), "pay").notes)
        assert (
            "different labels, which the inputs cannot tell apart: 2 = 3." in notes and "wrong" not in notes
        )

    @pytest.mark.parametrize("labels, text", [
        (("HIGH", "high", "low"), "different classes: 'HIGH' and 'high'. Write them alike"),
        (("a", "b"), None),
    ])  # fmt: skip
    def test_classes_that_differ_only_in_case_are_named(self, tmp_path, labels, text):
        lines = [f"{i * i},{labels[i % len(labels)]}" for i in range(12)]
        found = read_table(written(tmp_path, ["size,kind", *lines]), "kind")
        assert text in found.notes[0] if text else not found.notes
        assert found.class_names == list(labels)

    @pytest.mark.parametrize("labels, task, names", [
        (["0.5", "1", "2"], "auto", 0), ([str(i) for i in range(40)], "auto", 0), (["1", "2"], "auto", 2),
        (["1", "2", "10"], "classes", 3), (["1", "2"], "numbers", 0), (["1", "2", "x"], "auto", 3),
    ])  # fmt: skip
    def test_labels_that_are_numbers(self, tmp_path, labels, task, names):
        lines = [f"{x},{label}" for label, x in zip(labels * 20, RNG.normal(size=20 * len(labels)))]
        found = read_table(written(tmp_path, ["size,label", *lines]), "label", task)
        assert len(found.class_names) == names
        if names:
            assert found.class_names == sorted(labels, key=lambda text: (len(text), text))
        else:
            mean, deviation = found.scale
            np.testing.assert_allclose(
                found.targets[:, 0] * deviation + mean, list(map(float, labels * 20)), rtol=1e-5, atol=1e-5
            )

    @pytest.mark.parametrize("lines, label, message", [
        ([], "a", "is empty"),
        (["size,kind"], "kind", "has no row with a label"),
        (["size,kind", *rows("{x},{label}")], None, r"Write --label=COLUMN.*: size, kind"),
        (["size,kind", *rows("{x},{label}")], "kinds", r"no column 'kinds'.*Did you mean --label='kind'"),
        (["a,b,c,d,e,f,g,h,i,j,k,kind"], None, r": a, b, c, d, e, \.\.\. \(2 more\), h, i, j, k, kind\.$"),
        (["a,b,c,d,e,f,g,h,i,kind"], "x", "It has a, b, c, d, e, f, g, h, i, kind"),
        (["size,kind", *rows("{x},a")], "kind", "has one label, 'a', everywhere"),
        (["size,kind", *rows("{x},a{i}")], "kind", "is no column of classes"),
        (["size,kind", *rows("{x},{label}", 6)], "kind", "has 6 labelled rows; an audit needs at least 10"),
        (["kind", *rows("{label}")], "kind", "has no column to learn from"),
        (["id,kind", *rows("{i},{label}")], "kind", r"has no column to learn from.*id \(numbers the rows\)"),
        (["a,kind", *rows("{x},{label},3")], "kind", "more cells than its header"),
        (["a,kind", *rows("{x},{label}"), "1,2,3,4"], "kind", "cannot be read as CSV"),
    ])  # fmt: skip
    def test_what_is_refused(self, tmp_path, lines, label, message):
        path = written(tmp_path, lines)
        if not lines:
            path.write_text("")
        with pytest.raises(ValueError, match=message):
            read_table(path, label)

    def test_numbers_that_are_none(self, tmp_path):
        path = written(tmp_path, ["size,label", *rows("{x},{i}"), "1,much"])
        with pytest.raises(ValueError, match="no number: 'much' in row 14"):
            read_table(path, "label", "numbers")
        path = written(tmp_path, ["size,label", *rows("{x},3")])
        with pytest.raises(ValueError, match="one number everywhere"):
            read_table(path, "label", "numbers")

    def test_files_that_are_no_csv(self, tmp_path):
        path = tmp_path / "table.xlsx"
        path.write_bytes(b"PK\3\4\xff\xfe\0\0")
        with pytest.raises(ValueError, match="UTF-8"):
            read_table(path, "label")
        path.write_bytes(b"PK\3\4\0\0")
        with pytest.raises(ValueError, match="is no CSV file"):
            read_table(path, "label")


def image(path, value, side=8, channels=3):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((side, side, channels), value, np.uint8)
    pixels[0, 0] = RNG.integers(0, 255)
    keras.utils.save_img(path, pixels, scale=False)


class TestImages:
    def test_a_folder_for_each_class(self, tmp_path):
        for i in range(12):
            image(tmp_path / "ab"[i % 2] / "more" / f"{i}.png", 20 * i, side=6 + i)
        image(tmp_path / "loose.png", 0)
        (tmp_path / "a" / "broken.jpg").write_bytes(b"no image")
        (tmp_path / ".cache").mkdir()
        (tmp_path / ".cache" / "x.png").write_bytes(b"hidden")
        found = read_images(tmp_path, None)
        assert found.inputs.shape == (12, 11, 11, 1) and found.inputs.dtype == np.uint8
        assert found.class_names == ["a", "b"] and list(np.bincount(found.targets)) == [6, 6]
        assert "a/more/0.png" in found.ids and len(found.ids) == 12
        notes = " ".join(found.notes)
        assert (
            "left out: a/broken.jpg." in notes and "left out: loose.png." in notes and ".cache" not in notes
        )

    def test_pictures_are_those_of_the_files(self, tmp_path):
        for i in range(10):
            image(tmp_path / "ab"[i % 2] / f"{i}.png", (10 * i, 100, 200))
        found = read_images(tmp_path, None)
        assert found.inputs.shape == (10, 8, 8, 3)
        for name, pixels in zip(found.ids, found.inputs):
            assert list(pixels[4, 4]) == [10 * int(name[2]), 100, 200]

    def test_large_ones_are_made_smaller_and_keep_their_shape(self, tmp_path):
        for i in range(10):
            path = tmp_path / "ab"[i % 2] / f"{i}.png"
            path.parent.mkdir(exist_ok=True)
            keras.utils.save_img(path, np.full((100, 200, 3), 255, np.uint8), scale=False)
        (pixels, *_) = read_images(tmp_path, None).inputs
        assert pixels.shape == (64, 64, 1) and not pixels[:15].any() and (pixels[20:44] == 255).all()

    def test_a_csv_file_of_labels(self, tmp_path):
        for i in range(14):
            image(tmp_path / "images" / f"{i}.png", 10 * i)
        lines = [f"{'ab'[i % 2]},{i}.png" for i in range(11)]
        written(tmp_path, ["label,file", *lines, "a,gone.png", ",11.png"], "labels.csv")
        found = read_images(tmp_path, None)
        assert found.ids == [f"images/{i}.png" for i in range(11)] and list(found.targets) == [0, 1] * 5 + [0]
        notes = " ".join(found.notes)
        for text in (
            "not there: gone.png",
            "no label and are left out: 11.png",
            "left out: images/12.png, images",
        ):
            assert text in notes

    def test_what_is_refused(self, tmp_path):
        with pytest.raises(ValueError, match="has no images"):
            read_images(tmp_path, None)
        for i in range(12):
            image(tmp_path / f"{i}.png", 10 * i)
        with pytest.raises(ValueError, match="has images but no labels"):
            read_images(tmp_path, None)
        with pytest.raises(ValueError, match="Leave --label out"):
            read_images(tmp_path, "kind")
        for lines, label, message in (
            (["file"], None, "needs two columns"),
            (["file,kind", "0.png,a"], "sort", "has no column 'sort'. It has file, kind"),
            (["file,kind", "x.png,a"], None, "names no image"),
            (["file,kind", "0.png,a", "0.png,b"], None, "has two labels for 0.png: 'a' and 'b'"),
            (["file,kind", "0.png,"], None, "has no label for an image"),
            (["file,kind", *[f"{i}.png,a" for i in range(12)]], None, "has one label, 'a', everywhere"),
        ):
            written(tmp_path, lines, "labels.csv")
            with pytest.raises(ValueError, match=message):
                read_images(tmp_path, label)
        written(tmp_path, ["a,b"], "more.csv")
        with pytest.raises(ValueError, match=r"several CSV files: labels\.csv, more\.csv"):
            read_images(tmp_path, None)

    def test_no_image_that_can_be_read(self, tmp_path):
        for name in ("a", "b"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "x.png").write_bytes(b"")
        with pytest.raises(ValueError, match=r"no image that can be read: a/x\.png, b/x\.png"):
            read_images(tmp_path, None)
