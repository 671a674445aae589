"""Many runs, each with one result file: killed and started again, it goes on where it was.

    failures = sweep(TABLES[1].configs("cpu"), "results/cpu/runs", "cpu", workers=2)

Runs that share a traced model go to the same process, one after the other.
"""

import concurrent.futures
import contextlib
import functools
import itertools
import multiprocessing
import os
import pathlib
import shutil
import sys
import threading
import time

import keras
import tensorflow as tf
from tqdm import tqdm

from prl_keras.experiments import datasets, results, strategies
from prl_keras.experiments.run import versions
from prl_keras.experiments.training import CHECKPOINTS, Training, trace_key

_CHECKPOINT_SECONDS = 60
_GROUP = 10  # so many runs at most are given to a process at a time


def pending(configs, directory, scale, shard=(0, 1)):
    """What is left to do.

    Args:
        configs: A list of `RunConfig`.
        directory: The folder of the result files.
        scale: "paper" or "cpu".
        shard: `(i, n)`: of every n runs, ordered by method, the i-th alone, i from 0. All n shards
            together do all the runs.

    Returns:
        (the configs without a result, what is wrong with result files that have to be redone).
    """
    missing, problems = [], []
    by_method = list(itertools.chain.from_iterable(_groups(configs)))  # the same work for each shard
    for config in by_method[shard[0] :: shard[1]]:
        path = results.path_of(directory, config)
        if path.exists():
            try:
                results.read(path, config, scale)
                continue
            except ValueError as error:
                problems.append(str(error))
        missing.append(config)
    return missing, problems


def sweep(configs, directory, scale, workers=1, data_options=None, strategy=None):
    """Runs every config and writes `results.path_of(directory, config)`, with a progress bar.

    A run that was killed goes on from its last checkpoint, at most a minute older, in the folder
    `.unfinished`. What a run raises stops that run alone, and in a multi_worker cluster the sweep.

    Args:
        configs: A list of `RunConfig`; existing results are replaced (`pending` says what is missing).
        directory: Made if missing.
        scale: "paper" or "cpu".
        workers: Processes, at least 1; the processor's cores are shared out among them.
        data_options: For `datasets.load`.
        strategy: Arguments of `strategies.make_strategy`, a dict; each worker makes its own. The processes
            of a multi_worker cluster all call this alike, with a directory they share; the chief writes.

    Returns:
        Failures, a dict from the config to the message.

    Raises:
        ValueError, OSError, ImportError: if a data set cannot be loaded, before any run.
        ValueError: if the folder holds results made from other data than these.
        RuntimeError: if a worker process died.
    """
    directory = pathlib.Path(directory)
    strategy = tuple((strategy or {"name": "one"}).items())
    if workers == 1:
        # The chief writes while others may still look at what is there.
        strategies.check_same(_strategy(strategy), len(configs), "how many runs are missing")
    directory.mkdir(parents=True, exist_ok=True)
    for left in (directory / ".unfinished").glob("*"):  # killed after the result was written
        with contextlib.suppress(ValueError):
            results.read(directory / f"{left.name}.json", scale=scale)
            shutil.rmtree(left, ignore_errors=True)
    job = functools.partial(
        _run_group, directory=directory, scale=scale, data_options=data_options or {}, strategy=strategy
    )
    groups = _groups(configs)
    total = sum(config.epochs for config in configs)
    is_terminal = sys.stderr.isatty()
    with tqdm(total=total, unit="epoch", mininterval=0.5 if is_terminal else 30) as bar:
        for config in {config.dataset: config for config in configs}.values():
            source = _load(config.dataset, tuple((data_options or {}).items())).source
            if others := results.sources(directory, config.dataset) - {source}:
                raise ValueError(
                    f"{directory} holds results of {' and '.join(map(repr, others))}; these data are "
                    f"{source!r}. Give another --output_dir, or remove those results."
                )
        if workers == 1:
            with strategies.failing_together(_strategy(strategy)):
                return _merge(job(group, tell=bar.update) for group in groups)
        return _merge(_in_processes(job, groups, workers, bar))


def _groups(configs):
    """The configs in lists that share a traced model, each of at most `_GROUP`."""
    by_key = {}
    for config in configs:
        by_key.setdefault(trace_key(config), []).append(config)
    return [group[i : i + _GROUP] for group in by_key.values() for i in range(0, len(group), _GROUP)]


