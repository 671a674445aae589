"""Training.fit: a kept model starts as a fresh one does, and the device's batches train as the host's do."""

import dataclasses
import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from prl_keras import METHODS
from prl_keras.experiments.data import on_device
from prl_keras.experiments.data.dataset import Dataset
from prl_keras.experiments.data.load import load
from prl_keras.experiments.runs.config import RunConfig
from prl_keras.experiments.runs.models import trace_key
from prl_keras.experiments.runs.run import run
from prl_keras.experiments.runs.training import Training, summarize

TEACHER = {"dataset": "teacher", "epochs": 2, "batch_size": 500, "ramp_epochs": 1}
DIGITS = {"dataset": "digits", "epochs": 1, "batch_size": 480, "train_size": 960, "test_size": 50}


def train(config, directory, models=None):
    data = load(config.dataset)
    training = Training(config, data, models)
    table = training.fit(directory)
    return training.model, table.drop(columns="seconds")


@pytest.mark.daily("*-normclip-*")
@pytest.mark.parametrize(
    "fields, method, kinds",
    [
        (TEACHER, "prl_l", [("signflip", 0.3, 0), ("linadv", 0.2, 1)]),
        (TEACHER, "prl_g", [("signflip", 0.3, 0), ("uninoise", 0.3, 1)]),
        (TEACHER, "normclip", [("signflip", 0.3, 0), ("linadv", 0.2, 1)]),
        (DIGITS, "co_prl_l", [("symmetric", 0.3, 0), ("pairflip", 0.2, 1)]),
        (DIGITS, "decouple", [("symmetric", 0.3, 0), ("pairflip", 0.2, 1)]),
    ],
)
def test_a_kept_model_gives_what_a_fresh_one_gives(tmp_path, fields, method, kinds):
    first, second = (
        RunConfig(**fields, method=method, corruption=kind, epsilon=epsilon, assumed_epsilon=0.3, seed=seed)
        for kind, epsilon, seed in kinds
    )
    fresh_model, fresh_table = train(second, tmp_path / "fresh")
    fresh = [np.copy(w) for w in fresh_model.get_weights()]
    models = {}
    kept, _ = train(first, tmp_path / "first", models)
    again, table = train(second, tmp_path / "again", models)
    assert again is kept
    assert table.equals(fresh_table)
    np.testing.assert_equal(again.get_weights(), fresh)


def test_only_corruption_and_seeds_may_differ_between_runs_that_share_a_model():
    config = RunConfig("teacher", "prl_l", "signflip", 0.2)
    shared = RunConfig("teacher", "prl_l", "linadv", 0.3, assumed_epsilon=0.2, seed=4, noise_seed=9)
    assert trace_key(config) == trace_key(shared)
    for field, value in (("epsilon", 0.3), ("batch_size", 64), ("learning_rate", 0.1), ("method", "spl")):
        assert trace_key(config) != trace_key(RunConfig(**{**vars(config), field: value}))


def test_few_models_are_kept():
    models = {}
    data = load("teacher")
    for batch_size in (100, 200, 300, 400, 500, 600):
        Training(RunConfig("teacher", "standard", "signflip", 0.2, batch_size=batch_size), data, models)
    assert [key.batch_size for key in models] == [300, 400, 500, 600]


def test_the_sizes_of_the_config_are_those_of_the_data(tmp_path):
    training = Training(RunConfig(**DIGITS, corruption="pairflip", epsilon=0.25), load("digits"))
    assert training.targets.shape == (960,) and training.dataset.test_x.shape[0] == 50
    assert training.corruption_rate == 0.25


@pytest.mark.long
def test_checkpoints_can_be_rarer_than_epochs(tmp_path):
    data = load("teacher")
    config = RunConfig("teacher", "prl_l", "signflip", 0.2, epochs=3, batch_size=500)
    Training(config, data).fit(tmp_path / "rare", checkpoint_seconds=1000)
    Training(config, data).fit(tmp_path / "each", checkpoint_seconds=0)
    assert not (tmp_path / "rare" / "checkpoints").exists()
    assert len(list((tmp_path / "each" / "checkpoints").iterdir())) == 2


