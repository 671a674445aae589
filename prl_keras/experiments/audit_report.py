"""One HTML file that says which labels of a run's training data look wrong, and how many."""

import dataclasses
import html
import pathlib
import string
import zipfile

import keras
import pandas as pd

import prl_keras as prl
from prl_keras import files
from prl_keras.auditing.estimate import estimate_from
from prl_keras.auditing.predictions import predict_beside
from prl_keras.auditing.table import table_of
from prl_keras.experiments import audit_pictures, datasets
from prl_keras.experiments.config import RunConfig
from prl_keras.experiments.run import SELECTION
from prl_keras.experiments.training import corrupt

_SHOWN = 50  # most suspect examples
_PAGE = string.Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff; }
body { max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; }
.number { font-size: 2.4rem; font-weight: 600; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .15rem .7rem; text-align: right; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child { text-align: left; }
img { max-width: 100%; }
.examples { display: grid; grid-template-columns: repeat(auto-fill, minmax(8.5rem, 1fr)); gap: .8rem; }
figure { margin: 0; } figure img { width: 100%; image-rendering: pixelated; border: 1px solid #ccc; }
figcaption { font-size: .8rem; line-height: 1.35; } .given { color: #b00020; } .predicted { color: #00600f; }
.note { color: #555; max-width: 46rem; }
</style>
</head>
<body>
<h1>$title</h1>
<p class="note">$about</p>
<h2>How many labels are wrong</h2>
<p><span class="number">$estimate</span> &nbsp; 90% interval $low to $high</p>
<p class="note">$meaning</p>
$sections
</body>
</html>
""")


def audit_run(run_dir, output=None, data_options=None):
    """Writes the report of a finished run, and the table of all its training examples beside it.

    Args:
        run_dir: The folder of a run, as `run.run` leaves it.
        output: The HTML file; audit.html in the folder by default. The table goes beside it, as CSV.
        data_options: For `datasets.load`.

    Returns:
        The path of the HTML file.

    Raises:
        FileNotFoundError: for a folder without a finished run.
        ValueError: for files that are damaged, data that are not those of the run, or an output that cannot
            be one.
    """
    run_dir = pathlib.Path(run_dir)
    output = pathlib.Path(output) if output else run_dir / "audit.html"
    if output.suffix == ".csv" or output.is_dir():
        raise ValueError(f"output={str(output)!r} must be a file of HTML; the table goes beside it, as CSV.")
    missing = [name for name in ("config.json", "model.keras") if not (run_dir / name).exists()]
    if missing:
        raise FileNotFoundError(
            f"{run_dir} has no {' and no '.join(missing)}, so it is no finished run. Train one with "
            "python -m binaries.train --output_dir=DIR, or finish it with --resume."
        )
    saved = files.read_json(run_dir / "config.json")
    missing = [field.name for field in dataclasses.fields(RunConfig) if field.name not in saved]
    if missing:
        raise ValueError(
            f"{run_dir / 'config.json'} has no {', '.join(missing)}: it is damaged, or of another version."
        )
    config = RunConfig(**{field.name: saved[field.name] for field in dataclasses.fields(RunConfig)})
    data = datasets.load(config.dataset, **(data_options or {}))
    if data.source != saved.get("source"):
        raise ValueError(f"The run was trained on {saved.get('source')!r}; these data are {data.source!r}.")
    data = data.subset(config.train_size, config.test_size)
    targets, is_corrupted = corrupt(config, data)
    given = data.train_x, targets
    record = None
    if (run_dir / SELECTION).exists():
        record = prl.SelectionRecord(given, run_dir / SELECTION).load()
    model = _load_model(run_dir / "model.keras")
    found = predict_beside(model, given)
    epsilon = estimate_from(found)
    table = table_of(found, record, epsilon.estimate)
    with files.replacing(output.with_suffix(".csv")) as temporary:
        table.to_csv(temporary)
    page = _page(config, data, table, epsilon, is_corrupted, record)
    with files.replacing(output) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return output


def _load_model(path):
    try:
        return keras.models.load_model(path)
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, zipfile.BadZipFile) as error:
        text = " ".join(str(error).split())
        raise ValueError(f"{path} is damaged: {text}. Train again, with --overwrite.") from error


def _page(config, data, table, epsilon, is_corrupted, record):
    is_classes = data.task == "classification"
    what = "labels" if is_classes else "targets"
    title = f"Which {what} of {config.dataset} are wrong?"
    about = (
        f"{len(table):,} training examples, ranked by {prl.METHODS[config.method].title}, trained for "
        f"{config.epochs} epochs{_told(config)}. "
        + ("The score is the mean of those in the last third of training." if record is not None else "")
        + f" Data: {data.source}"
    )
    parts = [_section("The scores", _caption_of_scores(what), audit_pictures.histogram(table))]
    if is_classes:
        picture = audit_pictures.confusion(table, data.class_names)
        parts.append(_section("Given and predicted", _CONFUSION, picture))
    cards = _examples(data, table, 0 if record is None else record.dropped.shape[1])
    parts.append(f"<h2>The {min(_SHOWN, len(table))} most suspect examples</h2>\n{cards}")
    if is_classes:
        parts.append(f"<h2>Class by class</h2>\n{_html_table(_by_class(table, data.class_names))}")
    if is_corrupted.any():
        parts.append(f"<h2>The truth</h2>\n<p class='note'>{_truth(table, is_corrupted)}</p>")
    return _PAGE.substitute(
        title=html.escape(title), about=html.escape(about), sections="\n".join(parts),
        estimate=f"{epsilon.estimate:.0%}", low=f"{epsilon.low:.0%}", high=f"{epsilon.high:.0%}",
        meaning=_meaning(table, epsilon, what),
    )  # fmt: skip


def _told(config):
    if not prl.METHODS[config.method].drops_a_fraction:
        return ""
    is_told = config.told_epsilon != "auto"
    return (
        f" and told to drop {config.told_epsilon:.0%}"
        if is_told
        else " and left to find out how many to drop"
    )


_CONFUSION = (
    "Examples by their given class and the one that the model predicts, those that agree left out. A dark "
    "cell is a mistake that many labels share."
)


def _meaning(table, epsilon, what):
    flagged = int(table["is_flagged"].sum())
    text = f"{flagged:,} {what} are flagged: the most suspect, as many as the estimate says."
    if epsilon.low == 0 < flagged:
        text += (
            f" But the interval begins at 0: as far as the estimate can tell all the {what} may be right, "
            "and the flagged ones hard. The most suspect, below, say more."
        )
    if epsilon.high - epsilon.low > 0.2:
        text += (
            " The interval is wide: the model itself errs, and its errors cannot be told from wrong labels. "
            "True labels of 100 examples drawn at random (estimate_epsilon, trusted=) make it narrow."
        )
    return text


def _caption_of_scores(what):
    return (
        f"How suspect the {what} are. Right of the line are those that are flagged. Two hills with a gap at "
        "the line are easy to tell apart; one hill is not, and what lies near the line needs a look."
    )


def _examples(data, table, networks):
    worst = table.sort_values("rank").head(_SHOWN)
    if data.train_x.ndim == 4:
        cards = [_card(data, example, row, networks) for example, row in worst.iterrows()]
        return f"<div class='examples'>{''.join(cards)}</div>"
    columns = [name for name in worst if not name.startswith("probability_")]
    return _html_table(worst[columns].reset_index().astype({"example": str}))


def _card(data, example, row, networks):
    names = data.class_names
    dropped = ""
    if networks and row["times_seen"]:
        share = row["times_dropped"] / (networks * row["times_seen"])
        dropped = f"<br>dropped {share:.0%} of the time"
    given, predicted = (html.escape(names[int(row[which])]) for which in ("given", "predicted"))
    picture = _image(audit_pictures.picture(data.train_x[example]), f"example {example}")
    return (
        f"<figure>{picture}<figcaption>#{example}<br>given <b class='given'>{given}</b><br>"
        f"predicted <b class='predicted'>{predicted}</b>{dropped}</figcaption></figure>"
    )


def _by_class(table, names):
    groups = table.groupby("given")
    frame = pd.DataFrame({"examples": groups.size(), "flagged": groups["is_flagged"].mean()})
    others = table[table["predicted"] != table["given"]].groupby("given")["predicted"]
    frame["most often predicted instead"] = others.agg(lambda column: names[column.mode().iloc[0]])
    frame.insert(0, "given class", [names[i] for i in frame.index])
    frame["flagged"] = frame["flagged"].map("{:.1%}".format)
    return frame.fillna("-")


def _truth(table, is_corrupted):
    flagged = table["is_flagged"].to_numpy()
    found = (
        f"The labels of this run were corrupted on purpose: {is_corrupted.mean():.1%} of them. The report "
        "above does not use that. "
    )
    if not flagged.any():
        return found + "Nothing is flagged."
    return found + (
        f"Of the flagged {is_corrupted[flagged].mean():.1%} are wrong, and of the wrong "
        f"{flagged[is_corrupted].mean():.1%} are flagged."
    )


def _section(heading, note, picture):
    return f"<h2>{heading}</h2>\n<p class='note'>{note}</p>\n{_image(picture, heading)}"


def _html_table(frame):
    return frame.to_html(index=False, border=0, float_format="{:.3f}".format, na_rep="-", escape=True)


def _image(png, title):
    return f"<img alt='{html.escape(title)}' src='data:image/png;base64,{png}'>"
