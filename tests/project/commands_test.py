"""The commands of all documents: their flags are those of the programs."""

import json
import re
import shlex

import pytest
from processes import python
from project import ROOT

OF_OLDER_REVISIONS = ("--profile", "binaries.soak")  # the documents say of which
PARSE = """
import importlib, json, sys
if sys.argv[1] == "prl_keras.audit":
    from prl_keras.label_audit.command import parser
    for arguments in json.loads(sys.argv[2]):
        parser().parse_args(["data", *arguments])
module = importlib.import_module(sys.argv[1])
if sys.argv[1].startswith(("binaries.", "examples.")):
    from absl import flags
    for arguments in json.loads(sys.argv[2]):
        flags.FLAGS.unparse_flags()
        flags.FLAGS([sys.argv[1], *arguments])
"""


def commands():
    """{module: lists of arguments} of all `python -m` commands in Markdown."""
    found = {}
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "results").rglob("*.md")]:
        text = re.sub(r"\\\n\s*", "", path.read_text())
        for command in re.findall(
            r"python -m ((?:binaries\.\w+|examples\.\w+|prl_keras\.audit)[^`\n#;&|)]*)", text
        ):
            if not any(part in command for part in ("...", *OF_OLDER_REVISIONS)):
                command = command.replace("--help", "").replace("$C", "symmetric").replace("$S", "0")
                module, *arguments = shlex.split(command.replace("=N", "=1"))
                found.setdefault(module, []).append([each for each in arguments if each.startswith("--")])
    return found


@pytest.mark.long  # a process for each program
@pytest.mark.parametrize("module", commands())
def test_every_command_has_known_flags(module):
    python("-c", PARSE, module, json.dumps(commands()[module]))
