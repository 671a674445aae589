"""Transfer learning on a folder of images with wrong labels: a frozen backbone, then fine-tuning.

python -m examples.classify_image_folder
python -m examples.classify_image_folder --folder=IMAGES

A backbone learns the digits 0 to 4 from clean labels. The task is the digits 5 to 9: PNG files, a folder for
each class. 40% of the training files lie in a wrong folder. First a new head is trained on the frozen
backbone, then backbone and head with a low learning rate. Expect PRL(L) to gain little while the backbone is
frozen, since a small head memorises little, and much in fine-tuning. suspects.csv lists the files that look
wrong, the most suspect first.

IMAGES has the folders train/CLASS and test/CLASS. The small backbone is made for digits. For photographs take
one of keras.applications: in place of `make_backbone` write

    backbone = keras.applications.EfficientNetV2B0(include_top=False, pooling="avg")

which downloads its weights; give `--side=224`, and read the images with `color_mode="rgb"`. Keep
`training=False`, as below: batch normalization then uses its stored statistics in fine-tuning too, and no
example of a batch depends on another.
"""

import os
import pathlib
import tempfile
from collections.abc import Sequence

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import tensorflow as tf
from absl import app, flags
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.metrics import average_precision_score

import prl_keras as prl
from examples import results

_FOLDER = flags.DEFINE_string("folder", None, "Folder with train/CLASS and test/CLASS; digits are written.")
_SIDE = flags.DEFINE_integer("side", 8, "Images are resized to this many pixels a side.", lower_bound=8)
_EPSILON = flags.DEFINE_float("epsilon", 0.4, "The share of wrong labels.", lower_bound=0, upper_bound=0.99)

TRAINING = 600
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def write_images(folder: pathlib.Path) -> dict[str, int]:
    """Writes the digits 5 to 9 as PNG files into train/ and test/; {training file: its true class}."""
    rng = np.random.default_rng(0)
    images, digits = load_digits(return_X_y=True)
    chosen = rng.permutation(np.flatnonzero(digits >= 5))
    true_y = digits[chosen] - 5
    given_y = true_y.copy()
    given_y[:TRAINING], _ = prl.corrupt("symmetric", true_y[:TRAINING], _EPSILON.value, rng)
    truth = {}
    for number, (row, given, true) in enumerate(zip(chosen, given_y, true_y)):
        part = "train" if number < TRAINING else "test"
        path = folder / part / f"digit_{given + 5}" / f"{number:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        keras.utils.save_img(path, images[row].reshape(8, 8, 1) * 255 / 16, scale=False)
        if part == "train":
            truth[str(path)] = int(true)
    return truth


def read_images(folder: pathlib.Path, shuffle: bool) -> tf.data.Dataset:
    """Batches of (grey images, class numbers in the order of the names of the folders)."""
    side = _SIDE.value
    return keras.utils.image_dataset_from_directory(
        folder,
        color_mode="grayscale",
        image_size=(side, side),
        batch_size=32,
        shuffle=shuffle,
        seed=0,
        verbose=False,
    )


def make_backbone() -> keras.Model:
    """A small convolutional network with batch normalization: images of any size -> 64 features."""
    layers = [keras.Input((None, None, 1)), keras.layers.Rescaling(1 / 255)]
    for filters in (32, 64):
        layers.append(keras.layers.Conv2D(filters, 3, padding="same", use_bias=False))
        layers += [
            keras.layers.BatchNormalization(momentum=0.9),
            keras.layers.ReLU(),
            keras.layers.MaxPooling2D(),
        ]
    layers += [
        keras.layers.Conv2D(64, 2, padding="same", activation="relu"),
        keras.layers.GlobalMaxPooling2D(),
    ]
    return keras.Sequential(layers)


def with_head(backbone: keras.Model, classes: int, training: bool | None = None) -> keras.Model:
    """The network; `training=False` keeps batch normalization in inference mode, in fine-tuning too."""
    inputs = keras.Input((_SIDE.value, _SIDE.value, 1))
    return keras.Model(inputs, keras.layers.Dense(classes)(backbone(inputs, training=training)))


def pretrain(backbone: keras.Model, epochs: int) -> None:
    """Trains the backbone on the digits 0 to 4."""
    images, digits = load_digits(return_X_y=True)
    images = keras.ops.image.resize(images.reshape(-1, 8, 8, 1) * 255 / 16, (_SIDE.value, _SIDE.value))
    known = digits < 5
    network = with_head(backbone, 5)
    network.compile("adam", LOSS)
    network.fit(np.asarray(images)[known], digits[known], epochs=epochs, verbose=0)


