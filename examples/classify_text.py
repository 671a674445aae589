"""Fine-tunes a KerasHub text classifier on sentences with 30% wrong labels.

pip install -r requirements-text.txt
python -m examples.classify_text
python -m examples.classify_text --preset=bert_tiny_en_uncased

Made-up sentences have one of four subjects. By default the classifier is a tiny BERT with random weights and
its own vocabulary, which trains in seconds. `--preset` takes any text classifier of KerasHub instead. Expect
PRL(L) to end above plain training on clean test sentences, and its scores to find more of the wrong labels.

Texts are converted to token ids before `fit`: a KerasHub model converts them only in its own `fit`. That
`fit` does not shuffle arrays, so the plain training here is a RobustModel that drops nothing: Keras's `fit`.
"""

import os
from collections.abc import Sequence
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import keras_hub
import numpy as np
from absl import app, flags
from sklearn.metrics import average_precision_score

import prl_keras as prl
from examples import comparison

PRESET = flags.DEFINE_string("preset", None, "A KerasHub preset, or a folder of one, instead of a tiny BERT.")
METHODS = ("plain", "PRL(L)")
EPSILON, BATCH, LENGTH = 0.3, 32, 16
SETTING = "600 training and 400 test sentences, four subjects, 30% of the training labels wrong, 24 epochs."
SUBJECTS = (
    "goal match player team coach referee stadium league score race trophy medal",
    "rain storm cloud wind snow sunshine fog thunder frost breeze hail drought",
    "bread soup pepper butter cheese salad kitchen recipe oven flour sugar dinner",
    "bank loan price market tax budget interest debt salary invoice profit coin",
)
FILLERS = "the a of and with about was near after some they we saw today again much more old new one"


def make_sentences(count: int, rng: np.random.Generator) -> tuple[list[str], np.ndarray]:
    """(sentences, each with two or three words of its subject; labels)."""
    labels, sentences = rng.integers(len(SUBJECTS), size=count), []
    for label in labels:
        words = list(rng.choice(SUBJECTS[label].split(), size=rng.integers(2, 4), replace=False))
        words = [*words, *rng.choice(FILLERS.split(), size=rng.integers(3, 8))]
        sentences.append(" ".join(rng.permutation(words)))
    return sentences, labels.astype("int32")


def make_network() -> tuple[keras.Model, Any]:
    """(classifier of token ids, preprocessor that makes them)."""
    if PRESET.value:
        preprocessor = keras_hub.models.TextClassifierPreprocessor.from_preset(
            PRESET.value, sequence_length=2 * LENGTH
        )
        network = keras_hub.models.TextClassifier.from_preset(
            PRESET.value, num_classes=len(SUBJECTS), preprocessor=None
        )
        return network, preprocessor
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *" ".join([*SUBJECTS, FILLERS]).split()]
    preprocessor = keras_hub.models.BertTextClassifierPreprocessor(
        keras_hub.models.BertTokenizer(vocabulary), sequence_length=LENGTH
    )
    sizes = dict(num_layers=2, num_heads=4, hidden_dim=64, intermediate_dim=128, max_sequence_length=64)
    backbone = keras_hub.models.BertBackbone(len(vocabulary), dropout=0.0, **sizes)
    return keras_hub.models.BertTextClassifier(backbone, num_classes=len(SUBJECTS)), preprocessor


def run(method: str, seed: int) -> dict[str, float]:
    """Accuracy on clean test sentences, and average precision of finding the wrong training labels."""
    keras.utils.set_random_seed(seed)
    rng = np.random.default_rng(seed)
    count, epochs = 600, 14 if comparison.SMOKE.value else 24
    sentences, true_labels = make_sentences(count, rng)
    test_sentences, test_labels = make_sentences(400, rng)
    labels, is_wrong = prl.corrupt("symmetric", true_labels, EPSILON, rng)

    network, preprocessor = make_network()
    x, test_x = (keras.tree.map_structure(np.asarray, preprocessor(t)) for t in (sentences, test_sentences))
    ramp = prl.linear_ramp(EPSILON, epochs // 3 * -(-count // BATCH))
    model = prl.RobustModel(network, rule=prl.Trim(0.0 if method == "plain" else ramp))
    learning_rate = 5e-5 if PRESET.value else 1e-3
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(learning_rate), loss)
    model.fit(x, labels, batch_size=BATCH, epochs=epochs, verbose=0)
    return {
        "clean test accuracy": (network.predict(test_x, verbose=0).argmax(axis=-1) == test_labels).mean(),
        "average precision": average_precision_score(is_wrong, prl.score_examples(model, (x, labels))),
    }


def main(argv: Sequence[str]) -> None:
    comparison.compare("classify_text", argv, METHODS, run, SETTING)


if __name__ == "__main__":
    app.run(main)
