"""BUILD: every Python file has its target, and each target's deps are the file's real imports."""

import ast
import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
FOLDERS = ("prl_keras", "binaries", "examples", "tests")
# Import name -> the name under which the package is installed, where the two differ.
DISTRIBUTIONS = {
    "absl": "absl-py",
    "sklearn": "scikit-learn",
    "tensorflow_datasets": "tensorflow-datasets",
    "keras_hub": "keras-hub",
    "keras_tuner": "keras-tuner",
    "grpc": "grpcio",
    "cosmic_ray": "cosmic-ray",
}


def python_files():
    return sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))


def targets():
    """-> {name: (rule, {attribute: value})} of BUILD, which is read as Python."""
    found = {}
    for node in ast.parse((ROOT / "BUILD").read_text()).body:
        call = node.value
        if call.func.id in ("py_library", "py_binary", "py_test"):
            attributes = {keyword.arg: keyword.value for keyword in call.keywords}
            name = ast.literal_eval(attributes["name"])
            assert name not in found, f"two targets are called {name}"
            found[name] = (call.func.id, attributes)
    return found


def names_in(node):
    """The labels of a deps list; requirement("x") becomes "pip:x"."""
    if node is None:
        return []
    return [
        f"pip:{item.args[0].value}" if isinstance(item, ast.Call) else ast.literal_eval(item)
        for item in node.elts
    ]


def target_name(path):
    relative = path.relative_to(ROOT).with_suffix("")
    if relative.parts[0] == "tests":
        return relative.name
    return "/".join(relative.parts)


def module_file(parts):
    """The file of the longest prefix of a dotted name that is a module of the project, or None."""
    for end in range(len(parts), 0, -1):
        base = ROOT.joinpath(*parts[:end])
        for path in (base.with_suffix(".py"), base / "__init__.py"):
            if path.exists():
                return path
    return None


def real_imports(path):
    """Labels of everything that a file imports, inside functions too, but for the standard library."""
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
            local = module_file(parts) or module_file(["tests", *parts])
            if local is not None:
                labels.add(":" + target_name(local))
            elif parts[0] not in sys.stdlib_module_names:
                labels.add("pip:" + DISTRIBUTIONS.get(parts[0], parts[0]))
    return labels - {":" + target_name(path)}


def test_every_file_has_its_target_and_every_target_its_file():
    assert set(targets()) == {target_name(path) for path in python_files()}


@pytest.mark.parametrize("path", python_files(), ids=target_name)
def test_deps_are_the_real_imports(path):
    rule, attributes = targets()[target_name(path)]
    relative = str(path.relative_to(ROOT))
    assert names_in(attributes["srcs"]) == [relative]
    is_test = path.name.endswith("_test.py")
    is_binary = path.parent.name in ("binaries", "examples") and "__main__" in path.read_text()
    assert rule == ("py_test" if is_test else "py_binary" if is_binary else "py_library")
    deps = names_in(attributes.get("deps"))
    assert deps == sorted(set(deps)), "deps are sorted, each once"
    assert set(deps) == real_imports(path)


def test_every_third_party_dep_is_in_the_requirements():
    files = [ROOT / f"requirements{kind}.txt" for kind in ("", "-peers", "-text")]
    lines = [line for file in files for line in file.read_text().lower().splitlines()]
    listed = {line.split(">")[0].split("<")[0].split("=")[0].strip() for line in lines if line[:1].isalpha()}
    used = {
        label.removeprefix("pip:")
        for _, attributes in targets().values()
        for label in names_in(attributes.get("deps"))
        if label.startswith("pip:")
    }
    assert used <= listed, used - listed


# Rooms of the library, each above all that it may import.
ROOMS = [
    {"__init__"},
    {"auditing", "methods"},
    {"models"},
    {"epsilon"},
    {"scores"},
    {"inputs", "rules"},
    {"keras_gaps", "losses"},
    {"files", "validate", "corruption"},
]


def room_and_height(name):
    """The room of a library file, by its target's name, and how many rooms are below."""
    room = name.split("/")[1]
    return room, next(-i for i, rooms in enumerate(ROOMS) if room in rooms)


def test_arrows_point_one_way():
    """binaries -> experiments -> the library, which needs TensorFlow, Keras and NumPy alone.

    But for the table of `audit`, for which pandas is imported when it is called (import_test).
    """
    for path in python_files():
        name = target_name(path)
        for label in real_imports(path):
            if name.startswith("prl_keras/experiments"):
                assert not label.startswith(":binaries"), (name, label)
            elif name.startswith("prl_keras"):
                assert not label.startswith((":binaries", ":prl_keras/experiments")), (name, label)
                if label.startswith("pip:") and (name, label) != ("prl_keras/auditing/table", "pip:pandas"):
                    assert label in ("pip:tensorflow", "pip:keras", "pip:numpy"), (name, label)
                if label.startswith(":"):
                    (room, height), (other, below) = room_and_height(name), room_and_height(label[1:])
                    assert room == other or below < height, (name, label)
