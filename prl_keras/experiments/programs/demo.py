"""The demo for newcomers: robust training against plain training on noisy digits."""

import pathlib

import keras
import pandas as pd

from prl_keras import METHODS, files
from prl_keras.experiments.runs import figures
from prl_keras.experiments.runs.config import RunConfig
from prl_keras.experiments.runs.metrics import METRICS
from prl_keras.experiments.runs.run import run

_METHODS = ("standard", "spl", "prl_l", "co_prl_l")


def compare(
    output_dir: pathlib.Path | str,
    epochs: int = 40,
    epsilon: float = 0.5,
    overwrite: bool = False,
    resume: bool = False,
) -> pd.DataFrame:
    """Trains four methods on digits with symmetric label noise, prints a table, draws the curves.

    The arguments are the flags of binaries/demo.py. It writes table.csv and curves.png; returns the table.

    Raises:
        ValueError: if epsilon is not in (0, 1).
    """
    if not 0 < epsilon < 1:
        raise ValueError(f"epsilon={epsilon!r} must be a number in (0, 1), such as 0.5.")
    output_dir = pathlib.Path(output_dir)
    ramp_epochs = min(10, epochs // 2)
    rows, histories = [], {}
    for name in _METHODS:
        title = METHODS[name].title
        print(f"\n{title}: digits, {epsilon:.0%} of the training labels wrong, {epochs} epochs", flush=True)
        config = RunConfig("digits", name, "symmetric", epsilon, ramp_epochs=ramp_epochs, epochs=epochs)
        progress = _EpochProgress(epochs)
        result = run(
            config, output_dir / name, resume=resume, overwrite=overwrite, verbose=0, callbacks=[progress]
        )
        histories[title] = pd.read_csv(output_dir / name / "history.csv")
        rows.append({
            "method": title,
            "test accuracy, last 10 epochs": result["test_mean"],
            "clean among the kept": result["kept_clean"],
            "seconds per epoch": result["seconds_per_epoch"],
        })  # fmt: skip
    table = pd.DataFrame(rows)
    with files.replacing(output_dir / "table.csv") as temporary:
        table.to_csv(temporary, index=False)
    title = f"Digits with {epsilon:.0%} symmetric label noise"
    with files.replacing(output_dir / "curves.png") as temporary:
        figures.plot_methods(histories, METRICS["classification"], title, temporary)
    formats = ["{:.1%}".format, "{:.1%}".format, "{:.2f}".format]
    shown = dict(zip(table.columns[1:], formats))
    print("\n" + table.to_string(index=False, formatters=shown, na_rep="-"))
    print(f"\nCurves: {output_dir / 'curves.png'}")
    return table


class _EpochProgress(keras.callbacks.Callback):
    """One Keras progress bar for the whole run."""

    def __init__(self, epochs):
        super().__init__()
        self._bar = keras.utils.Progbar(epochs, unit_name="epoch", stateful_metrics=["test accuracy"])

    def on_epoch_end(self, epoch, logs=None):
        self._bar.update(epoch + 1, [("test accuracy", logs["val_accuracy"])])
