"""Drops whole sequences or single tokens when tagging sequences with a fifth of the tags wrong.

python -m examples.tag_sequences

Half of the words of a made-up language have two tags, and the next word decides between them. Sequences
differ in length and are padded with 0, which the embedding masks. A fifth of the tags is wrong, and hardly a
sequence is clean. Expect plain training to memorise wrong tags and end low on clean test sequences. Dropping
whole sequences does not help. Dropping single tokens does, and its scores find the wrong ones.
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

METHODS = ("plain", "PRL(L), unit=example", "PRL(L), unit=element", "Co-PRL(L), unit=element")
EPSILON, TAGS, WORDS, LENGTH, BATCH = 0.2, 8, 60, 20, 32
SETTING = (
    "500 training and 500 test sequences of 8 to 20 words, a vocabulary of 59, 8 tags, 20% of the training "
    "tags wrong. A bidirectional GRU of 2 x 64 units, Adam, 30 epochs, epsilon 0.2 after a ramp of 10 "
    "epochs. No early stopping; a pair is measured by its first network. Average precision: of the wrong "
    "tags, ranked by the final scores."
)


def make_language(rng: np.random.Generator) -> np.ndarray:
    """int `[words, 2]`: the tags of each word; the second applies before an odd word. Word 0 is padding."""
    tags = rng.integers(TAGS, size=(WORDS, 2))
    is_certain = rng.random(WORDS) < 0.5
    tags[is_certain, 1] = tags[is_certain, 0]
    return tags


def make_sequences(
    language: np.ndarray, count: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """(words, tags), int32 `[count, length]`, padded with 0."""
    chance = 1 / (10 + np.arange(1, WORDS))  # a few words are frequent, most are rare
    words = 1 + rng.choice(WORDS - 1, size=(count, LENGTH), p=chance / chance.sum())
    words[np.arange(LENGTH) >= rng.integers(8, LENGTH + 1, size=(count, 1))] = 0
    following = np.concatenate([words[:, 1:], np.zeros((count, 1), int)], axis=1)
    tags = np.where(words > 0, language[words, following % 2], 0)
    return words.astype("int32"), tags.astype("int32")


def make_network() -> keras.Model:
    return keras.Sequential(
        [
            keras.layers.Embedding(WORDS, 64, mask_zero=True),
            keras.layers.Bidirectional(keras.layers.GRU(64, return_sequences=True)),
            keras.layers.Dense(TAGS),
        ]
    )


def make_model(method: str, ramp_steps: int) -> keras.Model:
    rule = prl.Trim(prl.linear_ramp(EPSILON, ramp_steps))
    if method == "plain":
        return make_network()
    if method.startswith("Co-"):
        return prl.CoTeachingModel(make_network(), make_network(), rule=rule, unit="element")
    return prl.RobustModel(make_network(), rule=rule, unit=method.split("=")[1])


def run(method: str, seed: int) -> dict[str, float]:
    """Accuracy on clean test tokens, and average precision of finding the wrong training tokens."""
    keras.utils.set_random_seed(seed)
    rng = np.random.default_rng(seed)
    language = make_language(rng)
    count, epochs = (200, 30) if comparison.SMOKE.value else (500, 30)
    words, true_tags = make_sequences(language, count, rng)
    test_words, test_tags = make_sequences(language, 500, rng)
    is_token = words > 0
    tags, is_wrong = true_tags.copy(), np.zeros_like(is_token)
    tags[is_token], is_wrong[is_token] = prl.corrupt(
        "symmetric", true_tags[is_token], EPSILON, rng, num_classes=TAGS
    )

    model = make_model(method, ramp_steps=epochs // 3 * -(-count // BATCH))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(3e-3), loss)
    model.fit(words, tags, batch_size=BATCH, epochs=epochs, verbose=0)

    pair = isinstance(model, prl.CoTeachingModel)
    network = model.network_a if pair else getattr(model, "network", model)
    guess = network.predict(test_words, verbose=0).argmax(axis=-1)
    if not pair:  # the same score for all methods
        model = prl.RobustModel(network, unit="element")
        model.compile(loss=loss)
    scores = prl.score_examples(model, (words, tags), unit="element")  # NaN where there is padding
    return {
        "clean test accuracy": (guess == test_tags)[test_words > 0].mean(),
        "average precision": average_precision_score(is_wrong[is_token], scores[is_token]),
    }


def main(argv: Sequence[str]) -> None:
    comparison.compare("tag_sequences", argv, METHODS, run, SETTING)


if __name__ == "__main__":
    app.run(main)
