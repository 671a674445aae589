"""The paper's tables beside ours, written from the result files as Markdown, CSV and PNG.

    paths, problems = report(TABLES[1], "cpu", "results/cpu/runs", "results/cpu")

The same result files give the same bytes.
"""

import pathlib

import pandas as pd

from prl_keras import files
from prl_keras.experiments.data.load import DATASETS
from prl_keras.experiments.markdown import markdown_table
from prl_keras.experiments.paper import comparisons, figures, markdown, timing
from prl_keras.experiments.paper.protocol import PROTOCOLS
from prl_keras.experiments.paper.tables import TABLES, Table
from prl_keras.experiments.runs import results

_BETA_1 = 0.9  # the default of keras.optimizers.Adam, which `Training` uses; the paper's "momentum"


def report(
    table: Table,
    scale: str,
    directory: pathlib.Path | str,
    output_dir: pathlib.Path | str,
    precision: str = "float32",
) -> tuple[list[pathlib.Path], list[str]]:
    """Writes tableN.md, tableN.csv and a picture: figure2.png, figure3.png or table3.png; none for table 6.

    If all runs of the table are there, it packs them into one file, tableN.jsonl.

    Args:
        table: A `Table`.
        scale: "paper" or "cpu".
        directory: The runs of that scale. Runs of other tables are ignored. Runs that are damaged, of another
            scale or of another metric are left out and named in the report.
        output_dir: Where to write; created if missing.
        precision: Of the runs, as in `RunConfig`.

    Returns:
        (paths written, problems): two lists.

    Raises:
        ValueError: if no run of the table is found (the message names the folder and the command that makes
            them), or if runs of one data set were trained on different data.
    """
    directory, output_dir = pathlib.Path(directory), pathlib.Path(output_dir)
    contents, problems = _runs_of(table, scale, directory, precision)
    missing = set(table.configs(scale, None, precision)) - {content["config"] for content in contents}
    total = len(missing) + len(contents)
    if not contents:
        left_out = f" {len(problems)} files are left out, the first: {problems[0]}" if problems else ""
        raise ValueError(
            f"{directory} has none of the {total} runs of table {table.number} at scale {scale}."
            f"{left_out} Make them with {_command(table, scale, precision)}."
        )
    if table.metric is None:
        found = None
        cells = timing.cell_seconds(table, timing.run_seconds(contents))
        body = timing.sections(cells)
    else:
        found = comparisons.compare(table, contents)
        cells, body = found.cells, markdown.sections(found)
    text = [f"# Table {table.number}: {table.title}", _caption(table, scale, contents, precision), *body]
    counted = f"{len(missing)} of {total} runs are missing." if missing else f"All {total} runs are there."
    text.insert(2, counted + f" Files left out, see the end: {len(problems)}." * bool(problems))
    if problems:
        listed = "\n".join(f"- {problem.replace(f'{directory}/', '')}" for problem in problems)
        text.append(f"## Left out\n\n{listed}")

    output_dir.mkdir(parents=True, exist_ok=True)
    paths = [output_dir / f"table{table.number}.md", output_dir / f"table{table.number}.csv"]
    _write(paths[0], "\n\n".join(part for part in text if part) + "\n")
    _write_csv(paths[1], cells.assign(scale=scale, source="; ".join(_values_of(contents, "source"))))
    if table.picture and found is not None:
        paths.append(output_dir / table.picture)
        about = f"Scale {scale}; {'; '.join(_values_of(contents, 'source'))}; {_seeds(contents)}."
        with files.replacing(paths[-1]) as temporary:
            figures.plot(found, contents, about, temporary)
    if not missing:
        results.pack(directory / f"table{table.number}.jsonl", contents)
    return paths, problems