@pytest.mark.long
def test_the_summary_is_over_the_last_ten_epochs(tmp_path):
    config = RunConfig("teacher", "prl_l", "signflip", 0.2, epochs=12, batch_size=2000)
    table = Training(config, load("teacher")).fit(tmp_path)
    result = summarize(table, "regression")
    assert result["test_mean"] == pytest.approx(np.mean(table["test_r2_score"][2:]))
    assert result["test_std"] == pytest.approx(np.std(table["test_r2_score"][2:]))
    assert result["epochs"] == 12


def images(task="classification"):
    """Data as those of CIFAR, where a pixel is a byte / 255."""
    rng = np.random.default_rng(0)
    x = np.divide(rng.integers(0, 256, (180, 8, 8, 3)), np.float32(255), dtype="float32")
    if task == "classification":
        y = rng.integers(0, 3, 180)
        return Dataset("digits", task, x[:130], y[:130], x[130:], y[130:], 3, "made up")
    y = rng.normal(size=(180, 10)).astype("float32")
    return Dataset("teacher", task, x[:130], y[:130], x[130:], y[130:], 10, "made up")


def image_config(method, **fields):
    is_classification = "classification" in METHODS[method].tasks
    name, corruption = ("digits", "symmetric") if is_classification else ("teacher", "signflip")
    fields = {"epochs": 2, "batch_size": 32, "ramp_epochs": 1, **fields}
    return RunConfig(name, method, corruption, 0.3, **fields)


class TestOnTheDevice:
    @pytest.mark.daily("standard")
    @pytest.mark.parametrize("method", METHODS)
    def test_weights_are_those_of_the_host_also_after_a_stop(self, tmp_path, method):
        """Batches of 32, the last of 2; batch norm, Adam and the ramp go on from a checkpoint."""
        config = image_config(method, network="auto" if method == "prl_l" else "mlp")
        data = images("classification" if config.dataset == "digits" else "regression")
        host, device, models = tmp_path / "host", tmp_path / "device", {}
        training = Training(config, data)
        table = training.fit(host, device="host", selection=tmp_path / "host.npz").drop(columns="seconds")
        weights = [np.copy(weight) for weight in training.model.get_weights()]
        assert not hasattr(training.model.train_step, "source")
        for stopped in (False, True):
            if stopped:  # after its first epoch
                sorted((device / "checkpoints").iterdir())[-1].unlink()
            training = Training(config, data, models)
            model, selection = training.model, tmp_path / "device.npz"
            found = training.fit(device, device="CPU:0", selection=selection).drop(columns="seconds")
            assert found.equals(table) and model.train_step.source.is_bytes
            np.testing.assert_equal(model.get_weights(), weights)
        # The model still takes the examples themselves, and so does the file.
        name = "accuracy" if config.dataset == "digits" else "r2_score"
        logs = model.evaluate(data.test_x, data.test_y, batch_size=1024, verbose=0, return_dict=True)
        assert logs[name] == pytest.approx(table[f"test_{name}"].iloc[-1], abs=1e-6)
        model.save(tmp_path / "model.keras")
        loaded = keras.models.load_model(tmp_path / "model.keras")
        predicted = (each.predict(data.test_x, verbose=0) for each in (model, loaded))
        np.testing.assert_allclose(*predicted, atol=1e-6)
        if hasattr(model, "record_selection"):
            kept = [np.load(tmp_path / f"{name}.npz") for name in ("host", "device")]
            assert all(np.array_equal(kept[0][key], kept[1][key], equal_nan=True) for key in kept[0])

    @pytest.mark.long
    def test_a_kept_model_follows_the_data(self, tmp_path):
        models, data = {}, images()
        other = Dataset(
            "digits", "classification", data.train_x[::-1], data.train_y, data.test_x, data.test_y, 3, "other"
        )
        for index, (seed, examples) in enumerate([(0, data), (1, data), (1, other)]):
            config = image_config("prl_l", seed=seed, network="mlp")
            kept = Training(config, examples, models)
            traced = kept.model.train_function
            table = kept.fit(tmp_path / f"kept{index}", device="CPU:0")
            assert (kept.model.train_function is traced) == (index == 1)
            fresh = Training(config, examples).fit(tmp_path / f"fresh{index}", device="host")
            assert table.drop(columns="seconds").equals(fresh.drop(columns="seconds"))

    @pytest.mark.daily("no GPU")
    @pytest.mark.parametrize("case", ["no GPU", "too little memory", "a strategy"])
    def test_else_the_host_makes_the_batches(self, tmp_path, monkeypatch, case):
        def exhausted(size):
            raise tf.errors.ResourceExhaustedError(None, None, f"{size} bytes are not free")

        monkeypatch.setattr(on_device, "_allocate", exhausted)
        device = None if case == "no GPU" else "CPU:0"
        with tf.distribute.MirroredStrategy(["CPU:0"]).scope() if case == "a strategy" else tf.device("CPU"):
            training = Training(image_config("standard", network="mlp"), images())
        assert len(training.fit(tmp_path, device=device)) == 2
        assert not hasattr(training.model.train_step, "source")

    def test_a_gpu_is_taken_if_there_is_one(self, tmp_path, monkeypatch):
        asked = []
        training = Training(image_config("standard", network="mlp"), images())
        monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [kind])
        monkeypatch.setattr(on_device, "place", lambda arrays, device: asked.append(device))
        training._batches(0, None)
        assert asked == ["GPU:0"]


