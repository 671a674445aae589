"""The paper's tables beside ours, from the result files alone: Markdown, CSV and PNG.

    paths, problems = report(TABLES[1], "cpu", "results/cpu/runs", "results/cpu")

The same result files give the same bytes.
"""

import pathlib

import pandas as pd

from prl_keras import files
from prl_keras.experiments import comparisons, figures, markdown, results, seconds
from prl_keras.experiments.protocol import PROTOCOLS
from prl_keras.experiments.tables import Table

_DECIMALS = {"r2_score": 3, "accuracy": 2}
_METRICS = {"r2_score": "R2", "accuracy": "accuracy in percent"}
_PICTURES = {1: "figure2.png", 2: "figure3.png", 3: "table3.png"}  # the paper's figures 2 and 3
_BETA_1 = 0.9  # of keras.optimizers.Adam if nothing is said, as in `Training`; the paper's "momentum"


def report(table, scale, directory, output_dir):
    """Writes tableN.md, tableN.csv and a picture: figure2.png, figure3.png, table3.png, none for table 6.

    Args:
        table: A `Table`.
        scale: "paper" or "cpu".
        directory: The result files of that scale. Those of other tables are passed over; those that are
            damaged, of another scale or of another metric are named in the report and left out.
        output_dir: Where to; made if missing.

    Returns:
        (paths written, problems): lists.

    Raises:
        ValueError: without any run of the table, naming the folder and the command that makes them; if
            runs of one data set were made from different data.
    """
    directory, output_dir = pathlib.Path(directory), pathlib.Path(output_dir)
    contents, problems = _runs_of(table, scale, directory)
    missing = set(table.configs(scale)) - {content["config"] for content in contents}
    total = len(missing) + len(contents)
    if not contents:
        left_out = f" {len(problems)} files are left out, the first: {problems[0]}" if problems else ""
        raise ValueError(
            f"{directory} has none of the {total} runs of table {table.number} at scale {scale}."
            f"{left_out} Make them with {_command(table, scale)}."
        )
    metric = comparisons.metric_of(table)
    if metric is None:
        cells, body = _timing_body(table, contents)
    else:
        cells, body = _metric_body(table, contents, metric)
    text = [f"# Table {table.number}: {table.title}", _caption(table, scale, contents), *body]
    counted = f"{len(missing)} of {total} runs are missing." if missing else f"All {total} runs are there."
    text.insert(2, counted + f" Files left out, see the end: {len(problems)}." * bool(problems))
    if problems:
        listed = "\n".join(f"- {problem.replace(f'{directory}/', '')}" for problem in problems)
        text.append(f"## Left out\n\n{listed}")

    output_dir.mkdir(parents=True, exist_ok=True)
    paths = [output_dir / f"table{table.number}.md", output_dir / f"table{table.number}.csv"]
    _write(paths[0], "\n\n".join(part for part in text if part) + "\n")
    _write_csv(paths[1], cells.assign(scale=scale, source="; ".join(_values_of(contents, "source"))))
    if table.number in _PICTURES:
        paths.append(output_dir / _PICTURES[table.number])
        about = f"Scale {scale}; {'; '.join(_values_of(contents, 'source'))}; {_seeds(contents)}."
        with files.replacing(paths[-1]) as temporary:
            if len(table.epsilon_errors) > 1:
                figures.plot_sensitivity(table, cells, about, temporary)
            else:
                figures.plot_epochs(table, contents, metric, about, temporary)
    return paths, problems


