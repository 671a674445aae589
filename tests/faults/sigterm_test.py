"""A run that is told to end."""

import keras
import pytest
from arrays import assert_all_equal
from train_process import start, wait_for_epochs

from prl_keras.experiments.runs.config import RunConfig
from prl_keras.experiments.runs.run import run


@pytest.mark.long
@pytest.mark.fault(25)
def test_after_sigterm_what_was_done_is_whole_and_resume_goes_on(tmp_path):
    process = start(tmp_path / "stopped", "--epochs=40")
    wait_for_epochs(tmp_path / "stopped", 2, process)
    process.terminate()
    process.wait()
    rows = (tmp_path / "stopped" / "history.csv").read_text().splitlines()
    assert 3 <= len(rows) < 41 and len({row.count(",") for row in rows}) == 1
    config = RunConfig("teacher", "prl_l", "signflip", 0.2, epochs=40, batch_size=500)
    run(config, tmp_path / "stopped", resume=True, verbose=0)
    run(config, tmp_path / "straight", verbose=0)
    models = [keras.models.load_model(tmp_path / name / "model.keras") for name in ("stopped", "straight")]
    assert_all_equal(*(model.get_weights() for model in models))
