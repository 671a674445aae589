"""binaries.train and binaries.demo, as a user calls them."""

import json

import pytest
from absl import flags
from absl.testing import flagsaver
from processes import python

import prl_keras as prl
from binaries import door, train
from prl_keras.experiments.runs.config import RunConfig

# Task -> a data set, a corruption, and the metric with the least that any method reaches in three epochs.
TASKS = {
    "classification": ("digits", "pairflip", "accuracy", 0.2),
    "regression": ("teacher", "signflip", "r2_score", -0.5),
}
main = door.main_of(train.train, "--method=prl_l")


def call(tmp_path, **values):
    """The program's main, in this process."""
    if not flags.FLAGS.is_parsed():
        flags.FLAGS(["train"])
    with flagsaver.flagsaver(output_dir=str(tmp_path), **values):
        main(["train"])
    return json.loads((tmp_path / "result.json").read_text())


@pytest.mark.daily("regression-huber")  # the others are run by other tests
@pytest.mark.parametrize(
    "task, method", [(task, name) for name, row in prl.METHODS.items() for task in row.tasks]
)
def test_every_method_on_each_of_its_tasks(tmp_path, task, method):
    dataset, corruption, metric, least = TASKS[task]
    result = call(tmp_path, dataset=dataset, method=method, corruption=corruption, epsilon=0.35, epochs=3)
    assert result["epochs"] == 3 and result["test_metric"] == metric
    if method != "min_sgd":  # one example a step learns too slowly to say anything after three epochs
        assert result["test_final"] > least


@pytest.mark.long
@pytest.mark.parametrize("corruption", ["linadv", "signflip", "uninoise", "pairflip", "mixture"])
def test_every_target_corruption_on_teacher(tmp_path, corruption):
    call(tmp_path, dataset="teacher", method="prl_l", corruption=corruption, epsilon=0.35, epochs=3)
    assert json.loads((tmp_path / "config.json").read_text())["corruption_rate"] == 0.35


@pytest.mark.fault(25)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method=prl"], "prl_l|prl_g"),
        (["--dataset=imagenet"], "digits|teacher"),
        (["--corruption=flip"], "pairflip"),
        (["--network=resnet"], "small_cnn"),
        (["--precision=half"], "bfloat16"),
        (["--epsilon=1.5"], "epsilon=1.5 must be a number in [0, 1)"),
        (["--epochs=0"], "epochs=0 must be a whole number of at least 1"),
        (["--learning_rate=-1"], "learning_rate=-1.0 must be a positive number"),
        (["--batch_size=none"], "batch_size"),
        (["--no_such_flag=1"], "no_such_flag"),
        (["stray"], "stray"),
        (["--corruption=linadv"], "corruption='linadv' is not for classification"),
        (["--method=huber"], "method='huber' is not for classification"),
        (["--dataset=teacher", "--method=decouple", "--corruption=signflip"], "not for regression"),
        (["--corruption=none"], "corruption='none' needs epsilon=0"),
        (["--network=cnn9"], "28 x 28"),
        (["--method=prl_g", "--norm=batch"], "GroupNormalization"),
    ],
)
def test_bad_flags_end_with_a_message_and_write_nothing(tmp_path, arguments, message):
    if not flags.FLAGS.is_parsed():
        flags.FLAGS(["train"])
    output_dir = tmp_path / "run"
    try:
        with flagsaver.flagsaver():
            argv = flags.FLAGS(["train", f"--output_dir={output_dir}", *arguments])
            main(argv)
        pytest.fail("was accepted")
    except Exception as error:
        assert any(part in str(error) for part in message.split("|")), error
    assert not output_dir.exists()


@pytest.mark.long  # pages_test runs the command of docs/getting_started.md
def test_the_command_itself_shows_progress_and_the_result(tmp_path):
    shown = python("-m", "binaries.train", "--epochs=1", f"--output_dir={tmp_path}").stdout
    assert "12/12" in shown and "prl_l: test accuracy 0." in shown


class TestRunConfig:
    def test_auto_chooses_network_and_norm(self):
        image, vector = (8, 8, 1), (20,)
        assert RunConfig().network_and_norm(image) == ("small_cnn", "batch")
        assert RunConfig(method="prl_g").network_and_norm(image) == ("small_cnn", "group")
        assert RunConfig(method="prl_g").network_and_norm(vector) == ("mlp", "none")
        assert RunConfig(norm="none").network_and_norm(image) == ("small_cnn", "none")

    @pytest.mark.parametrize(
        "field", ["dataset", "method", "corruption", "network", "norm", "epsilon", "assumed_epsilon",
                  "ramp_epochs", "epochs", "batch_size", "learning_rate", "seed", "noise_seed", "precision"],
    )  # fmt: skip
    def test_every_field_is_checked_and_named(self, field):
        for bad in ("nonsense", -1, float("nan")):
            with pytest.raises(ValueError, match=f"{field}="):
                RunConfig(**{field: bad})


@pytest.mark.long  # `make demo` runs it too
def test_demo_compares_four_methods(tmp_path, capsys):
    from prl_keras.experiments.programs.demo import compare

    table = compare(tmp_path, epochs=2)
    assert table["method"].tolist() == ["Standard", "SPL", "PRL(L)", "Co-PRL(L)"]
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert "seconds per epoch" in capsys.readouterr().out
