"""The most suspect examples of a table with a row per step, pixel or attribute, as HTML."""

import html
from collections.abc import Sequence
from typing import Any

import numpy as np

from prl_keras.reports import pictures

_SHOWN = {"steps": 50, "pixels": 20, "places": 50}  # most suspect examples
_STEPS = 300  # of a sequence
_FLAGS = 30  # of an example
_STEPS_NOTE = (
    "The most suspect first. Each box is a step that counts, in order: its number, the given label, and "
    "after the arrow the one that the model predicts. Flagged steps have a thick red frame and a flag."
)
_PIXELS_NOTE = (
    "The most suspect first. Pixels that do not count are white; in the last picture those that are flagged "
    "are red, and the others grey."
)
_PLACES_NOTE = (
    "The most suspect first, each with those of its labels that are flagged: given, predicted, and the score."
)


def section(
    table: Any,
    inputs: Any = None,
    class_names: Sequence[str] | None = None,
    attribute_names: Sequence[str] | None = None,
) -> tuple[int, str]:
    """The most suspect examples of a table: how many, and as HTML, an element of class "item" for each.

    Args:
        table: From `prl_keras.audit`, with several labels per example.
        inputs: `[n, ...]`, the inputs of all examples, or None. Shown are images
            `[n, height, width, channels]`, and words or integers `[n, steps]`.
        class_names, attribute_names: Strings, or None for numbers.
    """
    inputs = None if inputs is None else np.asarray(inputs)
    axes = tuple(table.index.names[1:])
    show, kind = (_steps, "steps") if axes == ("step",) else (_places, "places")
    if axes == ("row", "column"):
        show, kind = _pixels, "pixels"
    ranks = table["example_rank"].to_numpy()
    worst = table[ranks <= _SHOWN[kind]]
    worst = worst.iloc[np.argsort(worst["example_rank"].to_numpy(), kind="stable")]
    count = worst["example_rank"].nunique()
    return count, show(table, worst, inputs, _Names(table, class_names, attribute_names))


def tick(example: Any) -> str:
    """A box to tick an example; useless without JavaScript, and hidden then."""
    return f"<input type='checkbox' class='mark needs-js' aria-label='tick {html.escape(str(example))}'>"


class _Names:
    """Writes labels and places as text."""

    def __init__(self, table, classes, attributes):
        self.is_classes = "given_probability" in table
        self._classes, self._attributes = classes, attributes

    def label(self, value):
        """In HTML."""
        return html.escape(self.plain_label(value))

    def plain_label(self, value):
        """As plain text."""
        if not self.is_classes:
            return f"{value:.3g}"
        return str(int(value) if self._classes is None else self._classes[int(value)])

    def place(self, axes, place):
        """Such as "step 3", or the attribute's name if it has one; in HTML."""
        return ", ".join(
            html.escape(str(self._attributes[at]))
            if axis == "attribute" and self._attributes is not None
            else f"{axis.replace('_', ' ')} {at}"
            for axis, at in zip(axes, place)
        )


def wide(table: str, name: str) -> str:
    """A table in a box that scrolls sideways on a narrow screen, by keyboard too; `name` is for readers."""
    return f"<div class='wide' role='region' tabindex='0' aria-label='{name}'>{table}</div>"


def _item(example, rows, content):
    """An example with its heading."""
    flagged = int(rows["is_flagged"].sum())
    title = f"#{example}, score {rows['example_score'].iloc[0]:.3f}, {flagged} of {len(rows)} flagged"
    return f"<div class='item' data-id='{example}'><h3>{tick(example)} {title}</h3>\n{content}</div>"


def _steps(table, worst, inputs, names):
    parts = [f"<p class='note'>{_STEPS_NOTE}</p>"]
    for example, rows in worst.groupby(level="example", sort=False):
        items = [_step(*row, _word(inputs, example, row[0]), names) for row in _rows(rows.head(_STEPS))]
        content = f"<ol class='steps'>{''.join(items)}</ol>"
        if len(rows) > _STEPS:
            content += f"\n<p class='note'>The first {_STEPS} of {len(rows):,} steps.</p>"
        parts.append(_item(example, rows, content))
    return "\n".join(parts)


def _rows(rows):
    """-> place (an index, or a tuple of them), given, predicted, is_flagged of each row."""
    places = rows.index.droplevel("example")
    return zip(places, rows["given"], rows["predicted"], rows["is_flagged"])


def _step(place, given, predicted, is_flagged, word, names):
    flag = " <b>&#9873;<span class='hidden'>flagged</span></b>" if is_flagged else ""
    given, predicted = names.label(given), names.label(predicted)
    kinds = " ".join(["agrees"] * (given == predicted) + ["flagged"] * is_flagged)
    return (
        f"<li class='{kinds}'><small>{place}{word}{flag}</small>"
        f"<span class='given'><span class='hidden'>given </span>{given}</span>"
        f"<span class='predicted'><span class='hidden'>predicted </span>{predicted}</span></li>"
    )


