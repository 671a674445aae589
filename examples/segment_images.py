"""Drops single pixels when segmenting images with a fifth of the training pixels labelled wrong.

python -m examples.segment_images

Images of 32 x 32 show bright discs and dark rectangles on a textured ground. In every training mask whole
regions carry another class, about 20% of all pixels. Expect plain training to memorise regions, which costs
accuracy on clean test masks. Dropping whole images helps a little, though no image is clean. `unit="element"`
drops the most suspect pixels of every batch, in any image: it loses least, and its scores find most of the
wrong pixels.
"""

import os
from collections.abc import Sequence

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
from absl import app
from sklearn.metrics import average_precision_score

import prl_keras as prl
from examples import comparison

METHODS = ("plain", "PRL(L), unit=example", "PRL(L), unit=element")
EPSILON, CLASSES, SIZE, BATCH = 0.2, 3, 32, 16
SETTING = (
    "160 training and 200 test images, 3 classes, 20% of the training pixels wrong, in regions. A U-Net of "
    "three levels, Adam, 60 epochs, epsilon 0.2 after a ramp of 20 epochs. No early stopping. IoU: mean over "
    "the classes. Average precision: of the wrong pixels, ranked by the final scores."
)


def make_images(count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(images float32 `[count, 32, 32, 1]`, masks int32 `[count, 32, 32]`: ground, disc or rectangle)."""
    row, column = np.mgrid[:SIZE, :SIZE]
    images, masks = np.zeros((count, SIZE, SIZE, 1), "float32"), np.zeros((count, SIZE, SIZE), "int32")
    for image, mask in zip(images, masks):
        for shape in rng.permutation([1, 1, 2, 2]):
            y, x, height, width = *rng.integers(4, SIZE - 4, size=2), *rng.integers(4, 9, size=2)
            is_disc = (row - y) ** 2 + (column - x) ** 2 <= height**2
            is_rectangle = (abs(row - y) <= height) & (abs(column - x) <= width)
            mask[is_disc if shape == 1 else is_rectangle] = shape
        waves = np.sin(rng.uniform(0.5, 1.5) * row + rng.uniform(0.5, 1.5) * column)
        image[..., 0] = np.array([0.0, 0.7, -0.7])[mask] + 0.3 * waves + rng.normal(0, 0.4, mask.shape)
    return images, masks


def spoil(masks: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(masks with another class in random boxes; bool, where it is wrong)."""
    masks, is_wrong = masks.copy(), np.zeros(masks.shape, bool)
    for mask, wrong in zip(masks, is_wrong):
        while wrong.mean() < EPSILON:
            y, x = rng.integers(0, SIZE - 4, size=2)
            box = np.s_[y : y + rng.integers(4, 11), x : x + rng.integers(4, 11)]
            mask[box] = np.where(wrong[box], mask[box], (mask[box] + rng.integers(1, CLASSES)) % CLASSES)
            wrong[box] = True
    return masks, is_wrong


def make_network() -> keras.Model:
    def convolve(x, filters):
        for _ in range(2):
            x = keras.layers.Conv2D(filters, 3, padding="same", activation="relu")(x)
        return x

    inputs = keras.Input((SIZE, SIZE, 1))
    fine = convolve(inputs, 16)
    middle = convolve(keras.layers.MaxPooling2D()(fine), 32)
    x = convolve(keras.layers.MaxPooling2D()(middle), 64)
    for skipped, filters in ((middle, 32), (fine, 16)):
        x = keras.layers.Concatenate()([keras.layers.UpSampling2D()(x), skipped])
        x = convolve(x, filters)
    return keras.Model(inputs, keras.layers.Conv2D(CLASSES, 1)(x))


def run(method: str, seed: int) -> dict[str, float]:
    """Accuracy and IoU on clean test masks, and average precision of finding the wrong training pixels."""
    keras.utils.set_random_seed(seed)
    rng = np.random.default_rng(seed)
    count, epochs = (48, 45) if comparison.SMOKE.value else (160, 60)
    images, true_masks = make_images(count, rng)
    test_images, test_masks = make_images(200, rng)
    masks, is_wrong = spoil(true_masks, rng)

    network = make_network()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    rule = prl.Trim(prl.linear_ramp(EPSILON, epochs // 3 * -(-count // BATCH)))
    model = network if method == "plain" else prl.RobustModel(network, rule=rule, unit=method.split("=")[1])
    model.compile(keras.optimizers.Adam(2e-3), loss)
    model.fit(images, masks, batch_size=BATCH, epochs=epochs, verbose=0)

    guess = network.predict(test_images, verbose=0).argmax(axis=-1)
    both = [((guess == c) & (test_masks == c)).sum() for c in range(CLASSES)]
    either = [((guess == c) | (test_masks == c)).sum() for c in range(CLASSES)]
    scorer = prl.RobustModel(network, unit="element")  # the same score for all methods
    scorer.compile(loss=loss)
    scores = prl.score_examples(scorer, (images, masks), batch_size=40, unit="element")
    return {
        "clean test accuracy": (guess == test_masks).mean(),
        "clean test IoU": np.mean(np.divide(both, either)),
        "average precision": average_precision_score(is_wrong.ravel(), scores.ravel()),
    }


def main(argv: Sequence[str]) -> None:
    comparison.compare("segment_images", argv, METHODS, run, SETTING)


if __name__ == "__main__":
    app.run(main)
