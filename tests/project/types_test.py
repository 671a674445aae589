"""Every public function and method of prl_keras says the types of what it takes and gives.

mypy (`make lint`) checks that they agree. It does not ask that they are there.
"""

import ast

import pytest
from project import ROOT

FILES = sorted((ROOT / "prl_keras").rglob("*.py"))
SPECIAL = {"__init__", "__call__"}


def public_functions(tree):
    """The functions of a module and the methods of its public classes, without leading underscore."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            yield node.name, node, False
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            for item in node.body:
                if isinstance(item, ast.FunctionDef) and (
                    item.name in SPECIAL or not item.name.startswith("_")
                ):
                    decorators = {getattr(d, "id", None) for d in item.decorator_list}
                    yield f"{node.name}.{item.name}", item, "staticmethod" not in decorators


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_public_functions_have_types(path):
    missing = []
    for name, function, has_self in public_functions(ast.parse(path.read_text())):
        given = function.args
        arguments = [*given.posonlyargs, *given.args][has_self:] + given.kwonlyargs
        arguments += [extra for extra in (given.vararg, given.kwarg) if extra]
        missing += [
            f"{name}: {each.arg}" for each in arguments if each.annotation is None and each.arg != "_"
        ]
        if function.returns is None and function.name != "__init__":
            missing.append(f"{name}: what it returns")
    assert not missing