def report_protocols(output_dir: pathlib.Path | str) -> list[pathlib.Path]:
    """Writes table4.md and table4.csv, `PROTOCOLS` beside the paper's hyperparameters; -> their paths."""
    paper = TABLES[4].paper().set_index("dataset")
    lines = []
    for (dataset, scale), protocol in PROTOCOLS.items():
        name = (DATASETS[dataset].of or dataset).replace("_", "")
        if name not in paper.index:
            continue
        theirs = paper.loc[name]
        lines.append({
            "dataset": dataset, "scale": scale, "batch_size": protocol.batch_size,
            "learning_rate": protocol.learning_rate, "optimizer": "adam", "momentum": _BETA_1,
            **{f"paper_{column}": theirs[column] for column in paper.columns},
            "network": protocol.network, "epochs": protocol.epochs,
            "ramp_epochs": protocol.ramp_epochs("other"),
            "ramp_epochs_pairflip": protocol.ramp_epochs("pairflip"), "seeds": protocol.seeds,
            "train_size": protocol.train_size or "all", "test_size": protocol.test_size or "all",
            "recompute": " ".join(protocol.recompute) or "none",
        })  # fmt: skip
    frame = pd.DataFrame(lines)
    text = (
        "# Table 4: Hyperparameters\n\nThose of the code; columns that begin with paper are the paper's. "
        "Momentum is beta_1 of Adam. The paper is silent on the others.\n\n"
    )
    header = [name.replace("_", " ") for name in frame.columns]
    text += markdown_table(header, frame.astype(str).to_numpy().tolist()) + "\n"
    output_dir = pathlib.Path(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    paths = [output_dir / "table4.md", output_dir / "table4.csv"]
    _write(paths[0], text)
    _write_csv(paths[1], frame)
    return paths


def _runs_of(table, scale, directory, precision):
    """-> (contents of the table's runs with any seed, problems)."""
    contents, problems = results.read_all(directory)
    metric, chosen = table.metric, []
    wanted = set(table.configs(scale, sorted({content["config"].seed for content in contents}), precision))
    for content in contents:
        path = content["place"]
        if content.get("scale") != scale:
            problems.append(f"{path} is of scale {content.get('scale')!r}, not {scale!r}.")
        elif content["config"] in wanted:
            if metric is None or metric.name == content["result"]["test_metric"]:
                chosen.append(content)
            else:
                problems.append(f"{path} holds {content['result']['test_metric']}, not {metric.name}.")
    for dataset in {content["config"].dataset for content in chosen}:
        first = {
            str(content.get("source")): pathlib.Path(content["place"]).name
            for content in reversed(chosen)
            if content["config"].dataset == dataset
        }
        if len(first) > 1:
            listed = "; ".join(f"{source} ({name})" for source, name in sorted(first.items()))
            raise ValueError(f"{directory} mixes runs on different data, such as {listed}. Keep one kind.")
    return chosen, problems


def _caption(table, scale, contents, precision):
    protocols = []
    for config in {content["config"].dataset: content["config"] for content in contents}.values():
        sizes = [f"{size:,}" if size else "all" for size in (config.train_size, config.test_size)]
        protocols.append(
            f"{config.dataset}: {config.network}, {sizes[0]} training and {sizes[1]} test examples, "
            f"{config.epochs} epochs of batches of {config.batch_size}, Adam {config.learning_rate:g}"
        )
    spent = sum(content["history"]["seconds"].sum() for content in contents)
    lines = [
        f"Scale: {scale}",
        f"Data: {'; '.join(_values_of(contents, 'source'))}",
        f"Protocol: {'; '.join(protocols)}; {_seeds(contents)}",
        f"Made by: `{_command(table, scale, precision)}`",
        f"Training took {spent / 3600:.2f} hours in all, tests not counted, on "
        f"{'; '.join(_values_of(contents, 'device'))}",
    ]
    if precision != "float32":
        lines.insert(3, f"Precision: layers compute in {precision}, weights and logits are float32")
    return "\n".join(f"- {line}" for line in lines)


def _seeds(contents):
    return f"seeds {', '.join(map(str, sorted({content['config'].seed for content in contents})))}"


def _values_of(contents, name):
    return sorted({str(content.get(name, f"{name} not stated")) for content in contents})


def _command(table, scale, precision):
    command = f"python -m binaries.reproduce --table={table.number} --scale={scale}"
    return command if precision == "float32" else f"{command} --precision={precision}"


def _write(path, text):
    with files.replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _write_csv(path, frame):
    _write(path, frame.to_csv(index=False, float_format="%.6g", lineterminator="\n"))