def _merge(failures):
    return {config: message for part in failures for config, message in part.items()}


def _run_group(group, directory, scale, data_options, strategy, tell):
    failures = {}
    for config in group:
        try:
            _run_one(config, directory, scale, data_options, _strategy(strategy), tell)
        except Exception as error:  # the other runs go on
            if not strategies.is_alone(_strategy(strategy)):
                raise  # the other processes may be in the midst of this one
            failures[config] = f"{type(error).__name__}: {error}"
            tqdm.write(
                f"{results.path_of(directory, config).stem} failed: {failures[config]}", file=sys.stderr
            )
    return failures


def _run_one(config, directory, scale, data_options, strategy, tell):
    path = results.path_of(directory, config)
    unfinished = directory / ".unfinished" / path.stem
    dataset = _load(config.dataset, tuple(data_options.items()))
    start = time.perf_counter()
    progress = _TellEpochs(tell)

    left = (unfinished / CHECKPOINTS).exists()

    def train():
        with strategy.scope():
            training = Training(config, dataset, _MODELS)
        return training, training.fit(unfinished, _CHECKPOINT_SECONDS, callbacks=[progress])

    try:
        training, table = train()
    except ValueError as error:
        if not left or not strategies.is_alone(strategy):
            raise
        tqdm.write(f"{path.stem} starts anew: {error}", file=sys.stderr)
        shutil.rmtree(unfinished)
        training, table = train()
    about = {
        "source": dataset.source,
        "corruption_rate": training.corruption_rate,
        "run_seconds": round(time.perf_counter() - start, 3),
        "device": _device(strategy.num_replicas_in_sync),
        "versions": versions(),
    }
    if strategies.is_chief(strategy):
        results.write(path, config, scale, table, about)
        shutil.rmtree(unfinished, ignore_errors=True)
    strategies.wait_for_all(strategy)
    tell(config.epochs - progress.epochs)  # those before a resume


class _TellEpochs(keras.callbacks.Callback):
    def __init__(self, tell):
        super().__init__()
        self.tell, self.epochs = tell, 0

    def on_epoch_end(self, epoch, logs=None):
        self.epochs += 1
        self.tell(1)


# What a process keeps from run to run.
_MODELS = {}


@functools.lru_cache(maxsize=2)
def _load(name, data_options):
    return datasets.load(name, **dict(data_options))


def _strategy(arguments):
    return strategies.make_strategy(**dict(arguments))


@functools.cache
def _device(replicas):
    return f"{replicas} replicas, " * (replicas > 1) + _one_device()


def _one_device():
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        return tf.config.experimental.get_device_details(gpus[0]).get("device_name", gpus[0].name)
    threads = tf.config.threading.get_intra_op_parallelism_threads() or len(os.sched_getaffinity(0))
    return f"CPU, {threads} threads"


def _in_processes(job, groups, workers, bar):
    context = multiprocessing.get_context("spawn")  # TensorFlow does not survive a fork
    ticks = context.SimpleQueue()
    threads = max(1, len(os.sched_getaffinity(0)) // workers)
    pool = concurrent.futures.ProcessPoolExecutor(workers, context, _start_process, (ticks, threads))
    try:
        running = {pool.submit(_in_process, job, group) for group in groups}
        while running:
            done, running = concurrent.futures.wait(running, timeout=0.5)
            while not ticks.empty():
                bar.update(ticks.get())
            for future in done:
                yield future.result()
    except concurrent.futures.process.BrokenProcessPool as error:
        raise RuntimeError(
            "A worker process died, perhaps for lack of memory. The finished runs are kept: start again, "
            f"with fewer workers than {workers} if it happens again."
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _start_process(ticks, threads):
    global _TICKS
    _TICKS = ticks
    with contextlib.suppress(RuntimeError):  # an imported test may have started TensorFlow already
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(threads)
    for gpu in tf.config.list_physical_devices("GPU"):
        tf.config.experimental.set_memory_growth(gpu, True)
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent():
    """Ends this process when the one that started it is gone, killed perhaps."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _in_process(job, group):
    return job(group, tell=_TICKS.put)
