"""A soak: many steps on data full of faults, in one go, and again killed every few hundred steps.

The two must end with the same weights, bit for bit; in one go memory stays flat and nothing is traced again.

python tests/helpers/soak.py --output_dir=runs/soak
"""

import argparse
import math
import pathlib
import resource
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pandas as pd
import tqdm

import prl_keras as prl
from prl_keras import files

STEPS_PER_EPOCH = 100
_FEATURES, _CLASSES, _BATCH = 10, 4, 32
_LOG, _WEIGHTS, _BACKUP = "progress.csv", "weights.npz", "backup"
_SECONDS = 0.05  # between two looks at the progress of what is to be killed


class FaultyBatches(keras.utils.PyDataset):
    """Batches of which each is a function of seed, epoch and index alone, whatever process asks for it.

    Of 1 to 32 rows; a fifth of them has rows that are not finite, 1 of 100 has no others; a fifth of the
    labels is wrong; some rows have weight 0.
    """

    def __init__(self, seed):
        super().__init__()
        self.seed, self.epoch = seed, 0
        self.directions = np.random.default_rng(seed).normal(size=(_FEATURES, _CLASSES))

    @property
    def num_batches(self):
        return STEPS_PER_EPOCH

    def __getitem__(self, index):
        rng = np.random.default_rng([self.seed, self.epoch, index])
        rows = int(rng.integers(1, _BATCH + 1))
        x = rng.normal(size=(rows, _FEATURES)).astype("float32")
        y = np.argmax(x @ self.directions, axis=1)
        y = np.where(rng.random(rows) < 0.2, rng.integers(_CLASSES, size=rows), y)
        if rng.random() < 0.2:
            is_bad = rng.random(rows) < 0.1
            x[is_bad, rng.integers(_FEATURES)] = rng.choice([np.nan, np.inf, -np.inf])
        if rng.random() < 0.01:
            x[:] = np.nan
        weights = (rng.random(rows) > 0.05).astype("float32")
        return x, y, weights


class _Progress(keras.callbacks.Callback):
    """Tells the data the epoch, and writes step, traces, peak memory and what was not finite."""

    def __init__(self, path, data):
        super().__init__()
        self.path, self.data, self.epoch = path, data, 0

    def on_epoch_begin(self, epoch, logs=None):
        self.data.epoch = self.epoch = epoch

    def on_epoch_end(self, epoch, logs=None):
        row = (
            (epoch + 1) * STEPS_PER_EPOCH,
            self.model.traces,
            _memory(),
            int(logs["nonfinite"]),
            logs["loss"],
        )
        with self.path.open("a") as file:
            file.write(",".join(map(str, row)) + "\n")


class _CountedTraces(prl.RobustModel):
    traces = 0

    def train_step(self, data):
        self.traces += 1  # Python runs this when a step is traced, and no more
        return super().train_step(data)


