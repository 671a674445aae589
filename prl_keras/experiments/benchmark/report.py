"""The results of a benchmark as a table and a picture."""

import dataclasses
import itertools
import json
import pathlib
from typing import Any

import numpy as np
import pandas as pd

from prl_keras import files
from prl_keras.experiments import markdown
from prl_keras.experiments.benchmark import figures
from prl_keras.experiments.benchmark.suites import Case

_MEBIBYTE = 2**20
_GROWTH = {"batch": ("batch_size", "batch size"), "width": ("parameters", "parameters")}  # column, label
_QUARTILES = {"ratio_low": 0.25, "ratio": 0.5, "ratio_high": 0.75}


def write_report(suite: str, output_dir: pathlib.Path | str) -> pathlib.Path:
    """Writes SUITE.md and SUITE.png from SUITE.json, or, if that is missing, from SUITE.unfinished.json.

    Returns:
        The path of the Markdown file.

    Raises:
        FileNotFoundError: if both are missing.
        ValueError: naming the file, if it is damaged.
    """
    path = pathlib.Path(output_dir) / f"{suite}.json"
    source = path if path.exists() else path.with_suffix(".unfinished.json")
    command = f"python -m binaries.benchmark --suite={suite}"
    if not source.exists():
        raise FileNotFoundError(f"{path} is not there; measure it: {command}")
    try:
        content = json.loads(source.read_text())
        cases = case_table(content)
        comparisons = peer_table(content)
        about = _about(content)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{source} is damaged ({error!r}); measure anew: {command}") from error
    peers = {case.implementation for case in cases["case"]}
    command += " --peers" * ("opacus" in peers) + " --authors_dir=DIR" * ("authors" in peers)
    replicas = content.get("replicas", 1)
    command += f" --virtual_devices={replicas}" * (replicas > 1 and content["device"] == "CPU")
    how = f"Made by `{command}`." + " It has not come to its end." * (source != path)
    parts = [f"# Benchmark: {suite}", about, how, _case_section(cases)]
    if len(comparisons):
        parts += ["## Ours against PyTorch's", _peer_section(comparisons)]
    with files.replacing(path.with_suffix(".md")) as temporary:
        temporary.write_text("\n\n".join(parts) + "\n")
    with files.replacing(path.with_suffix(".png")) as temporary:
        shown = (cases, f"Benchmark: {suite}", about, temporary)
        if suite in _GROWTH:
            figures.plot_growth(*shown, *_GROWTH[suite])
        elif suite == "memory":
            figures.plot_memory(*shown)
        else:
            figures.plot_ratios(*shown)
    return path.with_suffix(".md")


def case_table(content: dict[str, Any]) -> pd.DataFrame:
    """A DataFrame with a line per case.

    Columns: `title`, `setting` and their `case`; `batch_size`; `parameters`; `seconds` per step (of both
    networks of a pair) and `examples_per_second`, medians over the rounds; `ratio`, the median over the
    rounds of the seconds divided by the baseline's in the same round, where the baseline counts once per
    network, with its quartiles `ratio_low` and `ratio_high`; `peak`, the peak memory of the process, and
    `network_memory`, the part of it above the memory after the imports, in bytes; `memory_ratio` of the
    peaks; `later_peak` and `later_memory_ratio`, the same for the steps after the first one, which traces and
    compiles; `is_killed`. NaN for what was not measured.
    """
    found = _by_case(content)
    lines = []
    for case, fields in found.items():
        base = found.get(case.baseline, _NOTHING)
        seconds = _median(fields["seconds"])
        peak, before, later = _peaks(fields["memory"])
        base_peak, _, base_later = _peaks(base["memory"])
        line = {"title": case.title, "setting": case.setting, "case": case}
        line |= {"batch_size": case.batch_size, "parameters": fields.get("parameters"), "seconds": seconds}
        line["examples_per_second"] = case.batch_size / seconds
        line |= _quartiles(fields["seconds"], base["seconds"], case.network_count)
        line |= {
            "peak": peak,
            "network_memory": peak - before,
            "memory_ratio": peak / base_peak,
            "later_peak": later,
            "later_memory_ratio": later / base_later,
        }
        lines.append(line | {"is_killed": isinstance(fields["memory"], str)})
    return pd.DataFrame(lines)


