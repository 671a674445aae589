"""Counts the kernels of one training step on any machine: it needs neither a clock nor a GPU."""

import collections
import datetime
import importlib.metadata
import json
import pathlib
import re
import typing
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf
import tqdm

from prl_keras import SelectionRecord, files
from prl_keras.experiments import markdown
from prl_keras.experiments.benchmark import steps
from prl_keras.experiments.benchmark.kernel_rows import EPSILON, SIZE, Row, rows

KERNELS = "kernels"  # the suite's name
BATCH_SIZE = 32
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?[\w.\-]+ = .*? ([a-z][\w\-]*)\((.*)$", re.MULTILINE)
_TARGET = re.compile(r'custom_call_target="([^"]*)"')
# Parts of the names of library calls with which backends replace an instruction.
_CALLS = {"topk": "topk", "sort": "sort", "conv": "convolution", "matmul": "dot", "gemm": "dot"}
_BRANCHES = ("If", "StatelessIf", "Case", "StatelessCase")
_LOOPS = ("While", "StatelessWhile")
_TOPKS = ("TopK", "TopKV2")


class Kernels(typing.NamedTuple):
    """How often a training step has each of these.

    Attributes:
        fusions, dots, convolutions, sorts, topks, conditionals, whiles: Instructions of XLA's optimized
            program, in all its computations; a dot within a fusion counts too. None for a model that does not
            use XLA.
        graph_branches, graph_loops, graph_topks: Nodes of TensorFlow's graph and its functions: If and Case,
            While, TopK (which implements every sort).
        graph_nodes: All nodes, before TensorFlow optimizes them.
    """

    fusions: int | None
    dots: int | None
    convolutions: int | None
    sorts: int | None
    topks: int | None
    conditionals: int | None
    whiles: int | None
    graph_branches: int
    graph_loops: int
    graph_topks: int
    graph_nodes: int


def count(model: Any, x: np.ndarray, y: np.ndarray) -> Kernels:
    """The `Kernels` of a training step in `fit`, with the callbacks that `fit` attaches itself.

    Args:
        model: A compiled model. It is trained on the batch once, which builds what a first step builds.
        x, y: A batch, arrays `[batch, ...]`.
    """
    data = (tf.constant(x), tf.constant(y))
    as_compiled, model.run_eagerly = model.run_eagerly, True  # one step is not worth compiling
    model.train_on_batch(*data)
    model.run_eagerly, model.train_function = as_compiled, None
    graph = tf.function(model.train_step).get_concrete_function(data).graph.as_graph_def()
    program = None
    if model.supports_jit:
        step = tf.function(model.train_step, jit_compile=True)
        program = step.experimental_get_compiler_ir(data)(stage="optimized_hlo")
    return Kernels(**_of_program(program), **_of_graph(graph))


def count_row(row: Row) -> Kernels:
    """The `Kernels` of a `Row`."""
    x, y = steps.random_data(BATCH_SIZE, (SIZE, SIZE, 3), row.has_classes)
    model = row.make()
    if row.is_recorded:
        SelectionRecord((x, y)).set_model(model)
    return count(model, x, y)


def write_kernels(output_dir: pathlib.Path | str, report: bool = False) -> pathlib.Path:
    """Counts all rows (none with `report`) and writes kernels.json and kernels.md.

    Returns:
        The path of the Markdown file.

    Raises:
        FileNotFoundError: if there is nothing to report.
        ValueError: naming kernels.json, if it is damaged.
    """
    path = pathlib.Path(output_dir) / f"{KERNELS}.json"
    if not report:
        found = {row.title: count_row(row)._asdict() for row in tqdm.tqdm(rows(), KERNELS, unit="row")}
        files.write_json(path, {"suite": KERNELS, **_about(), "rows": found})
    command = f"python -m binaries.benchmark --suite={KERNELS}"
    if not path.exists():
        raise FileNotFoundError(f"{path} is not there; count: {command}")
    try:
        text = _report(json.loads(path.read_text()), command)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({error!r}); count anew: {command}") from error
    with files.replacing(path.with_suffix(".md")) as temporary:
        temporary.write_text(text)
    return path.with_suffix(".md")


def table(counted: Mapping[str, Mapping[str, Any]]) -> str:
    """The Markdown table of `{title of a Row: fields of its Kernels}`, in the order of `rows`."""
    lines = []
    for row in rows():
        if row.title not in counted:
            continue
        kernels = Kernels(**counted[row.title])
        plain = counted.get(row.baseline, {}).get("fusions")
        ratio = np.nan if kernels.fusions is None or not plain else kernels.fusions / plain
        first, *others = (markdown.number(value, 0) for value in kernels)
        lines.append([row.title, first, markdown.number(ratio, 2), *others])
    header = ["step", "fusions", "to plain", *(name.replace("_", " ") for name in Kernels._fields[1:])]
    return markdown.markdown_table(header, lines)


def _of_program(text):
    """The counts in XLA's text, lines of `%name = type opcode(operands), attributes`; it may be None."""
    names = Kernels._fields[:7]
    if text is None:
        return dict.fromkeys(names)
    opcodes = collections.Counter(_opcode(*found) for found in _INSTRUCTION.findall(text))
    return {name: opcodes[name.removesuffix("s")] for name in names}


def _opcode(opcode, rest):
    if opcode != "custom-call":
        return opcode
    target = _TARGET.search(rest)
    called = target[1].lower() if target else ""
    return next((name for part, name in _CALLS.items() if part in called), opcode)


def _of_graph(graph):
    """The counts in a `GraphDef`; a function that is called twice counts once."""
    functions = (function.node_def for function in graph.library.function)
    ops = collections.Counter(node.op for nodes in (graph.node, *functions) for node in nodes)
    kinds = {"graph_branches": _BRANCHES, "graph_loops": _LOOPS, "graph_topks": _TOPKS}
    found = {name: sum(ops[op] for op in kind) for name, kind in kinds.items()}
    return {**found, "graph_nodes": ops.total()}


def _about():
    gpus = tf.config.list_physical_devices("GPU")
    versions = {name: importlib.metadata.version(name) for name in ("tensorflow", "keras")}
    return {
        "date": datetime.date.today().isoformat(),
        "device": "GPU" if gpus else "CPU",
        "versions": versions,
    }


def _report(content, command):
    """The text of `kernels.md`."""
    unknown = [title for title in content["rows"] if title not in {row.title for row in rows()}]
    if unknown:
        raise ValueError(f"unknown rows {', '.join(unknown)}")
    versions = ", ".join(f"{name} {version}" for name, version in content["versions"].items())
    return (
        "# Kernels of a training step\n\n"
        f"Counted {content['date']}, XLA for a {content['device']}; {versions}. Images of {SIZE}x{SIZE}, "
        f"batch {BATCH_SIZE}, two convolutions, Adam, epsilon {EPSILON:g}; group norm where the score is the "
        "gradient, else batch norm.\n\n"
        "From fusions to whiles: instructions of XLA's optimized program. A GPU starts a kernel for each "
        "fusion, and waits for the host at each conditional and while. The last columns: nodes of "
        'TensorFlow\'s graph without XLA. "To plain" is the ratio of the fusions to those of plain training '
        "of the same norm, targets and number of networks. A dash: the model does without XLA.\n\n"
        f"Made by `{command}`.\n\n{table(content['rows'])}\n"
    )
