"""Many runs, each in its own folder. A sweep that was killed and is started again continues.

    failures = sweep(TABLES[1].configs("cpu"), "results/cpu/runs", "cpu", workers=2)

Runs that share a traced model run one after the other in the same process.
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
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf
from tqdm import tqdm

from prl_keras.experiments.data.load import load
from prl_keras.experiments.runs import results, strategies
from prl_keras.experiments.runs.models import trace_key
from prl_keras.experiments.runs.run import run
from prl_keras.experiments.runs.training import CHECKPOINTS

_CHECKPOINT_SECONDS = 60
_GROUP = 10  # the most runs that a process gets at a time


def pending(
    configs: Sequence[Any], directory: pathlib.Path | str, scale: str, shard: tuple[int, int] = (0, 1)
) -> tuple[list[Any], list[str]]:
    """The runs that are left to do, of a shard `(i, n)`.

    It is the i-th of every n runs, ordered by method, i from 0. All n shards together are all the runs.

    Returns:
        (the configs without a result, a message for each unreadable result).
    """
    contents, problems = results.read_all(directory)
    done = {content["config"] for content in contents if content.get("scale") == scale}
    by_method = list(itertools.chain.from_iterable(_groups(configs)))  # the same work for each shard
    return [config for config in by_method[shard[0] :: shard[1]] if config not in done], problems


def sweep(
    configs: Sequence[Any],
    directory: pathlib.Path | str,
    scale: str,
    workers: int = 1,
    data_options: Mapping[str, Any] | None = None,
    strategy: Mapping[str, Any] | None = None,
) -> dict[Any, str]:
    """Runs every config in the folder `results.path_of(directory, config)`, with a progress bar.

    A run that was killed resumes from its last checkpoint, at most a minute older. An error stops only its
    own run, but in a multi_worker cluster the whole sweep.

    Args:
        configs: A list of `RunConfig`; existing results are replaced (`pending` lists the missing ones).
        directory: Made if missing.
        scale: "paper" or "cpu".
        workers: The number of processes, at least 1; they share the processor's cores.
        data_options: Arguments of `load`.
        strategy: Arguments of `strategies.make_strategy`; each worker makes its own strategy. In a
            multi_worker cluster all processes call this with the same arguments and a shared directory; the
            chief writes.

    Returns:
        The failures: maps a config to the error message.

    Raises:
        ValueError, OSError, ImportError: before any run, if a data set cannot be loaded.
        ValueError: if the folder holds results made from other data.
        ChildProcessError: if a worker process died.
    """
    directory = pathlib.Path(directory)
    arguments = tuple((strategy or {"name": "one"}).items())
    if workers == 1:
        # The chief writes while others may still read the folder.
        strategies.check_same(_strategy(arguments), len(configs), "how many runs are missing")
    directory.mkdir(parents=True, exist_ok=True)
    for left in directory.glob(f"*/{CHECKPOINTS}"):  # a kill after the result was written leaves it
        if results.is_finished(left.parent):
            shutil.rmtree(left, ignore_errors=True)
    job = functools.partial(
        _run_group, directory=directory, scale=scale, data_options=data_options or {}, strategy=arguments
    )
    groups = _groups(configs)
    total = sum(config.epochs for config in configs)
    is_terminal = sys.stderr.isatty()
    with tqdm(total=total, unit="epoch", mininterval=0.5 if is_terminal else 30) as bar:
        contents, _ = results.read_all(directory)
        for name in {config.dataset for config in configs}:
            source = _load(name, tuple((data_options or {}).items())).source
            check_source(directory, contents, name, source)
        if workers == 1:
            with strategies.failing_together(_strategy(arguments)):
                return _merge(job(group, tell=bar.update) for group in groups)
        return _merge(_in_processes(job, groups, workers, bar))


def check_source(
    directory: pathlib.Path | str, contents: Sequence[Mapping[str, Any]], name: str, source: str
) -> None:
    """Checks that the results of a folder, from `results.read_all`, were made from a `Dataset`.

    Raises:
        ValueError: if a result of that data set has another source.
    """
    sources = {content.get("source") for content in contents if content["config"].dataset == name}
    if others := sources - {source}:
        raise ValueError(
            f"{directory} holds results of {' and '.join(map(repr, others))}; these data are "
            f"{source!r}. Give another --output_dir, or remove those results."
        )


def _groups(configs):
    """The configs in lists of at most `_GROUP`, each list sharing a traced model."""
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
                raise  # the other processes may still be in this run
            failures[config] = f"{type(error).__name__}: {error}"
            tqdm.write(
                f"{results.path_of(directory, config).name} failed: {failures[config]}", file=sys.stderr
            )
    return failures


def _run_one(config, directory, scale, data_options, strategy, tell):
    path = results.path_of(directory, config)
    progress = _TellEpochs(tell)
    train = functools.partial(
        run, config, path, verbose=0, callbacks=[progress], strategy=strategy,
        dataset=_load(config.dataset, tuple(data_options.items())), models=_MODELS,
        checkpoint_seconds=_CHECKPOINT_SECONDS, with_model=False, about={"scale": scale},
    )  # fmt: skip
    left = path.exists()
    try:
        train(resume=True, overwrite=results.is_finished(path))
    except ValueError as error:
        if not left or not strategies.is_alone(strategy):
            raise
        tqdm.write(f"{path.name} starts anew: {error}", file=sys.stderr)
        train(overwrite=True)
    tell(config.epochs - progress.epochs)  # the epochs before a resume


class _TellEpochs(keras.callbacks.Callback):
    def __init__(self, tell):
        super().__init__()
        self.tell, self.epochs = tell, 0

    def on_epoch_end(self, epoch, logs=None):
        self.epochs += 1
        self.tell(1)


_MODELS: dict[Any, keras.Model] = {}  # a process keeps them from run to run


@functools.lru_cache(maxsize=2)
def _load(name, data_options):
    return load(name, **dict(data_options))


def _strategy(arguments):
    return strategies.make_strategy(**dict(arguments))


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
        raise ChildProcessError(
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
    """Ends this process when its parent process has ended, perhaps killed."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _in_process(job, group):
    return job(group, tell=_TICKS.put)
