"""Drops single labels of rows with eleven yes-or-no labels each, of which a fifth is flipped.

python -m examples.label_rows

The rows are scikit-learn's 8 x 8 handwritten digits. Their labels are the seven segments of a calculator's
display and four properties of the number. Every label is flipped with probability 0.2. Expect plain training
to memorise the flipped labels. Hardly a row is clean, so dropping whole rows helps little. `unit="element"`
drops single labels: it ends far above the others, and its scores find the flipped labels.
"""

import os
from collections.abc import Sequence

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
from absl import app
from sklearn.datasets import load_digits
from sklearn.metrics import average_precision_score

import prl_keras as prl
from examples import comparison

METHODS = ("plain", "PRL(L), unit=example", "PRL(L), unit=element")
EPSILON, BATCH, TRAINING = 0.2, 64, 1000
SETTING = (
    "1000 training and 797 test rows of 64 pixels, 11 labels each, 20% of the training labels flipped. Two "
    "hidden layers of 256 units, sigmoid head, binary cross-entropy, Adam, 100 epochs, epsilon 0.2 after a "
    "ramp of 10 epochs. No early stopping. Average precision: of the flipped labels, ranked by final scores."
)
SEGMENTS = ("abcdef", "bc", "abdeg", "abcdg", "bcfg", "acdfg", "acdefg", "abc", "abcdefg", "abcdfg")
PROPERTIES = (
    (0, 2, 4, 6, 8),
    (2, 3, 5, 7),
    (5, 6, 7, 8, 9),
    (0, 6, 8, 9),
)  # even, prime, above 4, with a loop
LABELS = np.array([
    [segment in SEGMENTS[digit] for segment in "abcdefg"] + [digit in property for property in PROPERTIES]
    for digit in range(10)
])  # fmt: skip


def run(method: str, seed: int) -> dict[str, float]:
    """Accuracy on clean test labels, and average precision of finding the flipped training labels."""
    keras.utils.set_random_seed(seed)
    rng = np.random.default_rng(seed)
    epochs = 60 if comparison.SMOKE.value else 100
    pixels, digits = load_digits(return_X_y=True)
    order = rng.permutation(len(pixels))
    x, true_y = pixels[order] / 16, LABELS[digits[order]].astype("float32")
    is_flipped = rng.random((TRAINING, LABELS.shape[1])) < EPSILON
    y = np.where(is_flipped, 1 - true_y[:TRAINING], true_y[:TRAINING])

    network = keras.Sequential(
        [
            keras.Input((64,)),
            keras.layers.Dense(256, "relu"),
            keras.layers.Dense(256, "relu"),
            keras.layers.Dense(LABELS.shape[1], "sigmoid"),
        ]
    )
    rule = prl.Trim(prl.linear_ramp(EPSILON, 10 * -(-TRAINING // BATCH)))
    model = network if method == "plain" else prl.RobustModel(network, rule=rule, unit=method.split("=")[1])
    model.compile("adam", "binary_crossentropy")
    model.fit(x[:TRAINING], y, batch_size=BATCH, epochs=epochs, verbose=0)

    guess = network.predict(x[TRAINING:], verbose=0) > 0.5
    scorer = prl.RobustModel(network, unit="element")  # the same score for all methods
    scorer.compile(loss="binary_crossentropy")
    scores = prl.score_examples(scorer, (x[:TRAINING], y), unit="element")
    return {
        "clean test accuracy": (guess == true_y[TRAINING:]).mean(),
        "average precision": average_precision_score(is_flipped.ravel(), scores.ravel()),
    }


def main(argv: Sequence[str]) -> None:
    comparison.compare("label_rows", argv, METHODS, run, SETTING)


if __name__ == "__main__":
    app.run(main)
