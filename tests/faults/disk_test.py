"""Full disks, read-only folders, folders that cannot be made."""

import os
import resource

import keras
import pytest
from train_process import TINY, start

from prl_keras.experiments.runs.run import run


@pytest.mark.fault(25)
def test_a_folder_that_cannot_be_is_said_before_training(tmp_path):
    (tmp_path / "file").write_text("")
    for output_dir in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(OSError, match=r"file.* cannot be made: .* Take another --output_dir"):
            run(TINY, output_dir, callbacks=[Fails()], verbose=0)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_said_before_training(tmp_path):
    tmp_path.chmod(0o555)
    with pytest.raises(OSError, match=r"config\.json cannot be written"):
        run(TINY, tmp_path, callbacks=[Fails()], verbose=0)


class Fails(keras.callbacks.Callback):
    def on_train_begin(self, logs=None):
        raise AssertionError("training began")


@pytest.mark.daily("config")
@pytest.mark.fault(25)
@pytest.mark.parametrize("at", ["config", "checkpoint"])
def test_a_full_disk_is_a_line_that_names_the_file_and_what_is_there_is_whole(tmp_path, at):
    """Files may have so many bytes and no more, which fails as a full disk does."""
    size = {"config": 100, "checkpoint": 60_000}[at]
    process = start(
        tmp_path, "--epochs=2", preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    )
    output = process.communicate(timeout=300)[0]
    assert process.returncode not in (0, None)
    name = {"config": "config.json", "checkpoint": "epoch-00001.weights.h5"}[at]
    assert f"{name} cannot be written" in output and "Make room" in output
    assert "Traceback (most recent call last):\n  File" not in output
    left = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert left == ({"config.json", "history.csv", "selection.npz"} if at == "checkpoint" else set())
    if at == "checkpoint":
        assert run(TINY, tmp_path, resume=True, verbose=0)["epochs"] == 2
