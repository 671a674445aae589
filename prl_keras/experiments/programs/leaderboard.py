"""Makes the missing runs of the leaderboard and writes its page, for binaries/leaderboard.py."""

import pathlib
from collections.abc import Sequence
from typing import Any

from prl_keras import files
from prl_keras.experiments.leaderboard import cost as costs
from prl_keras.experiments.leaderboard import entries as lines
from prl_keras.experiments.leaderboard.page import write_page
from prl_keras.experiments.programs.reproduce import parse_seeds, parse_shard
from prl_keras.experiments.runs import results, sweep

_SCALE = "cpu"
_COMMAND = "python -m binaries.leaderboard"


def leaderboard(
    output_dir: pathlib.Path | str,
    entries: Sequence[str] | None = None,
    datasets: Sequence[str] | None = None,
    seeds: Sequence[str] | None = None,
    workers: int = 1,
    shard: str = "0/1",
    dry_run: bool = False,
    report: bool = False,
    cost: bool = False,
    **data_options: Any,
) -> bool:
    """Makes the missing runs, then writes README.md, cells.csv and, if no run is missing, packs the runs.

    The arguments are the flags of binaries/leaderboard.py. With a data set that is not in `DATA`, the page
    has the selected entries and data sets alone.

    Returns:
        Whether a run failed.

    Raises:
        ValueError: for an unknown choice; it names the valid ones.
    """
    if report + cost + dry_run > 1:
        raise ValueError("--report, --cost and --dry_run do different things: write one of them.")
    output_dir = pathlib.Path(output_dir)
    directory, of_cost = output_dir / "runs", output_dir / "cost.json"
    known = lines.entries()
    chosen = [known[name] for name in _known("entries", entries, known)]
    names = _known("datasets", lines.DATA if datasets is None else datasets, lines.EPOCHS)
    within = lines.settings(names)
    numbers = lines.SEEDS if seeds is None else parse_seeds(seeds)
    configs = list(lines.configs(chosen, within, numbers))
    failures: dict[Any, str] = {}
    if cost:
        output_dir.mkdir(parents=True, exist_ok=True)
        files.write_json(of_cost, {**_measured(of_cost), **costs.relative_costs(chosen)})
    elif not report:
        missing, problems = sweep.pending(configs, directory, _SCALE, parse_shard(shard))
        for problem in problems:
            print(f"To be done again: {problem}")
        print(f"{len(missing)} runs to do of {len(configs)}, shard {shard}.", flush=True)
        if dry_run:
            print("\n".join(results.path_of(directory, config).name for config in missing))
            return False
        failures = sweep.sweep(missing, directory, _SCALE, workers, data_options)
    contents, problems = results.read_all(directory)
    wanted = lines.configs(known.values(), lines.settings())
    command = f"{_COMMAND} --data_dir=DIR --workers=2"
    if not set(names) <= set(lines.DATA):  # a page of their own
        wanted = lines.configs(chosen, within)
        command = f"{_COMMAND} --datasets={','.join(names)} --output_dir=DIR"
        command += "" if entries is None else f" --entries={','.join(entries)}"
    paths = write_page(contents, wanted, known, _measured(of_cost), output_dir, command)
    if not set(wanted) - {content["config"] for content in contents}:
        results.pack(directory / "runs.jsonl", contents)
    for problem in problems:
        print(f"Left out: {problem}")
    print("\n".join(f"Written: {path}" for path in paths))
    for config, message in failures.items():
        print(f"Failed: {results.path_of(directory, config).name}: {message}")
    return bool(failures)


def _measured(path):
    return files.read_json(path) if path.exists() else {}


def _known(name, given, choices):
    if given is None:
        return list(choices)
    found = [text.strip() for text in given]
    unknown = [text for text in found if text not in choices]
    if unknown or not found:
        raise ValueError(f"--{name}={','.join(unknown)} is unknown; choose of {', '.join(choices)}.")
    return found
