"""The measured numbers of README.md and docs/ are those of the files in results/ that they link.

A table links its file in the paragraph above it. The numbers of a row, those of its name too, must stand in
one row of that file, rounded as printed. A row may link a file of its own; its numbers may then stand in one
column, and its name is prose. "a / b" or "a; b" in the cells are two rows. The decimals of a paragraph or
list item must stand somewhere in the file that it links. Whole numbers and percentages of paragraphs are not
compared, nor the words beside a number.
"""

import csv
import itertools
import re

import pytest
from pages import PAGES, prose
from project import ROOT

NUMBER = re.compile(r"(?<![\w.,-])(-?)(\d[\d,]*\d|\d)(?:\.(\d+))?(%?)(?![\w-]|\.\d)")
LINK = re.compile(r"\]\(((?:\.\./)?results/[^)#]*|demo\.csv)")
# Faults and Keras's tests tell what tests show; the methods' settings and the API are no measurements.
READ = [name for name in PAGES if name not in ("faults.md", "keras.md", "api.md", "extending.md")]


def numbers(text):
    """[(value, its decimals, the value as a fraction if it is a percentage)] of the numbers in a text."""
    found = []
    for sign, whole, decimals, percent in NUMBER.findall(text):
        value = float(f"{sign}{whole.replace(',', '')}.{decimals or 0}")
        found.append((value, len(decimals), value / 100 if percent else None))
    return found


def printed_as(number, source):
    """Whether `source`, of at least as many digits, rounds to `number`."""
    return any(
        None not in (value, other) and digits >= decimals and abs(value - other) <= 0.5 * 10**-decimals + 1e-9
        for value, decimals in ((number[0], number[1]), (number[2], number[1] + 2))
        for other, digits in ((source[0], source[1]), (source[2], source[1] + 2))
    )


def stand_in(wanted, found):
    """Whether each wanted number is one of those found, each another one."""
    left = list(found)
    for number in wanted:
        source = next((source for source in left if printed_as(number, source)), None)
        if source is None:
            return False
        left.remove(source)
    return True


def cells(line):
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def tables(text):
    """(the paragraph above, the rows below the head) of each Markdown table."""
    for match in re.finditer(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):
        above = text[: match.start()].rstrip().split("\n\n")[-1]
        yield above, [cells(line) for line in match[0].splitlines()[2:]]


def linked(name, *texts):
    """The files in results/ that these texts of the page link."""
    folder = PAGES[name].parent
    return [(folder / target).resolve() for text in texts for target in LINK.findall(text)]


def rows_of(path):
    """The rows of the tables in a file, each a list of the numbers of its cells."""
    if path.suffix == ".csv":
        found = [list(csv.reader(path.open()))]
    else:
        found = [rows for _, rows in tables(path.read_text())]
    for rows in found:
        yield [[numbers(re.sub(r"(?<=[a-z])-(?=\d)", " ", cell)) for cell in row] for row in rows]


def lines_of(path, columns):
    """The numbers of each row, of each column if `columns`, and of each line that is in no table."""
    for rows in rows_of(path):
        yield from (list(itertools.chain(*row)) for row in rows)
        if columns:
            yield from (list(itertools.chain(*column)) for column in zip(*rows))
    if path.suffix != ".csv":
        yield from (numbers(line) for line in path.read_text().splitlines() if line[:1] != "|")


def parts(row):
    """The rows of results that a row of a page joins by " / " or ";"."""
    split = [re.split(r" / |;", cell) for cell in row]
    for number in range(max(map(len, split))):
        yield [number_ for part in split if number < len(part) for number_ in numbers(part[number])]


def table_rows():
    for name in READ:
        for above, rows in tables(PAGES[name].read_text()):
            for row in rows:
                values = [prose(cell) for cell in row]
                if any(numbers(value) for value in values[1:]):
                    yield pytest.param(name, above, row, id=f"{name}: {row[0]}")


@pytest.mark.parametrize(("name", "above", "row"), table_rows())
def test_the_row_stands_in_the_file_that_it_links(name, above, row):
    own = linked(name, *row)
    files = own or linked(name, above)
    assert files, f"{name} links no file in results/ for {row}"
    measured = [prose(cell) for cell in row if not LINK.search(cell)]
    found = [line for path in files for line in lines_of(path, columns=bool(own))]
    for wanted in parts(measured[1:] if own else measured):
        assert any(stand_in(wanted, line) for line in found), wanted


def decimals_in(part):
    """The numbers with a decimal point; versions are none."""
    text = re.sub(r"(Python|Keras|TensorFlow) [\d.]+", "", prose(part))
    return [number for number in numbers(text) if number[1]]


def paragraphs():
    for name in READ:
        text = re.sub(r"^\|[^\n]*$|^```.*?^```", "", PAGES[name].read_text(), flags=re.MULTILINE | re.DOTALL)
        for number, part in enumerate(re.split(r"\n\n|\n(?=\* )", text)):
            if decimals_in(part):
                yield pytest.param(name, part, id=f"{name}: {number}")


@pytest.mark.parametrize(("name", "part"), paragraphs())
def test_the_decimals_of_a_paragraph_stand_in_the_file_that_it_links(name, part):
    files = linked(name, part)
    wanted = decimals_in(part)
    assert files, f"{name} links no file in results/ for {wanted}"
    found = [number for path in files for line in lines_of(path, False) for number in line]
    missing = [number[0] for number in wanted if not stand_in([number], found)]
    assert not missing


# A summary that was written by hand -> the pages beside it that programs wrote.
SUMMARIES = {
    "audit": ("digits.md", "digits-epsilon.md", "cifar10.md", "faces.md"),
    "elements": ("tag_sequences.md", "segment_images.md", "label_rows.md"),
}
# Rows over several tables, and the seeds of elements, of which the pages have the means.
JOINED = ("epsilon 0, 0.1, 0.2, 0.3, 0.4", "the other three cases", "22.6, ", "19.2, ", "8.6, ")


# A section whose tables have a column for each setting, which margins.md has a table for.
BY_SETTING = "## The area under the margin"


def summary_rows(by_setting=False):
    for folder in SUMMARIES:
        text, _, rest = (ROOT / "results" / folder / "README.md").read_text().partition(BY_SETTING)
        for _, rows in tables(rest if by_setting else text):
            for row in rows:
                if not any(part in " ".join(row) for part in JOINED):
                    yield pytest.param(folder, row, id=f"{folder}: {row[0]}")


@pytest.mark.parametrize(("folder", "row"), summary_rows(by_setting=True))
def test_each_number_of_a_row_by_setting_stands_in_the_margins(folder, row):
    found = [number for line in lines_of(ROOT / "results" / folder / "margins.md", False) for number in line]
    for cell in row[1:]:
        assert all(stand_in([number], found) for number in numbers(prose(cell))), cell


@pytest.mark.parametrize(("folder", "row"), summary_rows())
def test_the_row_of_a_summary_stands_in_the_pages_beside_it(folder, row):
    wanted = numbers(" ".join(prose(cell) for cell in row[1:]))
    paths = [ROOT / "results" / folder / name for name in SUMMARIES[folder]]
    assert any(stand_in(wanted, line) for path in paths for line in lines_of(path, columns=True))