class TestPrecision:
    @pytest.mark.daily("prl_l")
    @pytest.mark.parametrize("method", METHODS)
    def test_every_method_trains_in_bfloat16(self, tmp_path, method):
        config = image_config(method, network="mlp", precision="bfloat16", epochs=1, batch_size=65)
        training = Training(config, images("classification" if config.dataset == "digits" else "regression"))
        training.model.run_eagerly = True
        before = training.model.get_weights()
        assert np.isfinite(training.fit(tmp_path)["loss"]).all()
        networks = getattr(training.model, "networks", [training.model])
        for network in networks:
            assert {layer.compute_dtype for layer in network.layers[2:-1]} == {"bfloat16"}
            assert network.layers[-1].compute_dtype == "float32" == network.output.dtype
        after = training.model.get_weights()
        assert {weight.dtype for weight in after} == {np.dtype("float32")}
        assert all(np.isfinite(weight).all() for weight in after)
        assert not all(map(np.array_equal, before, after))
        assert keras.config.dtype_policy().name == "float32"

    @pytest.mark.long
    @pytest.mark.parametrize("precision", ["bfloat16", "float16"])
    def test_it_goes_on_from_a_checkpoint_on_the_device_too(self, tmp_path, precision):
        config = image_config("prl_l", precision=precision)
        models, tables, weights = {}, [], []
        for device in ("host", "CPU:0", "CPU:0"):
            if len(tables) == 2:
                sorted((tmp_path / device / "checkpoints").iterdir())[-1].unlink()
            training = Training(config, images(), models)
            tables.append(training.fit(tmp_path / device, device=device).drop(columns="seconds"))
            weights.append([np.copy(weight) for weight in training.model.get_weights()])
        is_scaled = isinstance(training.model.optimizer, keras.optimizers.LossScaleOptimizer)
        assert is_scaled == (precision == "float16")
        for table, found in zip(tables[1:], weights[1:], strict=True):
            assert table.equals(tables[0]) and all(map(np.array_equal, found, weights[0]))

    def test_a_run_of_one_is_none_of_another(self, tmp_path):
        half = RunConfig(
            "teacher", "standard", "signflip", 0.2, epochs=1, batch_size=500, precision="bfloat16"
        )
        assert trace_key(half) != trace_key(dataclasses.replace(half, precision="float32"))
        run(half, tmp_path / "run", verbose=0)
        assert json.loads((tmp_path / "run" / "config.json").read_text())["precision"] == "bfloat16"
        with pytest.raises(ValueError, match="precision was 'bfloat16', is now 'float32'"):
            run(dataclasses.replace(half, precision="float32"), tmp_path / "run", resume=True, verbose=0)
        loaded = keras.models.load_model(tmp_path / "run" / "model.keras")
        assert [layer.compute_dtype for layer in loaded.layers[-2:]] == ["bfloat16", "float32"]
