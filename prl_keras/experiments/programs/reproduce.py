"""Runs and reports the tables and figures of the paper by their numbers, for binaries/reproduce.py."""

import dataclasses
import pathlib
import re
from collections.abc import Sequence
from typing import Any

from prl_keras.experiments.paper import figure1
from prl_keras.experiments.paper import report as reports
from prl_keras.experiments.paper.tables import TABLES, Table
from prl_keras.experiments.runs import results, strategies, sweep


def reproduce(
    table: Sequence[str],
    figure: Sequence[str],
    scale: str,
    output_dir: pathlib.Path | str,
    rows: Sequence[str] | None = None,
    methods: Sequence[str] | None = None,
    seeds: Sequence[str] | None = None,
    workers: int = 1,
    shard: str = "0/1",
    dry_run: bool = False,
    report: bool = False,
    strategy: str = "one",
    virtual_devices: int | None = None,
    cluster_timeout: int = 600,
    precision: str = "float32",
    **data_options: Any,
) -> bool:
    """Makes the missing runs of the given tables and figures, then writes those.

    The arguments are the flags of binaries/reproduce.py. In the paper table 5 repeats table 3, and table 4
    needs no runs. Figure 1 is drawn from its own fit, figure 2 shows the runs of table 1, figure 3 those of
    table 2.

    In output_dir, runs are written to `SCALE/runs`, a folder each, and tables and figures to SCALE. Table 4
    and figure 1, which have no scale, are written to output_dir itself. The runs of a complete table are
    packed into `SCALE/runs/tableN.jsonl`. With another precision than float32 SCALE is followed by it, as in
    `paper-bfloat16`.

    Returns:
        Whether a run failed, or a table could not be written.

    Raises:
        ValueError: for an invalid choice; it names the valid ones.
    """
    if dry_run and report:
        raise ValueError("--dry_run lists runs and --report runs nothing: write one of them.")
    if not table and not figure:
        raise ValueError("Nothing is asked for: write --table=1, ..., --table=6, or --figure=1, 2 or 3.")
    asked = [TABLES[number] for number in sorted(map(int, table))]
    asked += [one for one in TABLES.values() if str(one.figure) in figure]
    chosen = sorted({one.number: one for one in asked if one.rows}.values(), key=lambda one: one.number)
    configs = [config for one in chosen for config in select(one, scale, rows, methods, seeds, precision)]
    configs = list(dict.fromkeys(configs))
    if chosen and not configs:
        raise ValueError("No run of the table has these rows and methods together.")
    if any(one.metric is None for one in chosen) and workers > 1 and not (report or dry_run):
        raise ValueError("Table 6 measures time, and runs beside one another are slower: write --workers=1.")
    if strategy == "multi_worker" and workers > 1:
        raise ValueError("--strategy=multi_worker has its processes from TF_CONFIG: write --workers=1.")
    if workers > 1 and strategy == "auto":
        raise ValueError(
            "--workers and --strategy=auto would share the devices out twice: write --strategy=one."
        )
    trained_on: dict[str, Any] = {
        "name": strategy,
        "virtual_devices": virtual_devices,
        "cluster_timeout": cluster_timeout,
    }
    output_dir = pathlib.Path(output_dir)
    tables_dir = output_dir / (scale if precision == "float32" else f"{scale}-{precision}")
    directory = tables_dir / "runs"
    failures: dict[Any, str] = {}
    if configs and not report:
        missing, problems = sweep.pending(configs, directory, scale, parse_shard(shard))
        for problem in problems:
            print(f"To be done again: {problem}")
        print(f"{len(missing)} runs to do of {len(configs)}, scale {scale}, shard {shard}.", flush=True)
        if dry_run:
            print("\n".join(results.path_of(directory, config).name for config in missing))
        else:
            failures = sweep.sweep(missing, directory, scale, workers, data_options, trained_on)
            if workers == 1 and not strategies.is_chief(strategies.make_strategy(**trained_on)):
                return bool(failures)
    if dry_run:
        return False
    written, is_lacking = [], False
    for one in chosen:
        try:
            paths, problems = reports.report(one, scale, directory, tables_dir, precision)
        except ValueError as error:  # the other tables are still written
            is_lacking = True
            print(f"Table {one.number} is not written: {error}")
            continue
        written += paths
        for problem in problems:
            print(f"Left out: {problem}")
    if any(not one.rows for one in asked):
        written += reports.report_protocols(output_dir)
    if "1" in figure:
        output_dir.mkdir(parents=True, exist_ok=True)
        written.append(output_dir / "figure1.png")
        print(figure1.draw(written[-1]))
    print("\n".join(f"Written: {path}" for path in written))
    for config, message in failures.items():
        print(f"Failed: {results.path_of(directory, config).name}: {message}")
    # Another shard may still make the runs that a table lacks.
    return bool(failures) or (is_lacking and shard == "0/1")


def select(
    table: Table,
    scale: str,
    rows: Sequence[str] | None = None,
    methods: Sequence[str] | None = None,
    seeds: Sequence[str] | None = None,
    precision: str = "float32",
) -> list[Any]:
    """The `RunConfig`s of a `Table` that the lists of strings select; None selects all.

    Raises:
        ValueError: for an unknown row or method, or an invalid seed.
    """
    labels = [_bare(row.label) for row in table.rows + table.clean_rows]
    rows = labels if rows is None else _known("rows", rows, labels)
    methods = table.methods if methods is None else _known("methods", methods, table.methods)
    numbers = None if seeds is None else parse_seeds(seeds)
    part = dataclasses.replace(
        table,
        rows=tuple(row for row in table.rows if _bare(row.label) in rows),
        clean_data=tuple(row.dataset for row in table.clean_rows if _bare(row.label) in rows),
    )
    configs = part.configs(scale, numbers, precision)
    return [config for config in configs if config.method in methods]


def parse_shard(text: str) -> tuple[int, int]:
    """ "i/n" as (i, n), with 0 <= i < n.

    Raises:
        ValueError: if it is not of that form.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", text.strip())
    if not match or not int(match[1]) < int(match[2]):
        raise ValueError(f"--shard={text} must be i/n with 0 <= i < n, such as 0/4 for the first of four.")
    return int(match[1]), int(match[2])


def parse_seeds(seeds: Sequence[str]) -> list[int]:
    """The seeds as numbers.

    Raises:
        ValueError: if there is none, or one is no whole number of at least 0.
    """
    if not (seeds and all(text.strip().isdecimal() for text in seeds)):
        raise ValueError(f"--seeds={','.join(seeds)} must be whole numbers of at least 0, such as 0,1,2.")
    return [int(text) for text in seeds]


def _known(name, given, choices):
    given = [_bare(text) for text in given]
    unknown = [text for text in given if text not in choices]
    if unknown or not given:
        raise ValueError(f"--{name}={','.join(unknown)} is not in the table; choose of {', '.join(choices)}.")
    return given


def _bare(text):
    return re.sub(r"\s", "", text)