def peer_table(content: dict[str, Any]) -> pd.DataFrame:
    """A DataFrame with a line for each of our cases and each peer that does the same work.

    Columns: `ours` and `theirs`, titles; `seconds_ours` and `seconds_theirs`, medians per step and network;
    `ratio`, ours to theirs in the same round, with quartiles, also per step and network.
    """
    found = _by_case(content)
    ours = [case for case in found if case.implementation == "prl_keras"]
    lines = []
    for case, peer in itertools.product(ours, [case for case in found if case not in ours]):
        if any(getattr(case, name) != getattr(peer, name) for name in ("session", "method", "epsilon")):
            continue
        line = {"ours": case.title, "theirs": peer.title, "setting": case.setting}
        line["seconds_ours"] = _median(found[case]["seconds"]) / case.network_count
        line["seconds_theirs"] = _median(found[peer]["seconds"]) / peer.network_count
        share = case.network_count / peer.network_count
        lines.append(line | _quartiles(found[case]["seconds"], found[peer]["seconds"], share))
    return pd.DataFrame(lines)


_NOTHING: dict[str, Any] = {"seconds": [], "memory": None}


def _by_case(content):
    names = {field.name for field in dataclasses.fields(Case)}
    found = {}
    for fields in content["cases"]:
        unknown = set(fields["case"]) - names
        if unknown or not all(s is not None and s > 0 for s in fields["seconds"]):
            raise ValueError(f"{fields} is not what a benchmark measures")
        found[Case(**fields["case"])] = fields
    return found


def _peaks(memory):
    """(bytes at the peak, before the network, at the peak of later steps), NaN if not measured."""
    if not isinstance(memory, dict):
        return np.nan, np.nan, np.nan
    later = memory.get("later")  # files of before do not have it
    return memory["peak"], memory["before"], np.nan if later is None else later


def _median(seconds):
    return np.median(seconds) if seconds else np.nan


def _quartiles(seconds, base, count):
    """Quartiles of the ratios to `count` times the base, within each round that both have."""
    rounds = min(len(seconds), len(base))
    ratios = np.divide(seconds[:rounds], base[:rounds]) / count if rounds else np.nan
    return {name: np.quantile(ratios, quantile) for name, quantile in _QUARTILES.items()}


def _about(content):
    versions = ", ".join(f"{name} {version}" for name, version in content["versions"].items())
    where = content["processor"] if content["device"] == "CPU" else content["device"]
    rounds = max(len(fields["seconds"]) for fields in content["cases"])
    replicas = content.get("replicas", 1)
    where += f", as {replicas} replicas" * (replicas > 1)
    xla = "XLA where the step allows it" if content["xla"] else "no XLA"
    if any(fields["case"].get("is_compiled") for fields in content["cases"]):
        xla = "XLA where a line says so"
    return (
        f"Measured {content['date']} on {where}, {content['cores']} cores; {versions}; {xla}. Medians of "
        f"{rounds} round{'s' * (rounds > 1)}, in which the cases of one setting take turns; in brackets the "
        "quartiles. A ratio is to plain training of as many networks in the same round, for PyTorch's lines "
        "to PyTorch's."
    )


def _case_section(cases):
    lines, has_later = [], bool(cases["later_peak"].notna().any())
    for line in cases.to_dict("records"):
        peak, network_memory = line["peak"] / _MEBIBYTE, line["network_memory"] / _MEBIBYTE
        lines.append([
            line["title"], line["setting"], _ratio(line),
            markdown.number(line["seconds"], _decimals(line["seconds"])),
            markdown.number(line["examples_per_second"], 0),
            "killed" if line["is_killed"] else markdown.number(peak, 0),
            markdown.number(network_memory, 0), markdown.number(line["memory_ratio"], 2),
        ])  # fmt: skip
        if has_later:
            lines[-1].append(markdown.number(line["later_peak"] / _MEBIBYTE, 0))
            lines[-1].append(markdown.number(line["later_memory_ratio"], 2))
    header = ["case", "setting", "ratio (quartiles)", "s a step", "examples a second"]
    header += ["peak MiB", "MiB above the imports", "memory ratio"]
    header += ["peak MiB after the first step", "its ratio"] * has_later
    return markdown.markdown_table(header, lines)


def _peer_section(comparisons):
    lines = [
        [
            line["ours"],
            line["theirs"],
            line["setting"],
            *(markdown.number(line[f"seconds_{who}"], 2) for who in ("ours", "theirs")),
            _ratio(line),
        ]
        for line in comparisons.to_dict("records")
    ]
    header = [
        "ours",
        "theirs",
        "setting",
        "our s a step and network",
        "their s",
        "ours to theirs (quartiles)",
    ]
    return markdown.markdown_table(header, lines)


def _ratio(line):
    if np.isnan(line["ratio"]):
        return markdown.NOTHING
    low, middle, high = (markdown.number(line[f"ratio{end}"], 2) for end in ("_low", "", "_high"))
    return f"{middle} ({low} to {high})"


def _decimals(seconds):
    """The decimals that show three significant digits of seconds below one."""
    return 2 if np.isnan(seconds) or seconds >= 1 else 2 - int(np.floor(np.log10(seconds)))
