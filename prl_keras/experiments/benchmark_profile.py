"""Where the time of a step goes: what TensorFlow's profiler saw of each kind of operation, as a table."""

import collections
import pathlib
import tempfile

import pandas as pd
import tensorflow as tf
import tqdm
from tensorflow.tsl.profiler.protobuf import xplane_pb2

from prl_keras.experiments import files, markdown
from prl_keras.experiments.benchmark_cases import Case, profiled_cases
from prl_keras.experiments.benchmark_work import in_child, make_work

_STEPS = 3
_LEAST_SHARE = 0.01  # of a case's time, for a line of its own in the table


def write_profile(output_dir, cases=None, steps=_STEPS):
    """Profiles a few steps of each case and writes `profile.md`.

    Each case runs in a process of its own, one operation at a time (which may use all the cores), so that
    the times of the operations add up to that of the step.

    Args:
        output_dir: Gets the file.
        cases: Of the implementation "prl_keras"; those of `profiled_cases` if None.
        steps: How many are averaged.

    Returns:
        The path of the file.
    """
    columns = {}
    for case in tqdm.tqdm(cases or profiled_cases(), desc="profile", unit="case"):
        columns[f"{case.title}, {case.setting}"] = in_child(profiled, case, steps)
    path = pathlib.Path(output_dir) / "profile.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.replacing(path) as temporary:
        temporary.write_text(_report(pd.DataFrame(columns).fillna(0.0)))
    return path


def profiled(case: Case, steps):
    """-> milliseconds of a step by type of operation, `{"Conv2D": 12.3, ...}`, after warming up."""
    tf.config.threading.set_inter_op_parallelism_threads(1)
    work = make_work(case)
    for _ in range(2):
        work.run(1)
    with tempfile.TemporaryDirectory() as folder:
        with tf.profiler.experimental.Profile(folder):
            work.run(steps)
        (path,) = pathlib.Path(folder).rglob("*.xplane.pb")
        space = xplane_pb2.XSpace.FromString(path.read_bytes())
    return {name: seconds * 1000 / steps for name, seconds in operation_seconds(space).items()}


def operation_seconds(space):
    """-> `{type of operation: seconds}` of what a profile, an `XSpace`, has of the CPU's executor.

    There an operation is an event named "name:type". Events within others (a function's operations
    within the call) count for themselves, and are taken from what they are within.
    """
    totals = collections.Counter()
    for plane in space.planes:
        names = {key: metadata.name for key, metadata in plane.event_metadata.items()}
        for line in plane.lines:
            open_events = []
            events = [(e.offset_ps, -e.duration_ps, names[e.metadata_id]) for e in line.events]
            for start, duration, name in sorted(event for event in events if _is_operation(event[2])):
                while open_events and open_events[-1][0] <= start:
                    open_events.pop()
                kind = name.rsplit(":", 1)[1]
                totals[kind] -= duration
                if open_events:
                    totals[open_events[-1][1]] += duration
                open_events.append((start - duration, kind))
    return {kind: total * 1e-12 for kind, total in totals.items()}


def _is_operation(name):
    kind = name.rsplit(":", 1)[-1]
    return ":" in name and "::" not in name and kind.lstrip("_").isidentifier()


def _report(table):
    """The text of `profile.md`, from milliseconds by type of operation and case."""
    totals = table.sum()
    shown = table[(table / totals > _LEAST_SHARE).any(axis=1)]
    shown = shown.loc[shown.max(axis=1).sort_values(ascending=False).index]
    shown.loc["all others"] = totals - shown.sum()
    shown.loc["all"] = totals
    lines = [[name, *(markdown.number(ms, 0) for ms in row)] for name, row in shown.iterrows()]
    return (
        "# Where the time of a step goes\n\n"
        "Milliseconds of one step by type of operation, as TensorFlow's profiler sees them on the CPU, one "
        "operation at a time.\n\nMade by `python -m binaries.benchmark --profile`.\n\n"
        f"{markdown.markdown_table(['operation', *table.columns], lines)}\n"
    )
