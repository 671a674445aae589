"""Trains on two replicas: the same model as on one device.

python -m examples.two_replicas

Digits of which 40% carry a wrong label, PRL(L), a global batch of 128. The example trains on one device, then
under `tf.distribute.MirroredStrategy` on all GPUs of the machine, or on two halves of the CPU if there are no
two GPUs. Each replica scores its share of a batch; the scores are gathered, and the top epsilon of the global
batch is dropped. Expect the same test accuracy, and weights that differ by rounding only.

It pays with two GPUs, and a step so long that adding up the gradients is short beside it: a convolutional
network, a large batch. Two halves of a CPU share its cores and save no time; they show that the result stays.
"""

import os
import time
from collections.abc import Sequence

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf
from absl import app
from matplotlib.figure import Figure
from sklearn.datasets import load_digits

import prl_keras as prl
from examples import results

TRAINING, EPSILON, BATCH = 1280, 0.4, 128
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def make_network() -> keras.Model:
    return keras.Sequential([keras.Input((64,)), keras.layers.Dense(128, "relu"), keras.layers.Dense(10)])


def two_or_more_devices() -> list[str]:
    """The GPUs, or two halves of the CPU. Call it before TensorFlow does anything else."""
    gpus = tf.config.list_physical_devices("GPU")
    if len(gpus) >= 2:
        return [f"GPU:{number}" for number in range(len(gpus))]
    halves = [tf.config.LogicalDeviceConfiguration()] * 2
    tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], halves)
    return ["CPU:0", "CPU:1"]


def train(strategy: tf.distribute.Strategy, epochs: int) -> tuple[keras.Model, list[float], float]:
    """(the model, its test accuracy after each epoch, seconds of an epoch without the first)."""
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    pixels, digits = load_digits(return_X_y=True)
    order = rng.permutation(len(digits))
    x, y = (pixels[order] / 16).astype("float32"), digits[order]
    given_y, _ = prl.corrupt("symmetric", y[:TRAINING], EPSILON, rng)

    with strategy.scope():  # networks and model are made and compiled here; fit is as ever
        model = prl.build(
            "prl_l",
            make_network,
            epsilon=EPSILON,
            ramp_steps=5 * TRAINING // BATCH,
            loss=LOSS,
            optimizer=keras.optimizers.Adam(0.003),
            metrics=["accuracy"],
        )
    ends: list[float] = []
    clock = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: ends.append(time.perf_counter()))
    test = x[TRAINING:], y[TRAINING:]
    history = model.fit(
        x[:TRAINING],
        given_y,
        batch_size=BATCH,  # the global batch: each of two replicas takes 64 examples
        epochs=epochs,
        validation_data=test,
        verbose=0,
        callbacks=[clock],
    ).history
    return model, history["val_accuracy"], float(np.median(np.diff(ends)))


def draw(curves: dict[str, list[float]]) -> Figure:
    figure, axis = plt.subplots(figsize=(5, 3), layout="constrained")
    for (name, values), style in zip(curves.items(), ("-", "o")):
        axis.plot(range(1, len(values) + 1), values, style, markersize=4, fillstyle="none", label=name)
    axis.set(xlabel="epoch", ylabel="test accuracy")
    axis.grid(alpha=0.3)
    axis.legend()
    return figure


def main(argv: Sequence[str]) -> None:
    folder = results.make_folder("two_replicas", argv)
    epochs = 4 if results.SMOKE.value else 12
    tf.get_logger().setLevel("WARNING")  # otherwise it tells of every exchange
    devices = two_or_more_devices()
    one = tf.distribute.OneDeviceStrategy(devices[0])
    several = tf.distribute.MirroredStrategy(devices)

    rows, curves, weights = [], {}, []
    for name, strategy in (("one device", one), (f"{len(devices)} replicas", several)):
        model, accuracy, seconds = train(strategy, epochs)
        curves[name] = accuracy
        weights.append(model.get_weights())
        rows.append({"trained on": name, "test accuracy": accuracy[-1], "seconds of an epoch": seconds})
    difference = max(np.abs(a - b).max() for a, b in zip(*weights, strict=True))
    rows[0]["largest difference of weights"] = "-"
    rows[1]["largest difference of weights"] = f"{difference:.0e}"
    results.write_picture(folder, "two_replicas", draw(curves))
    results.write_table(folder, rows)


if __name__ == "__main__":
    app.run(main)
