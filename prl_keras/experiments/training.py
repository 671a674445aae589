"""The training of one run: corrupt the targets, build the model, fit it, measure on clean test data."""

import dataclasses
import itertools
import pathlib

import keras
import numpy as np
import tensorflow as tf

import prl_keras as prl
from prl_keras.experiments import checkpoints, history, strategies
from prl_keras.experiments.batches import batches, shuffled_batches
from prl_keras.experiments.networks import make_network
from prl_keras.keras_gaps.fresh_start import start_as

CHECKPOINTS = "checkpoints"  # the folder of a run in which `Training.fit` keeps them
METRICS = {"classification": "accuracy", "regression": "r2_score"}  # of a task, as Keras names them
LAST_EPOCHS = 10  # the paper averages the test metric over the last ten epochs
_PROBE_SIZE = 1000  # examples on which the cleanness of the kept set is measured
_TEST_BATCH = 1024
_KEPT_MODELS = 4
_STEPS_IN_ONE_CALL = 16  # epochs so short go to TensorFlow whole, without Python between the steps


class Training:
    """A run that can start: everything that can be refused is refused when this is made.

    Made in the scope of a `tf.distribute` strategy it trains on that.

    Attributes:
        config: The `RunConfig`.
        dataset: The `Dataset`, of the sizes that the config says.
        targets: The training targets, corrupted; is_corrupted: which of them are.
        model: The compiled model with its initial weights.

    Args:
        config: As above.
        dataset: What `datasets.load(config.dataset)` gave; it is cut to the config's sizes.
        models: A dict in which models are kept from run to run. Building and tracing take as long as
            a small run's training, so runs that differ only in corruption and seeds share one model:
            it is put into the state in which a fresh one starts. None builds a fresh one.

    Raises:
        ValueError: for a method, corruption or size that does not suit the data.
    """

    def __init__(self, config, dataset, models=None):
        config.check_task(dataset.task)
        self.config = config
        self.dataset = dataset.subset(config.train_size, config.test_size)
        self.targets, self.is_corrupted = corrupt(config, self.dataset)
        self.model = _model(config, self.dataset, models)

    @property
    def corruption_rate(self):
        """The achieved share of corrupted targets."""
        return float(np.mean(self.is_corrupted))

    def fit(self, directory, checkpoint_seconds=0, verbose=0, callbacks=(), selection=None):
        """Trains, from the last checkpoint in `directory` if there is one.

        Args:
            directory: Gets history.csv and the folder checkpoints; made if missing.
            checkpoint_seconds: The least time between two checkpoints, and two writings of history.csv.
            verbose: As in `keras.Model.fit`.
            callbacks: Further Keras callbacks.
            selection: A file for the `SelectionRecord` of a method that has one; None records nothing.

        Returns:
            The history, a DataFrame with a row per epoch.

        Raises:
            ValueError: if there are checkpoints or a history and they are damaged.
        """
        directory, config, data = pathlib.Path(directory), self.config, self.dataset
        directory.mkdir(parents=True, exist_ok=True)
        strategy = self.model.distribute_strategy
        with strategy.scope():
            finished = checkpoints.restore(self.model, directory / CHECKPOINTS)
        strategies.check_same(strategy, finished, "how many epochs are finished")
        record = history.WriteHistory(directory / "history.csv", finished, not checkpoint_seconds)
        saver = checkpoints.SaveCheckpoints(directory / CHECKPOINTS, checkpoint_seconds, record.write)
        train, steps = shuffled_batches(
            data.train_x, self.targets, config.batch_size, config.seed, first_epoch=finished
        )
        callbacks = [record, saver, *callbacks]
        if selection is not None and hasattr(self.model, "record_selection"):
            # In front of the checkpoint of an epoch, so that it is never behind it.
            callbacks.insert(0, prl.SelectionRecord((data.train_x, self.targets), selection))
        method = prl.METHODS[config.method]
        if method.score or method.exchange:
            probe = slice(0, _PROBE_SIZE)
            callbacks.insert(0, prl.SelectionQuality(
                data.train_x[probe], self.targets[probe], self.is_corrupted[probe], config.batch_size
            ))  # fmt: skip
        self.model.fit(
            strategies.sharded_by_data(train),
            epochs=config.epochs,
            initial_epoch=finished,
            steps_per_epoch=steps,
            validation_data=strategies.sharded_by_data(batches(data.test_x, data.test_y, _TEST_BATCH)),
            callbacks=callbacks,
            shuffle=False,  # the data are shuffled, by seed and epoch
            verbose=verbose,
        )
        return record.table


def summarize(table, task):
    """The summary of a run from its history, as `run.run` returns it."""
    metric = METRICS[task]
    last = table.tail(LAST_EPOCHS)
    test = last[f"test_{metric}"]
    selection = {
        name: float(last[name].mean()) if name in last else None
        for name in ("kept_clean", "drop_precision", "drop_recall")
    }
    return {
        "test_metric": metric,
        "test_mean": float(test.mean()),
        "test_std": float(test.std(ddof=0)),
        "test_final": float(test.iloc[-1]),
        **selection,
        "seconds_per_epoch": float(table["seconds"].median()),
        "epochs": len(table),
    }


def corrupt(config, dataset):
    """The training targets as `config` corrupts them, and which of them are corrupted."""
    if config.corruption == "none":
        return dataset.train_y, np.zeros(len(dataset.train_y), bool)
    num_classes = dataset.num_outputs if dataset.task == "classification" else None
    return prl.corrupt(
        config.corruption,
        dataset.train_y,
        config.epsilon,
        np.random.default_rng(config.noise_seed),
        features=dataset.train_x,
        num_classes=num_classes,
    )


def task_loss(task):
    """The `keras.losses.Loss` of a task, "classification" (from logits) or "regression"."""
    if task == "classification":
        return keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return keras.losses.MeanSquaredError()


def trace_key(config):
    """What runs must have in common to share a traced model: all but the corruption and the seeds."""
    return dataclasses.replace(
        config, corruption="none", epsilon=0, assumed_epsilon=config.told_epsilon, seed=0, noise_seed=0
    )


def _model(config, dataset, models):
    fresh = _build(config, dataset)
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


def _build(config, dataset):
    keras.utils.set_random_seed(config.seed)
    input_shape = dataset.train_x.shape[1:]
    network, norm = config.network_and_norm(input_shape)
    seeds = itertools.count(2 * config.seed)  # a pair takes two

    is_classification = dataset.task == "classification"
    metric = keras.metrics.SparseCategoricalAccuracy if is_classification else keras.metrics.R2Score
    steps_per_epoch = -(-len(dataset.train_x) // config.batch_size)
    on_one_device = not tf.distribute.has_strategy()
    return prl.build(
        config.method,
        lambda: make_network(network, input_shape, dataset.num_outputs, norm, seed=next(seeds)),
        epsilon=config.told_epsilon,
        ramp_steps=config.ramp_epochs * steps_per_epoch,
        loss=task_loss(dataset.task),
        optimizer=keras.optimizers.Adam(config.learning_rate),
        metrics=[metric(name=METRICS[dataset.task])],
        steps_per_execution=steps_per_epoch if steps_per_epoch <= _STEPS_IN_ONE_CALL and on_one_device else 1,
        # On a CPU, XLA is no faster here and takes twice the time to compile; among replicas Keras has none.
        jit_compile=bool(tf.config.list_physical_devices("GPU")) and on_one_device,
    )
