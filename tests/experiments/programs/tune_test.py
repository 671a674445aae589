"""binaries.tune, in processes of its own, since other programs define flags of the same names."""

import shlex

import keras
import pandas as pd
import pytest
from processes import python

from prl_keras import files
from prl_keras.experiments.data.load import load
from prl_keras.experiments.programs.tune import train_command, tune
from prl_keras.experiments.runs.config import RunConfig

SMALL = {"dataset": "teacher", "corruption": "signflip", "epsilon": 0.3, "train_size": 200, "epochs": 2}


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    directory = tmp_path_factory.mktemp("searched")
    done = python(
        "-m", "binaries.tune", *(f"--{name}={value}" for name, value in SMALL.items()),
        "--objective=val_r2_score", "--max_trials=2", "--final_trainings=2", "--method=prl_l,standard",
        "--assumed_epsilon=0.1:0.4", "--batch_size=16:64", "--learning_rate=0.001:0.01", "--ramp_epochs=0,1",
        f"--output_dir={directory}",
    )  # fmt: skip
    return directory, done.stdout


def test_the_table_the_pictures_and_the_command(searched):
    directory, printed = searched
    table = pd.read_csv(directory / "trials.csv", float_precision="round_trip")
    assert len(table) == 2 and table["val_r2_score"].is_monotonic_decreasing
    assert table["batch_size"].isin([16, 32, 64]).all() and table["learning_rate"].between(0.001, 0.01).all()
    assert (directory / "trials.md").read_text() in printed
    assert (directory / "epsilon.png").stat().st_size > 5000
    best = files.read_json(directory / "best.json")
    assert best["command"] in printed and best["values"]["val_r2_score"] == table["val_r2_score"][0]


def test_the_model_is_the_best_of_the_trainings_on_all_the_data(searched):
    directory, printed = searched
    best = files.read_json(directory / "best.json")
    kept = best["model"]
    folder = directory / f"trial_{best['values']['trial']}" / "on_all_data"
    records = [files.read_json(folder / f"training_{index}.json") for index in range(2)]
    assert len(list(folder.glob("training_*.json"))) == 2
    assert kept == min(records, key=lambda record: record["metrics"]["train_trimmed_loss"])
    assert kept["epsilon"] == best["values"]["epsilon"] and kept["method"] == best["values"]["method"]
    trained = keras.models.load_model(directory / "model.keras")
    data = load("teacher").subset(SMALL["train_size"], None)
    logs = trained.evaluate(data.test_x, data.test_y, batch_size=1024, verbose=0, return_dict=True)
    assert logs["r2_score"] == pytest.approx(kept["metrics"]["test_r2_score"], rel=1e-5)
    assert f"test_r2_score {kept['metrics']['test_r2_score']:.4g}" in printed


@pytest.mark.long
def test_the_printed_command_trains_the_best_trial(searched, tmp_path):
    best = files.read_json(searched[0] / "best.json")
    python(*shlex.split(best["command"])[1:], f"--output_dir={tmp_path / 'run'}")
    config = files.read_json(tmp_path / "run" / "config.json")
    for name in ("method", "batch_size", "ramp_epochs"):
        assert config[name] == best["values"][name]
    assert config["assumed_epsilon"] == pytest.approx(best["values"]["epsilon"], abs=1e-4)
    assert config["epsilon"] == 0.3 and config["train_size"] == 200


def test_the_command_has_every_choice_of_the_run():
    config = RunConfig("digits", "prl_l", "pairflip", 0.35, seed=3, noise_seed=2, test_size=100)
    best = {
        "method": "spl", "epsilon": 0.41239, "ramp_epochs": 4.0, "learning_rate": 0.00123456,
        "batch_size": 64.0, "epochs": 12.0,
    }  # fmt: skip
    words = dict(word[2:].split("=") for word in shlex.split(train_command(config, best))[3:])
    assert words.pop("assumed_epsilon") == "0.4124" and words.pop("learning_rate") == "0.001235"
    assert {"method": "spl", "ramp_epochs": "4", "batch_size": "64", "epochs": "12"}.items() <= words.items()
    assert {"epsilon": "0.35", "seed": "3", "noise_seed": "2", "test_size": "100"}.items() <= words.items()
    assert "train_size" not in words


@pytest.mark.long
def test_a_search_in_another_precision(tmp_path):
    search = {
        **SMALL,
        "tuner": "grid",
        "objective": "val_loss",
        "assumed_epsilon": "0.2",
        "final_trainings": 1,
    }
    command = tune(**search, precision="bfloat16", output_dir=tmp_path)
    assert "--precision=bfloat16" in command
    network = keras.models.load_model(tmp_path / "model.keras").network
    assert [layer.compute_dtype for layer in network.layers[-2:]] == ["bfloat16", "float32"]
    with pytest.raises(ValueError, match=r"network was .*, mixed_bfloat16', is now"):
        tune(**search, output_dir=tmp_path)


def test_the_command_says_where_the_data_are():
    best = {
        "method": "spl",
        "epsilon": 0.4,
        "ramp_epochs": 0,
        "learning_rate": 0.001,
        "batch_size": 8,
        "epochs": 1,
    }
    command = train_command(RunConfig(), best, {"data_dir": "some where", "cache_dir": None})
    assert "--data_dir='some where'" in command and "cache_dir" not in command


@pytest.mark.long
def test_a_search_of_which_all_trials_fail_says_so_and_keeps_its_table(tmp_path):
    with pytest.raises(ValueError, match=r"All trials failed, the first with .*val_loss is nan"):
        tune(
            **SMALL,
            tuner="grid",
            objective="val_loss",
            learning_rate="1e38,1e37",
            assumed_epsilon="0.2",
            output_dir=tmp_path,
        )
    assert pd.read_csv(tmp_path / "trials.csv")["failure"].notna().all()


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"method": "huber,bootstrap"}, "method='bootstrap' is not for regression"),
        ({"method": "prl"}, "method='prl'"),
        ({"assumed_epsilon": "0.1:x"}, "assumed_epsilon='0.1:x' must be a value, low:high"),
        ({"assumed_epsilon": "0.1:0.2:0.3"}, "range"),
        ({"assumed_epsilon": "0:1"}, r"epsilon=\(0.0, 1.0\)"),
        ({"batch_size": "1.5"}, "batch_size='1.5'"),
        ({"objective": "val_acuracy"}, "val_acuracy.*val_trimmed_loss"),
        ({"validation_split": 0.9}, "validation_split=0.9"),
        ({"corruption": "symmetric"}, "corruption='symmetric' is not for regression"),
    ],
)
def test_what_does_not_suit_is_refused_before_the_first_trial(tmp_path, arguments, words):
    options = {**SMALL, "tuner": "random", "objective": "val_trimmed_loss", "output_dir": tmp_path / "search"}
    with pytest.raises(ValueError, match=words):
        tune(**{**options, **arguments})
    assert not list(tmp_path.glob("search/trial_*"))


@pytest.mark.long
def test_flags_that_do_not_suit_are_a_line_and_no_traceback(tmp_path):
    flags = "--objective=val_loss", "--assumed_epsilon=a", f"--output_dir={tmp_path}"
    done = python("-m", "binaries.tune", *flags, check=False)
    assert done.returncode != 0 and "assumed_epsilon='a'" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
