"""The compiled model of a run, fresh or used again by runs that share its trace."""

import dataclasses
import itertools
from typing import Any

import keras
import tensorflow as tf

import prl_keras as prl
from prl_keras.experiments.runs.metrics import METRICS
from prl_keras.experiments.runs.networks import make_network
from prl_keras.keras_gaps.fresh_start import start_as

_KEPT_MODELS = 4
_STEPS = 12  # of `fit` in one call of TensorFlow
_STEPS_IN_ONE_CALL = 16  # on a CPU a CNN's epoch of at most this many steps is one call; an MLP's always is


def task_loss(task: str) -> keras.losses.Loss:
    """The `keras.losses.Loss` of a task, "classification" (from logits) or "regression"."""
    if task == "classification":
        return keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return keras.losses.MeanSquaredError()


def trace_key(config: Any) -> Any:
    """The config without corruption and seeds: runs with the same key can share a traced model."""
    return dataclasses.replace(
        config, corruption="none", epsilon=0, assumed_epsilon=config.told_epsilon, seed=0, noise_seed=0
    )


def shared_model(config: Any, dataset: Any, models: dict[Any, keras.Model] | None) -> keras.Model:
    """As `build_model`, but from `models` if there is one of the same `trace_key`, which it then joins."""
    fresh = build_model(config, dataset)
    if models is None:
        return fresh
    key = trace_key(config)
    kept = models.pop(key, fresh)
    models[key] = kept  # the newest last
    for old in list(models)[:-_KEPT_MODELS]:
        del models[old]
    if kept is not fresh:
        start_as(kept, fresh)
    return kept


def build_model(config: Any, dataset: Any) -> keras.Model:
    """The compiled model of a `RunConfig` for a `Dataset`, with its initial weights."""
    keras.utils.set_random_seed(config.seed)
    input_shape = dataset.train_x.shape[1:]
    network, norm = config.network_and_norm(input_shape)
    seeds = itertools.count(2 * config.seed)  # a pair needs two

    is_classification = dataset.task == "classification"
    metric = keras.metrics.SparseCategoricalAccuracy if is_classification else keras.metrics.R2Score
    steps_per_epoch = -(-len(dataset.train_x) // config.batch_size)
    on_one_device, on_gpu = not tf.distribute.has_strategy(), bool(tf.config.list_physical_devices("GPU"))
    in_one_call = on_one_device and (on_gpu or network == "mlp" or steps_per_epoch <= _STEPS_IN_ONE_CALL)
    outputs = dataset.num_outputs
    own: dict[str, Any] = {}
    if config.ramp_epochs and "warm_up_steps" in prl.METHODS[config.method].options:
        own["warm_up_steps"] = config.ramp_epochs * steps_per_epoch
    average: dict[str, Any] = {"use_ema": True, "ema_momentum": config.ema} if config.ema else {}
    return prl.build(
        config.method,
        lambda: make_network(network, input_shape, outputs, norm, next(seeds), config.precision),
        epsilon=config.told_epsilon,
        ramp_steps=config.ramp_epochs * steps_per_epoch,
        loss=task_loss(dataset.task),
        optimizer=keras.optimizers.Adam(config.learning_rate, **average),
        metrics=[metric(name=METRICS[dataset.task].name)],
        steps_per_execution=steps_per_epoch if in_one_call else 1,  # a GPU waits for the host after each call
        recompute=config.recompute,
        **own,
        # On a CPU, XLA is no faster here and compiles twice as long; Keras has no XLA across replicas. With a
        # second pass XLA needs a fixed number of kept examples.
        jit_compile=on_gpu and on_one_device and not (config.recompute and config.ramp_epochs),
    )


def recordable(model: keras.Model) -> keras.Model:
    """The model, or `RobustModel(model, score=None)`, which trains like it and takes a `SelectionRecord`."""
    if hasattr(model, "record_selection"):
        return model
    robust = prl.RobustModel(model, score=None)
    robust.compile(model.optimizer, model.loss)
    return robust


def fit(model: keras.Model, x: Any, y: Any, config: Any, callbacks: list[Any]) -> None:
    """Trains with the epochs, the batch size and the seed of `config`."""
    keras.utils.set_random_seed(config.seed)  # fixes the order of the batches
    model.steps_per_execution = max(model.steps_per_execution, _STEPS)  # the same steps in less time
    model.fit(x, y, batch_size=config.batch_size, epochs=config.epochs, callbacks=callbacks, verbose=0)
