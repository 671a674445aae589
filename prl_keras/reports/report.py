"""The HTML page of a table of `prl_keras.audit`: how many labels look wrong, and which."""

import html
import pathlib
import string
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from prl_keras import files
from prl_keras.epsilon.intervals import EpsilonEstimate
from prl_keras.reports import elements, pictures

_LEAST, _MOST = 50, 500  # suspects that are shown
_MANY = 0.3  # from which on an estimate is doubted
_TARGETS = 10  # of a vector that are shown, each with its prediction
_SHORT, _LETTERS = 20, 400  # of a cell: what needs no second line, and the most that is shown
_HERE = pathlib.Path(__file__).parent
_PAGE = string.Template((_HERE / "page.html").read_text(encoding="utf-8"))


def report_examples(
    table: pd.DataFrame,
    output: pathlib.Path | str,
    estimate: EpsilonEstimate | None = None,
    inputs: Any = None,
    class_names: Sequence[str] | None = None,
    ids: Sequence[Any] | None = None,
    id_name: str = "example",
    cells: pd.DataFrame | None = None,
    networks: int = 1,
    title: str = "Which labels are wrong?",
    about: str = "",
    further: Sequence[tuple[str, str]] = (),
    doubts: Sequence[str] | None = None,
) -> pathlib.Path:
    """Writes the page of a table with a row per example.

    It shows the flagged examples, the most suspect first: at least 50 and at most 500. They can be sorted and
    filtered, and the numbers of their rows copied.

    Args:
        table: From `prl_keras.audit`, with one label or target vector per example.
        output: The HTML file.
        estimate: From `prl_keras.estimate_epsilon`; None for the flagged fraction, without an interval.
        inputs: `[n, ...]`, the inputs of all examples, or None. Shown are images
            `[n, height, width, channels]` with 1 or 3 channels.
        class_names: A string per class; None for their numbers.
        ids: What identifies each example, such as its file; None for its number.
        id_name: What an identifier is, in one word.
        cells: Further columns to show, a row per example, or None.
        networks: The number of networks that `times_dropped` counts.
        title: Of the page, plain text.
        about: Its introduction, plain text.
        further: Headings and texts of sections at the end, plain text.
        doubts: Sentences on the estimate, plain text; None for those that fit it.

    Returns:
        The path of the HTML file.

    Raises:
        ValueError: for an empty table, one with several labels per example, or fewer inputs, ids, cells or
            names than the table needs; an invalid output.
    """
    output = check_output(output)
    if table.index.nlevels > 1:
        raise ValueError("The table has several labels for each example; report_elements takes it.")
    _check_rows(table)
    is_classes = "given_probability" in table
    what = "labels" if is_classes else "targets"
    for name, given in (("inputs", inputs), ("ids", ids), ("cells", cells)):
        if given is not None and len(given) != len(table):
            raise ValueError(f"{name} are {len(given)}, and the table has {len(table)} examples.")
    names = _class_names(class_names, table) if is_classes else None
    parts = [_of_suspects(table, inputs, names, ids, id_name, cells, networks)]
    parts += _of_all(table, names, what, "examples")
    parts += [_section(heading, html.escape(text)) for heading, text in further]
    _write_page(output, _filled(table, estimate, title, about, what, parts, doubts))
    return output


def report_elements(
    table: pd.DataFrame,
    output: pathlib.Path | str,
    estimate: EpsilonEstimate | None = None,
    inputs: Any = None,
    class_names: Sequence[str] | None = None,
    attribute_names: Sequence[str] | None = None,
    title: str = "Which labels are wrong?",
    about: str = "",
) -> pathlib.Path:
    """Writes the page of a table with a row per step, pixel or attribute, and the table beside it.

    It shows the most suspect examples. For sequences it shows their steps and marks the flagged ones. For
    pixels it shows the picture, the given and the predicted mask, and the flagged pixels. For attributes and
    all other labels it lists the flagged ones.

    Args:
        table: From `prl_keras.audit`, with several labels per example.
        output: The HTML file. The table is a CSV file beside it.
        estimate: From `prl_keras.estimate_epsilon`; None for the flagged fraction, without an interval.
        inputs: `[n, ...]`, the inputs of all examples, or None. Shown are images
            `[n, height, width, channels]` with 1 or 3 channels, and words or integers `[n, steps]`.
        class_names: A string per class; None for their numbers.
        attribute_names: A string per attribute; None for their numbers.
        title: Of the page, plain text.
        about: Its introduction, plain text.

    Returns:
        The path of the HTML file.

    Raises:
        ValueError: for a table of examples or without rows; fewer inputs or names than the table needs; an
            invalid output.
    """
    output = check_output(output)
    if table.index.names[0] != "example" or table.index.nlevels < 2:
        raise ValueError(
            "The table has a row for each example, and report_elements takes one with several for each. "
            "report_examples takes it."
        )
    _check_rows(table)
    is_classes = "given_probability" in table
    examples = table.index.get_level_values("example")
    _check_enough("inputs", inputs, examples)
    names = _class_names(class_names, table) if is_classes else None
    if "attribute" in table.index.names:
        _check_enough("attribute_names", attribute_names, table.index.get_level_values("attribute"))
    what = "labels" if is_classes else "targets"
    shown = elements.section(table, inputs, class_names, attribute_names)
    parts = [_suspects("example", *shown, has_choices=False), *_of_all(table, names, what, what)]
    about = f"{len(table):,} labels of {examples.nunique():,} examples. {about}"
    write_table(output, table)
    _write_page(output, _filled(table, estimate, title, about, what, parts))
    return output