def train(
    rule: prl.Trim, weights: list[np.ndarray], folder: pathlib.Path, epochs: int
) -> tuple[prl.RobustModel, tuple[float, float]]:
    """(the model, its test accuracy with the frozen backbone and after fine-tuning)."""
    keras.utils.set_random_seed(0)
    images, test = read_images(folder / "train", True), read_images(folder / "test", False)
    backbone = make_backbone()
    backbone.set_weights(weights)
    backbone.trainable = False
    model = prl.RobustModel(with_head(backbone, len(images.class_names), training=False), rule=rule)
    model.compile(keras.optimizers.Adam(0.01), LOSS, metrics=["accuracy"])
    model.fit(images, epochs=epochs, verbose=0)
    frozen = model.evaluate(test, verbose=0, return_dict=True)["accuracy"]

    backbone.trainable = True
    model.compile(keras.optimizers.Adam(0.001), LOSS, metrics=["accuracy"])  # compile, so that it has effect
    model.fit(images, epochs=2 * epochs, verbose=0)
    return model, (frozen, model.evaluate(test, verbose=0, return_dict=True)["accuracy"])


def draw(accuracies: dict[str, tuple[float, float]], suspects: pd.DataFrame) -> Figure:
    """Bars of the test accuracies, and the twelve most suspect files."""
    figure = plt.figure(figsize=(9, 3), layout="constrained")
    left, right = figure.subfigures(1, 2)
    axis = left.subplots()
    for number, (name, values) in enumerate(accuracies.items()):
        bars = axis.bar(np.arange(2) + 0.4 * number, values, 0.38, label=name)
        axis.bar_label(bars, fmt="%.2f", fontsize=8)
    axis.set_xticks([0.2, 1.2], ["frozen backbone", "fine-tuned"])
    axis.set(ylabel="test accuracy", ylim=(0, 1.15))
    axis.legend(ncols=2, fontsize=8)
    right.suptitle("The most suspect files, and the folder each lies in", fontsize=10)
    for axis, (path, row) in zip(right.subplots(2, 6).flat, suspects.head(12).iterrows()):
        axis.imshow(keras.utils.load_img(path), cmap="gray")
        axis.set_title(row["folder"], fontsize=7)
    for axis in right.axes:
        axis.axis("off")
    return figure


def main(argv: Sequence[str]) -> None:
    for part in ("train", "test") if _FOLDER.value else ():
        if not (pathlib.Path(_FOLDER.value) / part).is_dir():
            raise app.UsageError(f"{_FOLDER.value} has no folder {part}: make train/CLASS and test/CLASS.")
    output = results.make_folder("classify_image_folder", argv)
    epochs = 4 if results.SMOKE.value else 12
    with tempfile.TemporaryDirectory() as made:
        folder, truth = pathlib.Path(_FOLDER.value or made), {}
        if _FOLDER.value is None:
            truth = write_images(folder)
        keras.utils.set_random_seed(0)
        backbone = make_backbone()
        pretrain(backbone, epochs)
        rows, accuracies = [], {}
        for name, rule in (("plain", prl.Trim(0)), ("PRL(L)", prl.Trim(_EPSILON.value))):
            model, accuracies[name] = train(rule, backbone.get_weights(), folder, epochs)
            row = {"method": name, "frozen backbone": accuracies[name][0], "fine-tuned": accuracies[name][1]}
            images = read_images(folder / "train", shuffle=False)  # in the order of its file_paths
            table = prl.audit(model, images, epsilon=_EPSILON.value).set_index(pd.Index(images.file_paths))
            if truth:
                is_wrong = table["given"] != pd.Series(truth)[table.index]
                row["average precision"] = float(average_precision_score(is_wrong, -table["rank"]))
            rows.append(row)
        suspects = table.assign(
            folder=[images.class_names[number] for number in table["given"]],
            suggested=[images.class_names[number] for number in table["predicted"]],
        ).sort_values("rank")
        suspects = suspects.loc[suspects["is_flagged"], ["folder", "suggested", "score"]]
        results.write_picture(output, "classify_image_folder", draw(accuracies, suspects))
        suspects.index = [os.path.relpath(path, folder) for path in suspects.index]
        suspects.to_csv(output / "suspects.csv", index_label="file")
    results.write_table(output, rows)


if __name__ == "__main__":
    app.run(main)
