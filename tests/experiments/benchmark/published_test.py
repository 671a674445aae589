"""The single changes of the published code: each changes what it says, and a killed measurement continues."""

import json

import numpy as np
import pytest

from prl_keras.experiments.benchmark import published
from prl_keras.experiments.benchmark.published import Case
from prl_keras.experiments.data.dataset import Dataset

SIZE = 2 * published.BATCH_SIZE + 16


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(SIZE + 20, 8)).astype("float32")
    y = x[:, :4].argmax(axis=1)
    return x[:SIZE], y[:SIZE], x[SIZE:], y[SIZE:]


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(published, "EPOCHS", 2)
    monkeypatch.setattr(published, "RAMP_EPOCHS", 1)


def test_changes_are_those_of_the_case():
    def changes(change):
        case = Case("prl_l", change, "mlp", 0)
        return [name for name in published.CHANGES if published._has(case, name)]

    assert changes("none") == ["none"] and changes("ramp") == ["ramp"]
    assert set(changes("all")) == set(published.CHANGES) - {"ramp"}


@pytest.mark.parametrize("network", published.NETWORKS)
def test_initial_weights_of_pytorch_are_uniform(network):
    made = published._network(Case("prl_l", "weights", network, 0), 64, seed=0)
    dense = [layer for layer in made.layers if layer.name.startswith("dense")]
    assert len(dense) == 3
    for layer in dense:
        kernel, bias = layer.get_weights()
        most = kernel.shape[0] ** -0.5
        assert most * 0.9 < np.abs(kernel).max() <= most and 0 < np.abs(bias).max() <= most
        assert kernel.std() == pytest.approx(most / 3**0.5, rel=0.05)


def test_a_second_pass_matters_only_with_batch_norm_or_dropout():
    assert not Case("prl_l", "recompute", "mlp", 0).has_effect
    assert Case("prl_l", "recompute", "mlp with batch norm and dropout", 0).has_effect


def test_full_batches_leave_out_the_last(arrays, quick, monkeypatch):
    fitted = {}

    def build(*_, **options):
        fitted.update(options)
        raise InterruptedError

    monkeypatch.setattr(published.prl, "build", build)
    for change, steps in (("none", 3), ("full batches", 2), ("all", 2)):
        with pytest.raises(InterruptedError):
            published._ours(Case("prl_l", change, "mlp", 0), arrays)
        assert fitted["steps_per_execution"] == steps == fitted["ramp_steps"]
        assert float(fitted["optimizer"].epsilon) == (7e-7 if change == "all" else 1e-7)


def test_a_killed_measurement_continues(arrays, quick, monkeypatch, tmp_path):
    monkeypatch.setattr(published, "NETWORKS", {"mlp": (False, 0.0)})
    monkeypatch.setattr(published, "CASES", (("prl_l", "none"), ("spl", "none")))
    monkeypatch.setattr(published, "load", lambda *_: Dataset("d", "classification", *arrays, 4, "made up"))
    real, calls = published._ours, []

    def killed_at_the_second(case, data):
        calls.append(case)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(case, data)

    monkeypatch.setattr(published, "_ours", killed_at_the_second)
    path = tmp_path / "new" / "runs.jsonl"
    with pytest.raises(KeyboardInterrupt):
        published.measure(path, seeds=1)
    first = json.loads(path.read_text())
    assert first["method"] == "prl_l" and len(first["accuracies"]) == 2
    found = published.measure(path, seeds=1)
    assert [case.method for case in calls] == ["prl_l", "spl", "spl"] and len(found) == 2
    page = published.write_page(tmp_path / "README.md", found).read_text()
    assert f"| PRL(L), none | {max(first['accuracies']):.1f} |" in page.replace("  ", "")
    assert "made up" in page