def _word(inputs, example, step):
    """The input of a step if it is a word or an integer, else ""."""
    if inputs is None or inputs.ndim != 2 or inputs.dtype.kind not in "iuUSO" or step >= inputs.shape[1]:
        return ""
    word = inputs[example, step]
    return f" {html.escape(word.decode(errors='replace') if isinstance(word, bytes) else str(word))}"


def _pixels(table, worst, inputs, names):
    shape = [int(table.index.get_level_values(axis).max()) + 1 for axis in ("row", "column")]
    values = worst[["given", "predicted"]].to_numpy()
    if names.is_classes:
        colors = pictures.class_colors(int(table[["given", "predicted"]].to_numpy().max()) + 1)
        legend = _legend(np.unique(values), colors, names)
        note = _PIXELS_NOTE
    else:
        values = values[np.isfinite(values)]
        colors, legend = (float(values.min(initial=np.inf)), float(values.max(initial=-np.inf))), ""
        note = f"{_PIXELS_NOTE} Targets go from {colors[0]:.3g} (dark blue) to {colors[1]:.3g} (yellow)."
    parts = [f"<p class='note'>{note}</p>{legend}"]
    for example, rows in worst.groupby(level="example", sort=False):
        figures = []
        if inputs is not None and inputs.ndim == 4 and inputs.shape[-1] in (1, 3):
            picture = pictures.picture(pictures.in_unit_range(inputs[example]))
            figures.append(_figure(picture, f"Picture of example {example}", "picture"))
        places = tuple(rows.index.get_level_values(axis).to_numpy() for axis in ("row", "column"))
        for which in ("given", "predicted"):
            mask = pictures.mask(shape, places, rows[which].to_numpy(), colors)
            text = f"{which.capitalize()} mask of example {example}: {_shares(rows[which], names)}"
            figures.append(_figure(mask, text, which))
        flags = pictures.flags(shape, places, rows["is_flagged"].to_numpy())
        share = f"{rows['is_flagged'].mean():.1%}"
        figures.append(_figure(flags, f"Flagged pixels of example {example}: {share}", f"flagged: {share}"))
        parts.append(_item(example, rows, f"<div class='pixels'>{''.join(figures)}</div>"))
    return "\n".join(parts)


def _legend(classes, colors, names):
    items = "".join(
        f"<li><span class='swatch' style='background: {pictures.to_hex(colors[int(i)])}'></span>"
        f"{names.label(i)}</li>"
        for i in classes
    )
    return f"\n<ul class='classes'>{items}</ul>"


def _shares(labels, names):
    """The three most frequent classes of a mask in words, or the range of the targets; plain text."""
    if not names.is_classes:
        return f"from {labels.min():.3g} to {labels.max():.3g}"
    shares = labels.value_counts(normalize=True).head(3)
    return ", ".join(f"{names.plain_label(label)} {share:.0%}" for label, share in shares.items())


def _figure(png, text, caption):
    return f"<figure>{pictures.tag(png, text)}<figcaption>{caption}</figcaption></figure>"


def _places(table, worst, inputs, names):
    axes = worst.index.names[1:]
    has_pictures = inputs is not None and inputs.ndim == 4 and inputs.shape[-1] in (1, 3)
    lines = []
    for example, rows in worst.groupby(level="example", sort=False):
        flagged = rows[rows["is_flagged"]].sort_values("rank")
        items = [
            f"<li>{names.place(axes, place if isinstance(place, tuple) else (place,))}: "
            f"given <b class='given'>{names.label(given)}</b>, "
            f"predicted <b class='predicted'>{names.label(predicted)}</b> ({score:.3f})</li>"
            for (place, given, predicted, _), score in zip(_rows(flagged.head(_FLAGS)), flagged["score"])
        ]
        if len(flagged) > _FLAGS:
            items.append(f"<li>and {len(flagged) - _FLAGS:,} more</li>")
        picture = ""
        if has_pictures:
            png = pictures.picture(pictures.in_unit_range(inputs[example]))
            picture = f"<td>{pictures.tag(png, f'Picture of example {example}')}</td>"
        shown = f"<ul class='flags'>{''.join(items)}</ul>" if items else "none"
        score = rows["example_score"].iloc[0]
        lines.append(
            f"<tr class='item' data-id='{example}'><td class='tick needs-js'>{tick(example)}</td>"
            f"<th scope='row'>#{example}</th>{picture}<td class='far' data-value='{score}'>{score:.3f}</td>"
            f"<td>{shown}</td></tr>"
        )
    heads = "<th scope='col' class='needs-js'><span class='hidden'>tick</span></th>"
    heads += "<th scope='col' aria-sort='none'>example</th>" + "<th scope='col'>picture</th>" * has_pictures
    heads += (
        "<th scope='col' class='far' aria-sort='descending'>score</th><th scope='col'>flagged labels</th>"
    )
    rows = "\n".join(lines)
    body = f"<table class='sortable'><thead><tr>{heads}</tr></thead>\n<tbody>{rows}</tbody></table>"
    whole = wide(body, "Table of the suspects")
    return f"<p class='note'>{_PLACES_NOTE}</p>\n{whole}"
