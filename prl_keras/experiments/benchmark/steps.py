"""The work of a benchmark case: a model ready to train on random data of the task's shape."""

import contextlib
import itertools
import os
import typing
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from prl_keras import SelectionRecord, build
from prl_keras.experiments.runs.networks import PRECISIONS, make_network

IMAGE_SHAPE, FEATURES, OUTPUTS = (32, 32, 3), 512, 10  # CIFAR-10's images; the features of faces, 5 landmarks
STEPS, TAGS = 128, 1000  # the tagger's sequence length, and its number of tags and of words
FIT_BATCHES = 50  # per epoch of `fit`


class Work(typing.NamedTuple):
    """What is timed.

    Attributes:
        run: Function of `count`: trains `count` times `steps` steps, and returns when they are done.
        steps: Training steps for a count of one.
        parameters: Trainable numbers of one network.
    """

    run: Callable[[int], None]
    steps: int
    parameters: int


def make_work(case: Any, authors_dir: Any = None) -> Work:
    """The `Work` of a case whose implementation is "prl_keras".

    Images and class labels use Adam with 0.001 and the cross-entropy. Features and landmarks (the mlp) use
    Adam with 0.0003 and the mean squared error. Huber takes targets `[n, 10]` for images too.
    """
    del authors_dir
    is_image = case.network not in ("mlp", "tagger")
    seeds = itertools.count()
    networks = []

    def fresh_network():
        networks.append(_network(case, next(seeds)))
        return Subclassed(networks[-1]) if case.is_subclass else networks[-1]

    has_classes = case.network != "mlp" and case.method != "huber"
    with _computing_in(case.precision):
        model = build(
            case.method,
            fresh_network,
            epsilon=case.epsilon,
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True) if has_classes else "mse",
            optimizer=keras.optimizers.Adam(0.001 if is_image else 0.0003),
            recompute=case.recompute,
            microbatch_size=case.microbatch_size,
            unit=case.unit,
            jit_compile=uses_xla() if case.is_compiled is None else case.is_compiled,
        )
    steps = FIT_BATCHES if case.through_fit else 1
    if case.network == "tagger":
        x, y = random_sequences(steps * case.batch_size)
    else:
        x, y = random_data(steps * case.batch_size, IMAGE_SHAPE if is_image else (FEATURES,), has_classes)
    callbacks = [SelectionRecord((x, y))] if case.is_recorded else []
    if case.through_fit:
        run = _fit(model, x, y, case.batch_size, callbacks)
    else:
        run = _train_on_one_batch(model, x, y)
    return Work(run, steps, sum(int(np.prod(w.shape)) for w in networks[0].trainable_weights))


def random_data(count: int, shape: Sequence[int], has_classes: bool) -> tuple[np.ndarray, np.ndarray]:
    """Float32 inputs `[count, *shape]` and labels `[count]` or targets `[count, 10]`, the same every time."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((count, *shape), dtype=np.float32)
    y = rng.integers(OUTPUTS, size=count) if has_classes else rng.standard_normal((count, OUTPUTS))
    return x, y.astype(np.int64 if has_classes else np.float32)


def random_sequences(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Words and tags, int64 `[count, STEPS]` below `TAGS`; the same in every call."""
    rng = np.random.default_rng(0)
    return rng.integers(TAGS, size=(count, STEPS)), rng.integers(TAGS, size=(count, STEPS))


def core_count() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def uses_xla() -> bool:
    """Whether XLA compiles the steps: only on a GPU, since its convolutions are slower on a CPU."""
    return bool(tf.config.list_physical_devices("GPU"))


def gpu_peak() -> int | None:
    """TensorFlow's peak memory on the GPU in bytes, or None without a GPU."""
    if not tf.config.list_physical_devices("GPU"):
        return None
    return tf.config.experimental.get_memory_info("GPU:0")["peak"]


class Subclassed(keras.Model):
    """A network whose layers are not visible in its graph."""

    def __init__(self, network: keras.Model) -> None:
        super().__init__()
        self.network = network
        self.build(network.input_shape)

    def build(self, input_shape: Any) -> None:
        self.built = True

    def call(self, x: Any, training: bool | None = None) -> Any:
        return self.network(x, training=training)


@contextlib.contextmanager
def _computing_in(precision: str) -> Iterator[None]:
    """Keras's dtype policy of the layers that are made while the block runs."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(PRECISIONS[precision])
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def _network(case, seed):
    if case.network == "tagger":
        keras.utils.set_random_seed(seed)
        parts = [layers.Embedding(TAGS, 128), layers.GRU(128, return_sequences=True), layers.Dense(TAGS)]
        return keras.Sequential([keras.Input((STEPS,)), *parts])
    if case.width is None:
        shape = (FEATURES,) if case.network == "mlp" else IMAGE_SHAPE
        return make_network(case.network, shape, OUTPUTS, case.norm, seed, case.precision)
    x = inputs = keras.Input((FEATURES,))
    for _ in range(2):
        x = layers.Dense(case.width, kernel_initializer="he_normal")(x)
        x = layers.LeakyReLU(negative_slope=0.01)(x)
    return keras.Model(inputs, layers.Dense(OUTPUTS)(x))


def _train_on_one_batch(model, x, y):
    x, y = tf.constant(x), tf.constant(y)
    model.train_on_batch(x, y)  # builds what a first step builds

    def run(count):
        # The compiled step of train_on_batch, without reading the logs after each step.
        for _ in range(count):
            logs = model.train_function(iter([(x, y, None)]))
        float(logs["loss"])  # waits for the device

    return run


def _fit(model, x, y, batch_size, callbacks):
    return lambda count: model.fit(x, y, batch_size, epochs=count, verbose=0, callbacks=callbacks)
