"""Runs the tests of the rules and scores on the mutants of cosmic-ray; see results/mutation.md.

pip install cosmic-ray==8.7.0
cosmic-ray init tests/mutants.toml mutants.sqlite && cr-filter-operators mutants.sqlite tests/mutants.toml
python tests/mutants.py mutants.sqlite mutants.csv

In one process, which imports the library and its tests anew for each mutant, as the import of TensorFlow
takes longer than most tests. Started again it goes on where it was.
"""

import contextlib
import csv
import gc
import importlib.machinery
import json
import os
import pathlib
import signal
import sqlite3
import sys
import tempfile
import time

import cosmic_ray.plugins
import hypothesis
import pytest
import tensorflow  # noqa: F401, stays imported
from cosmic_ray.ast import get_ast
from cosmic_ray.mutating import MutationVisitor

ROOT = pathlib.Path(__file__).resolve().parent.parent
_RULES = ["rules_test.py", "properties_test.py", "rare_classes_test.py", "faults_test.py::TestEpsilon"]
_SCORES = ["scores_test.py", "score_properties_test.py", "outputs_test.py"]
TESTS = {
    **dict.fromkeys(
        [f"prl_keras/rules/{name}.py" for name in ("clip_norm", "keep_lowest", "ranking")], _RULES
    ),
    **dict.fromkeys([f"prl_keras/rules/{name}.py" for name in ("schedules", "trim")], _RULES),
    **dict.fromkeys([f"prl_keras/scores/{name}.py" for name in ("loss", "loss_layer", "names")], _SCORES),
}
COLUMNS = ["job", "module", "operator", "row", "where", "outcome", "before", "after", "killer", "seconds"]
SECONDS = 120  # after which a mutant counts as killed


class Importer:
    """Gives the mutant's source for one module, from a file of its own: inspect and autograph read files."""

    def __init__(self):
        self.get_code = importlib.machinery.SourceFileLoader.get_code
        self.directory = tempfile.mkdtemp()
        self.name = self.path = None

    def install(self):
        def get_code(loader, name):
            if name != self.name:
                return self.get_code(loader, name)
            return compile(self.path.read_text(), self.path, "exec", dont_inherit=True)

        importlib.machinery.SourceFileLoader.get_code = get_code

    def take(self, module, source):
        self.name = module.removesuffix(".py").replace("/", ".")
        self.path = pathlib.Path(self.directory) / f"{abs(hash(source))}.py"
        self.path.write_text(source)
        tests = {name.partition(".py")[0] for names in TESTS.values() for name in names} | {"oracle"}
        for name in list(sys.modules):
            if name.split(".")[0] in {"prl_keras", *tests}:
                del sys.modules[name]


class Failures:
    def __init__(self):
        self.names = []

    def pytest_runtest_logreport(self, report):
        if report.failed:
            self.names.append(report.nodeid)

    def pytest_collectreport(self, report):
        if report.failed:
            self.names.append("import of " + report.nodeid)


class TooLongError(BaseException):
    pass


def too_long(*_):
    raise TooLongError


def run(module):
    """-> ("killed" or "survived", the first test that failed or "")."""
    failures = Failures()
    arguments = ["-x", "--tb=no", "-p", "no:cacheprovider", "--durations=0"]
    signal.alarm(SECONDS)
    try:
        with open(os.devnull, "w") as null, contextlib.redirect_stdout(null):
            code = pytest.main([*arguments, *(f"tests/{name}" for name in TESTS[module])], [failures])
    except TooLongError:
        return "killed", f"longer than {SECONDS} s"
    finally:
        signal.alarm(0)
        gc.collect()
    return ("survived" if code == 0 else "killed"), (failures.names or [""])[0]


def mutants(session):
    """(module, source, description) of each, in an order that does not change."""
    rows = sqlite3.connect(session).execute(
        "select m.job_id, m.module_path, m.operator_name, m.operator_args, m.occurrence, m.start_pos_row, "
        "m.definition_name from mutation_specs m left join work_results r on r.job_id = m.job_id "
        "where r.job_id is null order by 2, 6, 3, 5"
    )
    for job, module, operator, args, occurrence, row, where in rows.fetchall():
        args = json.loads(args)
        args = json.loads(args) if isinstance(args, str) else args
        visitor = MutationVisitor(occurrence, cosmic_ray.plugins.get_operator(operator)(**args))
        before = pathlib.Path(module).read_text()
        after = visitor.walk(get_ast(before)).get_code()
        changed = [(a.strip(), b.strip()) for a, b in zip(before.splitlines(), after.splitlines()) if a != b]
        yield module, after, [job, module, operator, row, where], (changed or [("", "")])[0]


def main(session, output):
    os.chdir(ROOT)
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    phases = [hypothesis.Phase.explicit, hypothesis.Phase.generate]  # nothing is shrunk
    hypothesis.settings.register_profile("mutants", phases=phases)
    hypothesis.settings.load_profile("mutants")
    signal.signal(signal.SIGALRM, too_long)
    importer = Importer()
    importer.install()
    done = set()
    if pathlib.Path(output).exists():
        with open(output, newline="") as file:
            done = {row["job"] for row in csv.DictReader(file)}
    with open(output, "a", newline="") as file:
        writer = csv.writer(file)
        if not done:
            writer.writerow(COLUMNS)
        for module, source, described, changed in mutants(session):
            if described[0] in done:
                continue
            started = time.monotonic()
            importer.take(module, source)
            outcome, killer = run(module)
            writer.writerow([*described, outcome, *changed, killer, f"{time.monotonic() - started:.1f}"])
            file.flush()
            print(described[1:], outcome, *changed, sep="\n    ", file=sys.stderr)


if __name__ == "__main__":
    main(*sys.argv[1:])
