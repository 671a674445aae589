"""Fine-tunes a KerasHub language model with LoRA on texts in which every fifth token is noise.

pip install -r requirements-text.txt
python -m examples.finetune_language_model
python -m examples.finetune_language_model --preset=gpt2_base_en

A small GPT-2 first learns texts about animals that do anything. Then, with LoRA on a frozen backbone, it
learns that each animal has its own habits. In these second texts random tokens replace a fifth of the tokens.
KerasHub's preprocessor gives next-token labels, and weights `[batch, steps]` that are 0 for padding, which is
neither ranked nor counted. Expect a lower loss on clean texts with `unit="element"`, noise in nine of ten
labels that it suspects most, and equal predictions from a saved and loaded model.
"""

import os
from collections.abc import Sequence
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import tempfile

import keras
import keras_hub
import numpy as np
from absl import app, flags

import prl_keras as prl
from examples import comparison

PRESET = flags.DEFINE_string("preset", None, "A KerasHub preset or its folder; skips the first texts.")
METHODS = ("plain", "PRL(L), unit=element")
EPSILON, BATCH, LENGTH, RANK = 0.2, 32, 20, 8
SETTING = "300 training and 200 test texts, a fifth of the training tokens replaced, LoRA, 30 epochs."
ANIMALS = "fox bear owl hare wolf mole toad crow"
DEEDS, FOODS = "hunts finds hides steals digs carries", "berries fish mice roots beetles honey nuts worms"
PLACES, TIMES = "forest river field garden cave meadow", "night dawn noon dusk"
HABITS = [group.split() for group in (DEEDS, FOODS, PLACES, TIMES, PLACES, TIMES)]


def make_texts(count: int, habits: np.ndarray | None, rng: np.random.Generator) -> list[str]:
    """Texts of 9 or 18 words. `habits[animal]` has the numbers of its habits; with None they are random."""
    texts = []
    for animal in rng.integers(8, size=count):
        chosen = rng.integers(99, size=len(HABITS)) if habits is None else habits[animal]
        words = [group[number % len(group)] for group, number in zip(HABITS, chosen)]
        rest = rng.choice(["", " and the {0} sleeps in the {5} at {6}"])
        texts.append((" the {0} {1} {2} in the {3} at {4}" + rest).format(ANIMALS.split()[animal], *words))
    return texts


def make_network() -> tuple[keras.Model, Any]:
    """(causal language model of token ids, preprocessor that makes them and the labels)."""
    lm = keras_hub.models
    if PRESET.value:
        preprocessor = lm.CausalLMPreprocessor.from_preset(PRESET.value, sequence_length=2 * LENGTH)
        return lm.CausalLM.from_preset(PRESET.value, preprocessor=None), preprocessor
    words = f"{ANIMALS} {DEEDS} {FOODS} {PLACES} {TIMES} the in at and sleeps".split()
    words = ["Ġ" + word for word in words]  # how byte pairs write a space
    starts = [word[:end] for word in words for end in range(1, len(word) + 1)]
    pieces = dict.fromkeys(["<|endoftext|>", *"".join(words), *starts])
    merges = dict.fromkeys(f"{start[:-1]} {start[-1]}" for start in starts if len(start) > 1)
    tokenizer = lm.GPT2Tokenizer({piece: i for i, piece in enumerate(pieces)}, list(merges))
    backbone = lm.GPT2Backbone(len(pieces), 2, 4, 64, 128, dropout=0.0, max_sequence_length=64)
    return lm.GPT2CausalLM(backbone), lm.GPT2CausalLMPreprocessor(tokenizer, LENGTH)


def train(
    network: keras.Model, rule: Any, rate: float, epochs: int, x: Any, y: np.ndarray, weight: np.ndarray
) -> keras.Model:
    model = prl.RobustModel(network, rule=rule, unit="element")
    model.compile(keras.optimizers.Adam(rate), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(x, y, BATCH, sample_weight=weight, epochs=epochs, verbose=0)
    return model


def run(method: str, seed: int) -> dict[str, float]:
    """Loss on clean test texts, and how well the scores find the noise among the training labels."""
    keras.utils.set_random_seed(seed)
    rng = np.random.default_rng(seed)
    network, preprocessor = make_network()
    epochs, rate = (12 if comparison.SMOKE.value else 30), (5e-5 if PRESET.value else 1e-2)

    def tokens(count, habits):
        return keras.tree.map_structure(np.asarray, preprocessor(make_texts(count, habits, rng)))

    if not PRESET.value:
        train(network, prl.Trim(0.0), 3e-3, 10, *tokens(500, None))
    network.backbone.enable_lora(RANK)
    habits = rng.integers(99, size=(8, len(HABITS)))
    (x, true_y, weight), (test_x, test_y, test_weight) = tokens(300, habits), tokens(200, habits)
    is_replaced = (rng.random(true_y.shape) < EPSILON) & weight
    y = np.where(is_replaced, rng.choice(true_y[weight], size=true_y.shape), true_y)
    x["token_ids"] = np.concatenate([x["token_ids"][:, :1], y[:, :-1]], axis=1)
    ramp = prl.linear_ramp(EPSILON, epochs // 3 * -(-len(y) // BATCH))
    model = train(network, prl.Trim(0.0 if method == "plain" else ramp), rate, epochs, x, y, weight)

    scores, is_noise = prl.score_examples(model, (x, y, weight), unit="element"), (y != true_y)[weight]
    with tempfile.TemporaryDirectory() as folder:
        model.save(f"{folder}/model.keras")  # merges LoRA into the kernels; to train further, enable it again
        loaded = keras.saving.load_model(f"{folder}/model.keras")
    before, after = (each.predict(test_x, verbose=0) for each in (model, loaded))
    return {
        "clean test loss": model.evaluate(test_x, test_y, sample_weight=test_weight, verbose=0),
        "noise among the most suspect": is_noise[np.argsort(-scores[weight])[: is_noise.sum()]].mean(),
        "change by saving and loading": abs(after - before).max(),
    }


def main(argv: Sequence[str]) -> None:
    comparison.compare("finetune_language_model", argv, METHODS, run, SETTING)


if __name__ == "__main__":
    app.run(main)
