"""The leaderboard as a Markdown page and a CSV file."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from prl_keras import files
from prl_keras.experiments.leaderboard.entries import BASELINE, DEFAULT, Entry, Setting
from prl_keras.experiments.leaderboard.standing import cells, complete, differences, run_values, standing
from prl_keras.experiments.markdown import NOTHING, markdown_table, number
from prl_keras.experiments.paper.comparisons import paired

_TOLD = {"true": "true epsilon", "auto": "auto", "nothing": "-"}


def write_page(
    contents: Sequence[Mapping[str, Any]],
    wanted: Mapping[Any, tuple[str, Setting]],
    entries: Mapping[str, Entry],
    costs: Mapping[str, float],
    directory: pathlib.Path | str,
    command: str,
) -> list[pathlib.Path]:
    """Writes README.md and cells.csv into `directory`.

    Args:
        contents: Finished runs, from `results.read_all`.
        wanted: From `entries.configs`.
        entries: From `entries.entries`.
        costs: Entry name -> time of a step relative to plain training; entries may be missing.
        directory: The folder; made if missing.
        command: What makes the wanted runs and the page.

    Returns:
        The paths.

    Raises:
        ValueError: if no wanted run is finished.
    """
    runs = run_values(contents, wanted)
    if runs.empty:
        raise ValueError("No run of the leaderboard is finished; leave --report away to make them.")
    used = [content for content in contents if content["config"] in wanted]
    finished, runs = len(runs), complete(runs, wanted)
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    paths = [directory / "README.md", directory / "cells.csv"]
    with files.replacing(paths[0]) as temporary:
        temporary.write_text(
            "\n\n".join(sections(runs, used, (finished, len(wanted)), entries, costs, command)) + "\n",
            "utf-8",
        )
    with files.replacing(paths[1]) as temporary:
        cells(runs).to_csv(temporary, index=False, float_format="%.6g", lineterminator="\n")
    return paths


def sections(
    runs: pd.DataFrame,
    used: Sequence[Mapping[str, Any]],
    counts: tuple[int, int],
    entries: Mapping[str, Entry],
    costs: Mapping[str, float],
    command: str,
) -> list[str]:
    """The page, a list of headings, texts and tables; the arguments are those of `write_page`."""
    found = cells(runs)
    noisy = [setting for setting in found["setting"].unique() if not setting.endswith(", clean")]
    table = standing(runs, noisy)
    page = [
        "# Leaderboard",
        caption(runs, used, counts, command),
        "A run's accuracy, in percent on clean test examples, is taken at three epochs. **Last** is what "
        "`fit` leaves. **Chosen** is the epoch at which `prl_keras.LabelWave` would stop, without clean "
        "labels; the last one if it would not. **Best** is chosen with the clean test labels, which nobody "
        'has in practice. `told` is what the method is told: the true epsilon, `epsilon="auto"`, or nothing.',
        "## All noisy settings",
        f"Means over {len(noisy)} settings. *Gain* is the last epoch less plain training's, paired by "
        "setting and seed, with its 95% interval (Student's t); p is adjusted for the number of entries "
        "(Benjamini and Hochberg). *Worst* is the lowest gain of a setting. *Memorized* is the percentage of "
        "wrong labels that the network predicts at the end. *Cost* is the time of a training step relative "
        "to plain training of one network. cells.csv has the interval of each setting.",
        standing_table(table, entries, costs),
    ]
    untold = table[[entries[name].told != "true" for name in table["entry"]]]
    page += [
        "## Without epsilon",
        "The entries of the table above that are told nothing.",
        standing_table(untold, entries, costs),
        *the_default(runs, table, entries),
    ]
    for dataset in found["dataset"].unique():
        page += [f"## {dataset}", by_noise(found[found["dataset"] == dataset], table["entry"])]
    page += [
        "## Plain training, stopped well",
        "Plain training at its last, its chosen and its best epoch, and the entries whose last epoch is "
        "below each by more than noise: the 95% interval of the difference, paired by seed, lies below 0.",
        against_plain(runs, found, noisy),
        *below_plain(table),
    ]
    clean = [setting for setting in found["setting"].unique() if setting not in noisy]
    if clean:
        page += [
            "## Clean labels",
            "What an entry costs where no label is wrong: the last epoch less plain training's, paired by "
            "the seed, with its 95% interval.",
            on_clean(runs, clean, table["entry"]),
        ]
    return page


def caption(
    runs: pd.DataFrame, used: Sequence[Mapping[str, Any]], counts: tuple[int, int], command: str
) -> str:
    """What was run, by what, on what; `counts` are the numbers of finished and of all runs."""
    protocols = {}
    for content in used:
        config = content["config"]
        protocols[config.dataset] = (
            f"{config.dataset}: {content.get('source', 'source not stated')}; network {config.network}, "
            f"{config.epochs} epochs of batches of {config.batch_size}, Adam {config.learning_rate:g}; for "
            "methods that drop a fraction a ramp of a fifth of the epochs"
        )
    seeds = runs.groupby("dataset", sort=False)["seed"].unique()
    shown = "; ".join(f"{name} {', '.join(map(str, sorted(found)))}" for name, found in seeds.items())
    is_whole = counts[0] == counts[1]
    which = "" if is_whole else " of which no run is missing (all seeds if there is none)"
    hours = sum(content["history"]["seconds"].sum() for content in used) / 3600
    lines = [
        f"Made by: `{command}`",
        f"Runs: {counts[0]} of {counts[1]}; seeds{which}: {shown}",
        *protocols.values(),
        f"Training took {hours:.2f} hours in all, without tests and the trainings before a cut, on "
        + "; ".join(sorted({str(content.get("device", "a device not stated")) for content in used})),
    ]
    return "\n".join(f"- {line}" for line in lines)


def the_default(runs: pd.DataFrame, table: pd.DataFrame, entries: Mapping[str, Entry]) -> list[str]:
    """How `DEFAULT` compares with plain training and with the best entry that is told the true epsilon."""
    told = [name for name in table["entry"] if entries[name].told == "true"]
    if not told or DEFAULT not in set(table["entry"]):
        return []
    rivals = {"plain training": BASELINE, f"`{told[0]}`": told[0]}
    found = {title: differences(runs, DEFAULT, name, "last", "last") for title, name in rivals.items()}
    settings = list(dict.fromkeys(setting for part in found.values() for setting in part["setting"]))
    lines = []
    for setting in settings:
        line = [setting]
        for part in found.values():
            own = part[part["setting"] == setting]
            line.append(_difference(own.iloc[0]) if len(own) else NOTHING)
        lines.append(line)
    lines.append(["mean of the noisy settings"])
    noisy = runs[~runs["setting"].str.endswith(", clean")].set_index(["setting", "seed"])
    ours = noisy[noisy["entry"] == DEFAULT]["last"]
    for name in rivals.values():
        lines[-1].append(_difference(paired(ours, noisy[noisy["entry"] == name]["last"])))
    return [
        f'## The default, `build("{DEFAULT}")`',
        "Its last epoch less that of plain training, and of the best entry that is told the true epsilon, "
        "paired by the seed, with 95% intervals.",
        markdown_table(["setting", *(f"less {title}" for title in rivals)], lines),
    ]


def standing_table(table: pd.DataFrame, entries: Mapping[str, Entry], costs: Mapping[str, float]) -> str:
    """The table of `standing`, a line per entry."""
    header = [
        "entry", "told", "last", "chosen", "best", "gain", "95%", "p", "worst", "memorized", "cost",
    ]  # fmt: skip
    lines = []
    for line in table.itertuples():
        lines.append([
            f"`{line.entry}`", _TOLD[entries[line.entry].told], number(line.last, 2),
            number(line.chosen, 2), number(line.best, 2),
            number(line.gain, 2), _interval(line.gain_low, line.gain_high), _p(line.p_bh),
            number(line.worst, 2), number(line.memorized, 1), number(costs.get(line.entry), 2),
        ])  # fmt: skip
    return markdown_table(header, lines)


def by_noise(found: pd.DataFrame, order: Sequence[str]) -> str:
    """Entries by kinds of noise, "last / best" in each cell; the highest last is bold."""
    noises = list(found["noise"].unique())
    top = found.groupby("noise")["last"].max().round(1)
    lines = []
    for name in order:
        own = found[found["entry"] == name].set_index("noise")
        line = [f"`{name}`"]
        for noise in noises:
            if noise not in own.index:
                line.append(NOTHING)
                continue
            last, best = number(own.loc[noise, "last"], 1), number(own.loc[noise, "best"], 1)
            line.append(f"**{last}** / {best}" if float(last) == top[noise] else f"{last} / {best}")
        lines.append(line)
    return markdown_table(["last / best", *noises], lines)


def against_plain(runs: pd.DataFrame, found: pd.DataFrame, noisy: Sequence[str]) -> str:
    """A line per setting: plain training's accuracies, and who loses to each."""
    plain = found[found["entry"] == BASELINE].set_index("setting")
    losers: dict[tuple[str, str], list[str]] = {}
    for choice in ("last", "chosen", "best"):
        for name in runs["entry"].unique():
            if name == BASELINE:
                continue
            table = differences(runs, name, BASELINE, "last", choice)
            for setting in table[table["ci_high"] < 0]["setting"] if len(table) else ():
                losers.setdefault((setting, choice), []).append(f"`{name}`")
    lines = []
    for setting in noisy:
        if setting not in plain.index:
            continue
        own, line = plain.loc[setting], [setting]
        for choice in ("last", "chosen", "best"):
            epoch = "" if choice == "last" else f" ({own[f'{choice}_epoch']:.0f})"
            names = losers.get((setting, choice), [])
            line += [
                f"{number(own[choice], 1)}{epoch}",
                f"{len(names)}: {', '.join(names)}" if names else "0",
            ]
        lines.append(line)
    header = ["setting"]
    for choice in ("last", "chosen (epoch)", "best (epoch)"):
        header += [choice, "below it"]
    return markdown_table(header, lines)


