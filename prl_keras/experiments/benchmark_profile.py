"""Where the time of a step goes: what TensorFlow's profiler saw of each kind of operation, as a table."""

import collections
import pathlib
import tempfile

import pandas as pd
import tensorflow as tf
import tqdm
from tensorflow.tsl.profiler.protobuf import xplane_pb2

from prl_keras import files
from prl_keras.experiments import markdown
from prl_keras.experiments.benchmark_cases import profiled_cases
from prl_keras.experiments.benchmark_work import KILLED, in_child, make_work

_ROUNDS = 3
_LEAST_SHARE = 0.01  # of a case's time, for a line of its own in the table


def write_profile(output_dir, cases=None, rounds=_ROUNDS):
    """Profiles steps of the cases and writes `profile.md`.

    They run in a process of their own, one operation at a time (which may use all the cores), so that the
    times of the operations add up to that of the step.

    Args:
        output_dir: Gets the file.
        cases: Of the implementation "prl_keras"; those of `profiled_cases` if None.
        rounds: How many steps of each are averaged; the cases take turns.

    Returns:
        The path of the file.
    """
    cases = cases or profiled_cases()
    found = in_child(_profiled, cases, rounds)
    if found == KILLED:
        raise OSError("The profiled process was killed; it needs about 10 GB of memory.")
    path = pathlib.Path(output_dir) / "profile.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.replacing(path) as temporary:
        temporary.write_text(_report(cases, pd.DataFrame(found).fillna(0.0)))
    return path


def _profiled(cases, rounds):
    """-> `{type of operation: milliseconds of a step}` of each case, after warming up."""
    tf.config.threading.set_inter_op_parallelism_threads(1)
    works, totals = [], [collections.Counter() for _ in cases]
    with tqdm.tqdm(total=len(cases) * (rounds + 1), desc="profile", unit="step") as progress:
        for case in cases:
            works.append(make_work(case))
            works[-1].run(2)
            progress.update()
        for _ in range(rounds):
            for work, total in zip(works, totals):
                for name, seconds in operation_seconds(_profile(work)).items():
                    total[name] += 1000 * seconds / work.steps / rounds
                progress.update()
    return totals


def _profile(work):
    """-> the `XSpace` of one run."""
    with tempfile.TemporaryDirectory() as folder:
        with tf.profiler.experimental.Profile(folder):
            work.run(1)
        (path,) = pathlib.Path(folder).rglob("*.xplane.pb")
        return xplane_pb2.XSpace.FromString(path.read_bytes())


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


def _report(cases, table):
    """The text of `profile.md`: a line for each case in `table`, a column for each type of operation."""
    totals = table.sum(axis=1)
    is_shown = (table.div(totals, axis=0) > _LEAST_SHARE).any()
    shown = table.loc[:, is_shown].sort_values(by=table.index.tolist(), axis=1, ascending=False)
    shown = shown.assign(**{"all others": totals - shown.sum(axis=1), "all": totals})
    names = [f"{case.title} ({case.setting})" for case in cases]
    lines = [[name, *(markdown.number(ms, 0) for ms in column)] for name, column in shown.items()]
    return (
        "# Where the time of a step goes\n\n"
        "Milliseconds of one step by type of operation, as TensorFlow's profiler sees them on the CPU, one "
        "operation at a time. Within an operation all the cores may work. For the price of a method see the "
        "suites: there operations run side by side.\n\n"
        "Made by `python -m binaries.benchmark --profile`.\n\n"
        f"{markdown.markdown_table(['operation', *names], lines)}\n"
    )
