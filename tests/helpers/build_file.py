"""The imports of every Python file, and BUILD, which lists them.

python tests/helpers/build_file.py   writes DEPS of BUILD
"""

import ast
import functools
import re
import sys

from project import ROOT

FOLDERS = ("prl_keras", "binaries", "examples", "tests")
# Import name -> the name under which the package is installed, where the two differ.
DISTRIBUTIONS = {
    "absl": "absl-py",
    "sklearn": "scikit-learn",
    "tensorflow_datasets": "tensorflow-datasets",
    "keras_hub": "keras-hub",
    "keras_tuner": "keras-tuner",
    "grpc": "grpcio",
    "starlark": "starlark-pyo3",
}


@functools.cache
def python_files():
    return sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))


def target_name(path):
    return path.relative_to(ROOT).with_suffix("").as_posix()


def module_file(parts):
    """The file of the longest prefix of a dotted name that is a module of the project, or None."""
    for end in range(len(parts), 0, -1):
        base = ROOT.joinpath(*parts[:end])
        for path in (base.with_suffix(".py"), base / "__init__.py"):
            if path.exists():
                return path
    return None


@functools.cache
def real_imports(path):
    """Labels of everything that a file imports, inside functions too, except the standard library."""
    labels = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            local = module_file(parts) or module_file(["tests", "helpers", *parts])
            if local is not None:
                labels.add(":" + target_name(local))
            elif parts[0] not in sys.stdlib_module_names:
                labels.add("pip:" + DISTRIBUTIONS.get(parts[0], parts[0]))
    return labels - {":" + target_name(path)}


def deps_text():
    """DEPS of BUILD, as it is written there."""
    lines = []
    for path in python_files():
        labels = sorted(label.removeprefix(":").replace("pip:", "@") for label in real_imports(path))
        labels.sort(key=lambda label: label.startswith("@"))
        lines.append(f'    "{target_name(path)}": "{" ".join(labels)}",')
    return "DEPS = {\n" + "\n".join(sorted(lines)) + "\n}\n"


if __name__ == "__main__":
    build = ROOT / "BUILD"
    text, count = re.subn(r"(?ms)^DEPS = \{\n.*?^\}\n", lambda _: deps_text(), build.read_text(), count=1)
    assert count == 1, "BUILD has no line DEPS = {"
    build.write_text(text)