def train(directory, steps, seed):
    """Trains in this process, from the last backup in the folder on; writes the weights when it has ended."""
    directory = pathlib.Path(directory)
    keras.utils.set_random_seed(seed)
    data = FaultyBatches(seed)
    hidden = [keras.layers.Dense(32, "relu"), keras.layers.BatchNormalization(), keras.layers.Dropout(0.1)]
    network = keras.Sequential([keras.Input((_FEATURES,)), *hidden, keras.layers.Dense(_CLASSES)])
    model = _CountedTraces(network, rule=prl.Trim(prl.linear_ramp(0.3, steps // 2)))
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    callbacks = [
        # Kept at the end: a kill between its deletion and the weights would start all over.
        keras.callbacks.BackupAndRestore(
            directory / _BACKUP, double_checkpoint=True, delete_checkpoint=False
        ),
        _Progress(directory / _LOG, data),
    ]
    model.fit(data, epochs=steps // STEPS_PER_EPOCH, shuffle=False, callbacks=callbacks, verbose=0)
    with files.replacing(directory / _WEIGHTS) as path:
        np.savez(path, *model.get_weights())


def soak(directory, steps, kill_every, seed):
    """Trains twice, in processes of their own, and writes soak.md and soak.json.

    Args:
        directory: A new folder.
        steps: A multiple of `STEPS_PER_EPOCH`.
        kill_every: About so many steps after its start the second one is killed, again and again.
        seed: Of the data, the network and the kills.

    Returns:
        The figures, a dict.

    Raises:
        FileExistsError: if the folder is there.
        RuntimeError: if a training ends with an error.
    """
    if steps < 10 * STEPS_PER_EPOCH or steps % STEPS_PER_EPOCH:
        raise ValueError(f"steps={steps!r} must be a multiple of {STEPS_PER_EPOCH}, 1000 or more.")
    if kill_every < 2 * STEPS_PER_EPOCH:
        raise ValueError(
            f"kill_every={kill_every!r} must be {2 * STEPS_PER_EPOCH} or more: it resumes at epochs."
        )
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True)
    started = time.monotonic()
    _run(directory / "in one go", steps, seed, None)
    kills = _run(directory / "killed", steps, seed, kill_every)
    figures = _figures(directory, steps, seed, kills, time.monotonic() - started)
    files.write_json(directory / "soak.json", figures)
    lines = [f"* {name.replace('_', ' ')}: {value}" for name, value in figures.items()]
    (directory / "soak.md").write_text("\n".join(lines) + "\n")
    return figures


def _run(directory, steps, seed, kill_every):
    """Trains to the end, in as many processes as it takes; returns how many were killed."""
    directory.mkdir()
    rng, kills = np.random.default_rng(seed), 0
    with tqdm.tqdm(total=steps, desc=directory.name, unit="step") as bar:
        while True:
            command = [
                sys.executable,
                __file__,
                f"--worker={directory}",
                f"--steps={steps}",
                f"--seed={seed}",
            ]
            with (directory / "log.txt").open("a") as log:
                process = subprocess.Popen(command, stdout=log, stderr=log)
            last = _step(directory) + rng.uniform(0.5, 1.5) * (kill_every or math.inf)
            while process.poll() is None:
                time.sleep(_SECONDS)
                step = _step(directory)
                bar.update(max(0, step - bar.n))
                if step >= last:
                    time.sleep(rng.uniform(0, 0.5))  # anywhere in an epoch, or in its backup
                    process.send_signal(signal.SIGKILL)
                    process.wait()
            if process.returncode == 0:
                return kills
            if process.returncode != -signal.SIGKILL:
                raise RuntimeError(
                    f"A training ended with {process.returncode}: see {directory / 'log.txt'}."
                )
            kills += 1


def _step(directory):
    log = directory / _LOG
    return int(_table(directory)["step"].max()) if log.exists() and log.stat().st_size else 0


def _table(directory):
    names = ["step", "traces", "memory", "nonfinite", "loss"]
    return pd.read_csv(directory / _LOG, names=names)


def _figures(directory, steps, seed, kills, seconds):
    whole = _table(directory / "in one go")
    weights = [np.load(directory / name / _WEIGHTS) for name in ("in one go", "killed")]
    same = all(np.array_equal(weights[0][key], weights[1][key]) for key in weights[0].files)
    memory = dict(zip(whole["step"], whole["memory"] / 2**20))
    tenth = steps // 10
    return {
        "steps": steps,
        "seed": seed,
        "examples_not_finite": int(whole["nonfinite"].sum()),
        "kills": kills,
        "weights_finite": bool(all(np.isfinite(weights[0][key]).all() for key in weights[0].files)),
        "same_weights_when_killed": bool(same),
        "traces_of_the_step": int(whole["traces"].max()),
        "traces_after_the_first_epoch": int(whole["traces"].max() - whole["traces"].iloc[0]),
        "peak_memory_MiB_after_a_tenth": round(memory[tenth], 1),
        "peak_memory_MiB_at_the_end": round(memory[steps], 1),
        "loss_first_and_last_epoch": [round(float(whole["loss"].iloc[i]), 4) for i in (0, -1)],
        "seconds": round(seconds),
    }


def _memory():
    """The peak of this process's resident memory, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output_dir", help="New folder for the figures and the two trainings.")
    parser.add_argument("--steps", type=int, default=20_000, help="Of each training, a multiple of 100.")
    parser.add_argument("--kill_every", type=int, default=600, help="Steps that a process lives, on average.")
    parser.add_argument("--seed", type=int, default=0, help="Of the data, the network and the kills.")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        train(options.worker, options.steps, options.seed)
    else:
        print(soak(options.output_dir, options.steps, options.kill_every, options.seed))
