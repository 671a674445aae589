"""Runs whose history or config is cut, empty or gone."""

import keras
import pytest

from prl_keras.experiments.runs.config import RunConfig
from prl_keras.experiments.runs.run import run


class TestDamagedRuns:
    CONFIG = RunConfig("teacher", "prl_l", "signflip", 0.2, epochs=4, batch_size=500)

    @pytest.fixture
    def stopped(self, tmp_path):
        """A run that was stopped after two epochs."""

        def stop(epoch, logs):
            if epoch == 2:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            interrupt = keras.callbacks.LambdaCallback(on_epoch_begin=stop)
            run(self.CONFIG, tmp_path, verbose=0, callbacks=[interrupt])
        return tmp_path

    @pytest.mark.daily("truncated")
    @pytest.mark.parametrize("damage", ["truncated", "cut", "gone", "empty"])
    def test_history(self, stopped, damage):
        path = stopped / "history.csv"
        lines = path.read_text().splitlines(keepends=True)
        first = "".join(lines[:2])
        text = {"truncated": first, "cut": first + lines[2][:3], "empty": ""}.get(damage)
        path.unlink() if damage == "gone" else path.write_text(text)
        with pytest.raises(ValueError, match=r"history\.csv is damaged.*--overwrite"):
            run(self.CONFIG, stopped, resume=True, verbose=0)

    @pytest.mark.long
    @pytest.mark.fault(25)
    def test_config(self, stopped):
        for text in ("null", "{}", '{"a'):
            (stopped / "config.json").write_text(text)
            with pytest.raises(ValueError, match=r"config\.json is damaged.*--overwrite"):
                run(self.CONFIG, stopped, resume=True, verbose=0)
        (stopped / "config.json").unlink()
        with pytest.raises(ValueError, match=r"without config\.json.*--overwrite"):
            run(self.CONFIG, stopped, resume=True, verbose=0)
        assert run(self.CONFIG, stopped, overwrite=True, verbose=0)["epochs"] == 4