def report_protocols(output_dir):
    """Writes table4.md and table4.csv, `PROTOCOLS` beside the paper's hyperparameters; -> their paths."""
    paper = Table(4, "Hyperparameters", (), (), "table4_hyperparameters.csv").paper().set_index("dataset")
    lines = []
    for (dataset, scale), protocol in PROTOCOLS.items():
        theirs = paper.loc[dataset.replace("_", "")]
        lines.append({
            "dataset": dataset, "scale": scale, "batch_size": protocol.batch_size,
            "learning_rate": protocol.learning_rate, "optimizer": "adam", "momentum": _BETA_1,
            **{f"paper_{name}": theirs[name] for name in paper.columns},
            "network": protocol.network, "epochs": protocol.epochs,
            "ramp_epochs": protocol.ramp_epochs("other"),
            "ramp_epochs_pairflip": protocol.ramp_epochs("pairflip"), "seeds": protocol.seeds,
            "train_size": protocol.train_size or "all", "test_size": protocol.test_size or "all",
        })  # fmt: skip
    frame = pd.DataFrame(lines)
    text = (
        "# Table 4: Hyperparameters\n\nThose of the code; columns that begin with paper are the paper's. "
        "Momentum is beta_1 of Adam. The paper is silent on the others.\n\n"
    )
    header = [name.replace("_", " ") for name in frame.columns]
    text += markdown.markdown_table(header, frame.astype(str).to_numpy().tolist()) + "\n"
    output_dir = pathlib.Path(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    paths = [output_dir / "table4.md", output_dir / "table4.csv"]
    _write(paths[0], text)
    _write_csv(paths[1], frame)
    return paths


def _runs_of(table, scale, directory):
    """-> (the contents that are runs of the table with whatever seeds, problems)."""
    contents, problems = results.read_all(directory)
    metric, chosen = comparisons.metric_of(table), []
    wanted = set(table.configs(scale, sorted({content["config"].seed for content in contents})))
    for content in contents:
        path = results.path_of(directory, content["config"])
        if content.get("scale") != scale:
            problems.append(f"{path} is of scale {content.get('scale')!r}, not {scale!r}.")
        elif content["config"] in wanted:
            if metric in (None, content["result"]["test_metric"]):
                chosen.append(content)
            else:
                problems.append(f"{path} holds {content['result']['test_metric']}, not {metric}.")
    for dataset in {content["config"].dataset for content in chosen}:
        first = {
            str(content.get("source")): results.path_of(directory, content["config"]).name
            for content in reversed(chosen)
            if content["config"].dataset == dataset
        }
        if len(first) > 1:
            listed = "; ".join(f"{source} ({name})" for source, name in sorted(first.items()))
            raise ValueError(f"{directory} mixes runs on different data, such as {listed}. Keep one kind.")
    return chosen, problems


def _metric_body(table, contents, metric):
    """-> (cells, the sections of tables 1, 2 and 3)."""
    decimals = _DECIMALS[metric]
    runs = comparisons.run_values(contents, metric)
    cells = comparisons.cell_values(table, runs, metric)
    not_finite = int(runs["value"].isna().sum())
    picture = _PICTURES[table.number]
    body = [
        f"A run's number is its {_METRICS[metric]} on clean test data, mean of the last ten epochs. A cell "
        "is the mean over the seeds ± the standard deviation over the last ten epochs of all seeds (as in "
        "the paper; it mixes the two and is no error of the mean, which the 95% intervals give). The best "
        'of a row is bold; "-" is missing; (n=...) marks a cell with fewer seeds than others of its row.',
        f'{not_finite} runs have last epochs that are not finite: their cells are "not finite".'
        if not_finite
        else "",
        "## Ours",
        markdown.in_layout(table, cells, decimals),
        markdown.on_clean_targets(cells, decimals),
        "## Ours / paper",
        markdown.beside_paper(table, cells, decimals),
        f"![{pathlib.Path(picture).stem}]({picture})",
    ]
    if len(table.methods) > 1:
        body += [
            "## Is a PRL variant the best?",
            "The difference is that of the best PRL variant to the best method over the seeds that both "
            "have, with its 95% interval by Student's t; within noise: the interval holds 0 (with two seeds "
            "it is wide). Methods without runs in a row, or with one that is not finite, do not count.",
            markdown.best_methods(table, runs, cells, decimals),
            "## Paired tests",
            "Pairs share the seed, which is that of the network, the batches and the corruption. Two-sided "
            "paired t tests; BH: adjusted for the number of rows by Benjamini and Hochberg; Wilcoxon's "
            "signed-rank test from six pairs on. The last two lines take all rows together: a pair for each "
            "row and seed, then a pair for each row, of its means.",
            markdown.paired_tests(table, runs, decimals),
        ]
    body += [
        "## Agreement with the paper",
        "Kendall's tau between our means and the paper's within a row: 1 is the same order, -1 the reverse.",
        markdown.rank_agreement(table, cells),
        "## Intervals",
        "95% intervals of the mean over the seeds by Student's t.",
        markdown.with_intervals(table, cells, decimals),
    ]
    return cells, body


def _timing_body(table, contents):
    """-> (cells, the sections of table 6)."""
    cells = seconds.cell_seconds(table, seconds.run_seconds(contents))
    text = (
        "A run's number is the median over its epochs without the first, in which TensorFlow traces the "
        "model. A cell is the median over the seeds with the range; ratios are to Standard of the same seed."
    )
    return cells, [text, "## Ours and the paper's", seconds.section(cells)]


def _caption(table, scale, contents):
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
        f"Made by: `{_command(table, scale)}`",
        f"Training took {spent / 3600:.2f} hours in all, tests not counted, on "
        f"{'; '.join(_values_of(contents, 'device'))}",
    ]
    return "\n".join(f"- {line}" for line in lines)


def _seeds(contents):
    return f"seeds {', '.join(map(str, sorted({content['config'].seed for content in contents})))}"


def _values_of(contents, name):
    return sorted({str(content.get(name, f"{name} not stated")) for content in contents})


def _command(table, scale):
    return f"python -m binaries.reproduce --table={table.number} --scale={scale}"


def _write(path, text):
    with files.replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _write_csv(path, frame):
    _write(path, frame.to_csv(index=False, float_format="%.6g", lineterminator="\n"))
