"""The paper's tables as lists of runs: all of them, by the paper's protocol, and nothing else."""

import dataclasses

import pytest

from prl_keras.experiments.paper.protocol import PROTOCOLS, SCALES
from prl_keras.experiments.paper.tables import TABLES, Row, Table

TASKS = {"cifar10": "classification", "cifar100": "classification", "celeb_a": "regression"}
TASKS |= {f"{name}_features": "classification" for name in ("cifar10", "cifar100")}


def paper_cells(table):
    """The (row, method, epsilon error) of each of the paper's numbers."""
    paper = table.paper().assign(**{
        name: default
        for name, default in (("dataset", "celeb_a"), ("epsilon_error", 0.0))
        if name not in table.paper()
    })  # fmt: skip
    return {
        (Row(cell.dataset, cell.corruption, cell.epsilon), cell.method, cell.epsilon_error)
        for cell in paper.itertuples()
    }


@pytest.mark.parametrize("number", [1, 2, 3])
def test_every_number_of_the_paper_has_its_runs_and_no_other_has(number):
    table = TABLES[number]
    cells = {(row, m, e) for row in table.rows for m in table.methods for e in table.epsilon_errors}
    assert cells == paper_cells(table)


@pytest.mark.parametrize(
    "number, runs", [(1, 20 * 8 * 5 + 5), (2, 12 * 9 * 3 + 6), (3, 6 * 5 * 3), (6, 3 * 3)]
)
def test_the_runs_of_a_table_are_counted(number, runs):
    configs = TABLES[number].configs("paper")
    assert len(configs) == len(set(configs)) == runs


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("number", TABLES)
def test_each_run_suits_its_task(number, scale):
    for config in TABLES[number].configs(scale):
        config.check_task(TASKS[config.dataset])


def test_the_paper_scale_is_table_4_of_the_paper():
    table4 = Table(4, "", (), (), "table4_hyperparameters.csv").paper().set_index("dataset")
    for name in ("cifar10", "cifar100", "celeba"):
        for scale in SCALES:
            protocol = PROTOCOLS[name.replace("celeba", "celeb_a"), scale]
            assert protocol.batch_size == table4.loc[name, "batch_size"]
            assert protocol.learning_rate == table4.loc[name, "learning_rate"]


def test_the_paper_scale_takes_all_images_50_epochs_and_the_large_network():
    for config in TABLES[2].configs("paper"):
        assert (config.network, config.epochs, config.train_size, config.test_size) == (
            "cnn9",
            50,
            None,
            None,
        )
        ramp = 15 if (config.dataset, config.corruption) == ("cifar100", "pairflip") else 10
        assert config.ramp_epochs == ramp


def test_seed_is_that_of_network_batches_and_corruption():
    configs = TABLES[1].configs("cpu", seeds=[3, 8])
    assert {(c.seed, c.noise_seed) for c in configs} == {(3, 3), (8, 8)}


def test_tables_2_and_3_share_the_runs_that_are_told_the_true_epsilon():
    shared = set(TABLES[2].configs("cpu")) & set(TABLES[3].configs("cpu"))
    seeds = PROTOCOLS["cifar10_features", "cpu"].seeds
    assert len(shared) == len(TABLES[3].rows) * seeds
    assert all(c.method == "co_prl_l" and c.assumed_epsilon is None for c in shared)


def test_table_3_tells_the_method_another_epsilon_than_the_true_one():
    row = dataclasses.replace(TABLES[3], rows=(Row("cifar10", "pairflip", 0.45),))
    told = [config.told_epsilon for config in row.configs("cpu", seeds=[0])]
    assert told == [0.35, 0.4, 0.45, 0.5, 0.55]
    assert {config.epsilon for config in row.configs("cpu")} == {0.45}


def test_the_cpu_scale_keeps_the_papers_protocol_on_features_of_the_images():
    for number in (2, 3):
        papers, ours = TABLES[number].configs("paper", seeds=[0]), TABLES[number].configs("cpu", seeds=[0])
        for paper, config in zip(papers, ours, strict=True):
            assert config.dataset == f"{paper.dataset}_features" and config.network == "mlp"
            kept = {name: getattr(paper, name) for name in ("dataset", "network", "recompute")}
            assert dataclasses.replace(config, **kept) == paper


def test_the_paper_scale_computes_kept_examples_again_where_the_published_code_does():
    found = {config.method for config in TABLES[2].configs("paper", seeds=[0]) if config.recompute}
    assert found == {"prl_l", "co_prl_l"}
    assert not any(config.recompute for scale in SCALES for config in TABLES[6].configs(scale))


def test_table_6_times_the_same_network_for_all():
    configs = TABLES[6].configs("cpu")
    assert {config.network_and_norm((32, 32, 3)) for config in configs} == {("strided_cnn", "group")}
    assert {config.dataset for config in configs} == {"cifar10"}


@pytest.mark.parametrize(
    "row, label",
    [
        (Row("celeb_a", "linadv", 0.1), "linadv: 10"),
        (Row("cifar100", "pairflip", 0.35), "CF100-pf-35"),
        (Row("celeb_a", "none", 0.0), "clean"),
        (Row("cifar10", "none", 0.0), "CF10-clean"),
    ],
)
def test_rows_are_called_as_in_the_paper(row, label):
    assert row.label == label