def check_output(output: pathlib.Path | str) -> pathlib.Path:
    """The path of a page; ValueError for a folder or a CSV file, the name of the table beside it."""
    output = pathlib.Path(output)
    if output.suffix == ".csv" or output.is_dir():
        raise ValueError(f"output={str(output)!r} must be a file of HTML; the table goes beside it, as CSV.")
    return output


def write_table(output: pathlib.Path, table: pd.DataFrame) -> None:
    """Writes the table as a CSV file beside the page `output`."""
    with files.replacing(output.with_suffix(".csv")) as temporary:
        table.to_csv(temporary)


def _write_page(output, page):
    with files.replacing(output) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _check_rows(table):
    if not len(table):
        raise ValueError("The table is empty: no label counts.")


def _check_enough(what, given, numbers):
    if given is not None and len(given) <= numbers.max():
        raise ValueError(
            f"{what} are {len(given)}, and the table goes up to {numbers.max()}; they begin at 0."
        )


def _class_names(names, table):
    if names is not None:
        _check_enough("class_names", names, table[["given", "predicted"]].to_numpy())
        return [str(name) for name in names]
    return [str(i) for i in range(int(table[["given", "predicted"]].to_numpy().max()) + 1)]


def _filled(table, estimate, title, about, what, parts, doubts=None):
    if estimate is None:
        share = float(table["is_flagged"].mean())
        number, interval = share, ""
        meaning = f"So many of the {what} are flagged, as audit was told."
    else:
        number = estimate.estimate
        interval = f"&nbsp; 90% interval {estimate.low:.0%} to {estimate.high:.0%}"
        meaning = html.escape(_meaning(table, estimate, what, doubts))
    style, script = ((_HERE / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    return _PAGE.substitute(
        title=html.escape(title), about=html.escape(about), what=what, sections="\n".join(parts),
        estimate=f"{number:.0%}", interval=interval, meaning=meaning, style=style, script=script,
    )  # fmt: skip


_SCORES = (
    "How suspect the {} are. Right of the line are those that are flagged. Two hills with a gap at the line "
    "are easy to tell apart; one hill is not, and what lies near the line needs a look."
)
_CONFUSION = (
    "{} by their given class and the one that the model suggests, without those that agree. The "
    "stronger the color of a cell, the more labels share that mistake."
)


def _meaning(table, epsilon, what, doubts):
    flagged = int(table["is_flagged"].sum())
    sentences = [f"{flagged:,} {what} are flagged: the most suspect, as many as the estimate says."]
    sentences += doubts_on(table, epsilon, what) if doubts is None else doubts
    # Trusted labels are given per example, and to a model in Python.
    if doubts is None and table.index.nlevels == 1 and _is_wide(epsilon):
        sentences.append(
            "True labels of 100 examples drawn at random (estimate_epsilon, trusted=) narrow the interval."
        )
    return " ".join(sentences)


def doubts_on(
    table: pd.DataFrame,
    estimate: EpsilonEstimate,
    what: str = "labels",
    inputs: str = "inputs",
    suggestions: str = "the suggestions",
) -> list[str]:
    """Sentences on why the flagged labels may be right.

    `what`, `inputs` and `suggestions` are what the labels, the inputs and the predicted labels are called.
    """
    sentences = []
    if estimate.low == 0 < table["is_flagged"].sum():
        sentences.append(
            f"The interval begins at 0: as far as the estimate can tell all the {what} may be right, and the "
            "flagged ones hard. The most suspect say more."
        )
    if _is_wide(estimate):
        sentences.append(
            "The interval is wide: the model itself errs, and its errors cannot be told from wrong labels."
        )
    if estimate.estimate >= _MANY:
        sentences.append(
            f"So many flagged {what} may also mean that the {inputs} hardly tell the {what}. Then many of "
            f"them may be right: do not apply {suggestions} without looking at each."
        )
    return sentences


def _is_wide(estimate):
    return estimate.high - estimate.low > 0.2


def _of_suspects(table, inputs, names, ids, id_name, cells, networks):
    """The table of the most suspect examples."""
    shown = min(len(table), int(np.clip(table["is_flagged"].sum(), _LEAST, _MOST)))
    places = np.argsort(table["rank"].to_numpy(), kind="stable")[:shown]
    columns = _columns(table.iloc[places], names, networks)
    images = [""] * shown
    if inputs is not None and np.ndim(inputs) == 4 and np.shape(inputs)[-1] in (1, 3):
        pngs = [pictures.picture(pictures.in_unit_range(np.asarray(inputs[i]))) for i in places]
        tags = [pictures.tag(png, f"{id_name} {_id(ids, table, i)}") for png, i in zip(pngs, places)]
        images = [f"<td>{tag}</td>" for tag in tags]
    for name in () if cells is None else cells.columns:
        columns.append((str(name), "none", [_cell(value) for value in cells[name].iloc[places]]))
    lines = []
    for at, place in enumerate(places):
        row, own = table.iloc[place], html.escape(str(_id(ids, table, place)))
        data = f" data-id='{own}'"
        if names is not None:
            data += "".join(
                f" data-{which}='{html.escape(_name(names, row[which]))}'" for which in ("given", "predicted")
            )
        mark = f"<td class='tick needs-js'>{elements.tick(_id(ids, table, place))}</td>"
        number = f"<td class='far'>{int(row['rank'])}</td>"
        rest = "".join(cell[at] for _, _, cell in columns)
        lines.append(
            f"<tr class='item'{data}>{mark}{number}{images[at]}<th scope='row'>{own}</th>{rest}</tr>"
        )
    heads = "<th scope='col' class='needs-js'><span class='hidden'>tick</span></th>"
    heads += "<th scope='col' class='far' aria-sort='ascending'>rank</th>"
    heads += "<th scope='col'>picture</th>" if images[0] else ""
    heads += f"<th scope='col' aria-sort='none'>{html.escape(id_name)}</th>"
    for name, sort, cell in columns:
        far = " class='far'" if cell and "class='far'" in cell[0] else ""
        heads += f"<th scope='col'{far}{f' aria-sort={sort!r}' if sort else ''}>{html.escape(name)}</th>"
    body = "\n".join(lines)
    body = f"<table class='sortable'><thead><tr>{heads}</tr></thead>\n<tbody>{body}</tbody></table>"
    whole = elements.wide(body, "Table of the suspects")
    return _suspects(id_name, shown, whole, has_choices=names is not None)


def _id(ids, table, place):
    return table.index[place] if ids is None else ids[place]


def _columns(rows, names, networks):
    """-> list of (heading, aria-sort, cells in HTML): what the model says of the rows."""
    columns = []
    if names is not None:
        for which, heading in (("given", "given"), ("predicted", "suggested")):
            columns.append((heading, "none", [
                f"<td><b class='{which}'>{html.escape(_name(names, value))}</b></td>" for value in rows[which]
            ]))  # fmt: skip
        columns.append(("probability of given", "none", [_number(p) for p in rows["given_probability"]]))
    else:
        vectors = [name for name in rows if name.startswith(("given_", "predicted_"))]
        vectors = vectors if len(vectors) <= 2 * _TARGETS else []
        alone = len(vectors) == 2
        for name in vectors:
            kind = name.split("_")[0]
            heading = ("suggested" if kind == "predicted" else kind) if alone else name
            columns.append((heading, "none", [_number(value, 4) for value in rows[name]]))
    columns.append(("score", "none", [_number(score) for score in rows["score"]]))
    flags = [
        f"<td data-value='{int(flag)}'>{'<b>yes</b>' if flag else 'no'}</td>" for flag in rows["is_flagged"]
    ]
    columns.append(("flagged", "none", flags))
    if "times_dropped" in rows:
        shares = rows["times_dropped"] / (networks * rows["times_seen"]).where(rows["times_seen"] > 0)
        cells = [
            "<td class='far' data-value=''>-</td>" if np.isnan(share) else
            f"<td class='far' data-value='{share:.4f}'>{share:.0%}</td>" for share in shares
        ]  # fmt: skip
        columns.append(("dropped in training", "none", cells))
    return columns


def _name(names, label):
    return names[int(label)] if label >= 0 else "none"


def _number(value, digits=3):
    shown = (
        "not finite" if not np.isfinite(value) else f"{value:.{digits}g}" if digits > 3 else f"{value:.3f}"
    )
    value = "" if np.isnan(value) else value
    return f"<td class='far' data-value='{value}'>{shown}</td>"


def _cell(value):
    if isinstance(value, (float, np.floating)):
        return f"<td class='far' data-value='{'' if np.isnan(value) else value}'>{value:.4g}</td>"
    text = "" if value is None or value is pd.NA else str(value)
    cut = text[:_LETTERS] + "\u2026" if len(text) > _LETTERS else text
    shown = html.escape(cut)
    return f"<td><div>{shown}</div></td>" if len(cut) > _SHORT else f"<td>{shown}</td>"


def _suspects(id_name, shown, content, has_choices=True):
    """The section of the suspects: tools, which need JavaScript, and the suspects themselves."""
    choices = (
        f"<label>{heading} <select id='{which}'><option value=''>all</option></select></label>"
        for which, heading in (("given", "Given"), ("predicted", "Suggested"))
    )
    key = zlib.crc32(content.encode())  # the ticks of one page are not those of the next
    return (
        f"<section id='suspects' aria-labelledby='suspects-title' data-key='{key}'>\n"
        f"<h2 id='suspects-title'>The {shown} most suspect examples</h2>\n"
        "<div class='tools needs-js' role='group' aria-label='Search, filter and copy'>\n"
        "<label>Search <input type='search' id='find'></label>\n"
        f"{''.join(choices) if has_choices else ''}\n"
        f"<button type='button' id='copy'>Copy {html.escape(id_name)} "
        f"{'names' if id_name == 'file' else 'numbers'}</button>\n<p id='status' role='status'></p>\n"
        "<p class='note'><label><input type='checkbox' id='keys' checked> Keys:</label> "
        f"{_KEYS}</p>\n</div>\n"
        f"{content}\n</section>"
    )


_KEYS = (
    "<kbd>j</kbd> next, <kbd>k</kbd> previous (or arrows in the list), <kbd>x</kbd> tick, <kbd>c</kbd> copy "
    "the ticked ones, or all that are shown, <kbd>/</kbd> search."
)


def _of_all(table, names, what, unit):
    """The sections on all rows of the table; `unit` is what a row is, and `names` is None without classes."""
    parts = [_section("The scores", _SCORES.format(what), pictures.histogram(table, unit))]
    if names is not None:
        picture = pictures.confusion(table, names, unit)
        parts.append(_section("Given and suggested", _CONFUSION.format(unit.capitalize()), picture))
        parts.append(_of_classes(table, names, unit))
    return parts


def _of_classes(table, names, unit):
    groups = table[table["given"] >= 0].groupby("given")
    frame = pd.DataFrame({unit: groups.size(), "flagged": groups["is_flagged"].mean()})
    others = table[table["predicted"] != table["given"]].groupby("given")["predicted"]
    frame["most often suggested instead"] = others.agg(lambda column: names[column.mode().iloc[0]])
    frame.insert(0, "given class", [names[i] for i in frame.index])
    frame["flagged"] = frame["flagged"].map("{:.1%}".format)
    body = frame.fillna("-").to_html(index=False, border=0, escape=True).replace("<th>", "<th scope='col'>")
    body = elements.wide(body, "Table of the classes")
    return f"<section aria-labelledby='classes'>\n<h2 id='classes'>Class by class</h2>\n{body}\n</section>"


def _section(heading, note, picture=None):
    name = "".join(letter if letter.isalnum() else "-" for letter in heading.lower())
    image = "" if picture is None else f"{pictures.tag(picture, heading, 'plot')}\n"
    return (
        f"<section aria-labelledby='{name}'>\n<h2 id='{name}'>{html.escape(heading)}</h2>\n"
        f"<p class='note'>{note}</p>\n{image}</section>"
    )