def below_plain(table: pd.DataFrame) -> list[str]:
    """Which entries' last epochs are, in the mean of all settings, below plain training's other epochs."""
    plain = table[table["entry"] == BASELINE]
    lines = []
    for choice in ("chosen", "best") if len(plain) else ():
        level = plain[choice].item()
        names = [f"`{name}`" for name in table[table["last"] < level]["entry"] if name != BASELINE]
        listed = f"below it end {', '.join(names)}" if names else "no entry ends below it"
        lines.append(
            f"* In the mean of all noisy settings, plain training has {number(level, 2)} at its {choice} "
            f"epoch: {listed}."
        )
    return ["\n".join(lines)] if lines else []


def on_clean(runs: pd.DataFrame, clean: Sequence[str], order: Sequence[str]) -> str:
    """Entries by clean settings: the difference to plain training."""
    part = runs[runs["setting"].isin(clean)]
    plain = part[part["entry"] == BASELINE].groupby("setting")["last"].mean()
    lines = [[f"`{BASELINE}`", *(number(plain.get(setting, np.nan), 1) for setting in clean)]]
    for name in order:
        if name == BASELINE or name not in set(part["entry"]):
            continue
        table = differences(part, name, BASELINE, "last", "last").set_index("setting")
        line = [f"`{name}`"]
        for setting in clean:
            if setting not in table.index:
                line.append(NOTHING)
                continue
            line.append(_difference(table.loc[setting]))
        lines.append(line)
    return markdown_table(["entry", *(setting.removesuffix(", clean") for setting in clean)], lines)


def _difference(test):
    return f"{number(test['difference'], 2)} {_interval(test['ci_low'], test['ci_high'])}"


def _interval(low, high):
    return NOTHING if np.isnan(low) else f"({number(low, 2)} to {number(high, 2)})"


def _p(value):
    return NOTHING if np.isnan(value) else "<0.001" if value < 0.001 else f"{value:.3f}"
