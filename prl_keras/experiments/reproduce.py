"""From the number of a table to its runs and its report: what binaries/reproduce.py does."""

import dataclasses
import pathlib
import re

from prl_keras.experiments import figure1, results, strategies, sweep
from prl_keras.experiments import report as reports
from prl_keras.experiments.tables import TABLES

_TABLES_OF_FIGURES = {"2": 1, "3": 2}


def reproduce(
    table, figure, scale, output_dir, rows=None, methods=None, seeds=None, workers=1, shard="0/1",
    dry_run=False, report=False, strategy="one", virtual_devices=None, cluster_timeout=600, **data_options,
):  # fmt: skip
    """Runs what is missing for the tables and figures named, then writes them.

    Args:
        table: List of "1" to "6"; 5 repeats 3 in the paper, 4 needs no runs.
        figure: List of "1" to "3"; 1 is drawn from a fit of its own, 2 shows the runs of table 1, 3
            those of table 2.
        scale: "paper" or "cpu".
        output_dir: Gets `SCALE/runs/*.json`, a file per run, and tables and figures in SCALE; table 4
            and figure 1, which have no scale, lie in output_dir itself.
        rows, methods, seeds: Lists of strings that choose among the runs; None for all.
        workers: Processes.
        shard: "i/n", this machine's share of the runs.
        dry_run: Only list the runs that are missing.
        report: Only write tables and figures.
        strategy, virtual_devices, cluster_timeout: What each run trains on: see `strategies.make_strategy`.
        **data_options: For `datasets.load`.

    Returns:
        Whether a run failed, or a table could not be written.

    Raises:
        ValueError: for a wrong choice, naming what there is.
    """
    if dry_run and report:
        raise ValueError("--dry_run lists runs and --report runs nothing: write one of them.")
    if not table and not figure:
        raise ValueError("Nothing is asked for: write --table=1, ..., --table=6, or --figure=1, 2 or 3.")
    numbers = sorted({3 if number == "5" else int(number) for number in table if number != "4"})
    numbers += [_TABLES_OF_FIGURES[number] for number in figure if number != "1"]
    chosen = [TABLES[number] for number in dict.fromkeys(numbers)]
    configs = [config for one in chosen for config in select(one, scale, rows, methods, seeds)]
    configs = list(dict.fromkeys(configs))
    if chosen and not configs:
        raise ValueError("No run of the table has these rows and methods together.")
    if TABLES.get(6) in chosen and workers > 1 and not (report or dry_run):
        raise ValueError("Table 6 measures time, and runs beside one another are slower: write --workers=1.")
    if strategy == "multi_worker" and workers > 1:
        raise ValueError("--strategy=multi_worker has its processes from TF_CONFIG: write --workers=1.")
    if workers > 1 and strategy == "auto":
        raise ValueError(
            "--workers and --strategy=auto would share the devices out twice: write --strategy=one."
        )
    trained_on = {"name": strategy, "virtual_devices": virtual_devices, "cluster_timeout": cluster_timeout}
    output_dir = pathlib.Path(output_dir)
    directory = output_dir / scale / "runs"
    failures = {}
    if configs and not report:
        missing, problems = sweep.pending(configs, directory, scale, parse_shard(shard))
        for problem in problems:
            print(f"To be done again: {problem}")
        print(f"{len(missing)} runs to do of {len(configs)}, scale {scale}, shard {shard}.", flush=True)
        if dry_run:
            print("\n".join(results.path_of(directory, config).stem for config in missing))
        else:
            failures = sweep.sweep(missing, directory, scale, workers, data_options, trained_on)
            if workers == 1 and not strategies.is_chief(strategies.make_strategy(**trained_on)):
                return bool(failures)
    if dry_run:
        return False
    written, is_lacking = [], False
    for one in chosen:
        try:
            paths, problems = reports.report(one, scale, directory, output_dir / scale)
        except ValueError as error:  # the other tables are written
            is_lacking = True
            print(f"Table {one.number} is not written: {error}")
            continue
        written += paths
        for problem in problems:
            print(f"Left out: {problem}")
    if "4" in table:
        written += reports.report_protocols(output_dir)
    if "1" in figure:
        output_dir.mkdir(parents=True, exist_ok=True)
        written.append(output_dir / "figure1.png")
        print(figure1.draw(written[-1]))
    print("\n".join(f"Written: {path}" for path in written))
    for config, message in failures.items():
        print(f"Failed: {results.path_of(directory, config).stem}: {message}")
    # Another shard may still be at work on what a table lacks.
    return bool(failures) or (is_lacking and shard == "0/1")


def select(table, scale, rows=None, methods=None, seeds=None):
    """Those runs of a `Table` that the lists of strings choose; None for all.

    Raises:
        ValueError: for a row, method or seed that there is not.
    """
    labels = [_bare(row.label) for row in table.rows + table.clean_rows]
    rows = labels if rows is None else _known("rows", rows, labels)
    methods = table.methods if methods is None else _known("methods", methods, table.methods)
    if seeds is not None and not (seeds and all(text.strip().isdecimal() for text in seeds)):
        raise ValueError(f"--seeds={','.join(seeds)} must be whole numbers of at least 0, such as 0,1,2.")
    part = dataclasses.replace(
        table,
        rows=tuple(row for row in table.rows if _bare(row.label) in rows),
        clean_data=tuple(row.dataset for row in table.clean_rows if _bare(row.label) in rows),
    )
    configs = part.configs(scale, None if seeds is None else [int(text) for text in seeds])
    return [config for config in configs if config.method in methods]


def parse_shard(text):
    """ "i/n" as (i, n), for 0 <= i < n."""
    match = re.fullmatch(r"(\d+)/(\d+)", text.strip())
    if not match or not int(match[1]) < int(match[2]):
        raise ValueError(f"--shard={text} must be i/n with 0 <= i < n, such as 0/4 for the first of four.")
    return int(match[1]), int(match[2])


def _known(name, given, choices):
    given = [_bare(text) for text in given]
    unknown = [text for text in given if text not in choices]
    if unknown or not given:
        raise ValueError(f"--{name}={','.join(unknown)} is not in the table; choose of {', '.join(choices)}.")
    return given


def _bare(text):
    return re.sub(r"\s", "", text)
