"""One device, all devices of a machine, or several machines: `tf.distribute` strategies by name."""

import contextlib
import faulthandler
import functools
import json
import os
import pathlib
import sys
import tempfile
import traceback
from collections.abc import Iterator

import tensorflow as tf
from tensorflow.python.distribute import multi_worker_util

from prl_keras import files

STRATEGIES = ("auto", "one", "mirrored", "multi_worker")
_EXAMPLE = '{"cluster": {"worker": ["host1:2222", "host2:2222"]}, "task": {"type": "worker", "index": 0}}'


@functools.cache  # TensorFlow starts its devices once
def make_strategy(
    name: str = "auto", virtual_devices: int | None = None, cluster_timeout: int = 600
) -> tf.distribute.Strategy:
    """Makes a strategy; later calls return the same one. Call it before TensorFlow does anything else.

    Args:
        name: A name in `STRATEGIES`.
            one           TensorFlow's default device, a GPU if there is one
            mirrored      all GPUs of this machine, or all its virtual devices
            multi_worker  all processes of the cluster in the environment variable TF_CONFIG
            auto          multi_worker if TF_CONFIG has a cluster, else mirrored if there are several
                          devices, else one
        virtual_devices: Split the CPU into this many logical devices, to try replicas without GPUs.
        cluster_timeout: Seconds in which all processes of the cluster must start; otherwise this one exits
            with a traceback and status 1.

    Returns:
        A `tf.distribute.Strategy`.

    Raises:
        ValueError: for an unknown name, an invalid TF_CONFIG, or virtual devices that do not fit.
    """
    if name not in STRATEGIES:
        raise ValueError(f"strategy={name!r} is unknown; write one of {', '.join(STRATEGIES)}.")
    if name == "multi_worker" or (name == "auto" and "cluster" in _tf_config()):
        if virtual_devices:
            raise ValueError("Virtual devices are of one machine: leave them out with multi_worker.")
        return _multi_worker(cluster_timeout)
    if name == "one" and virtual_devices:
        raise ValueError(
            "strategy='one' trains on one device: write --strategy=mirrored for virtual devices."
        )
    cpus = _split_cpu(virtual_devices) if virtual_devices else None
    count = virtual_devices or len(tf.config.list_physical_devices("GPU"))
    if name == "mirrored" or (name == "auto" and count > 1):
        return tf.distribute.MirroredStrategy(cpus)  # None: all GPUs
    return tf.distribute.get_strategy()


def is_alone(strategy: tf.distribute.Strategy) -> bool:
    """Whether this process trains without others, on one or several devices."""
    return not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Whether this process writes the files: it is the only one, or the cluster's first."""
    if is_alone(strategy):
        return True
    resolver = strategy.cluster_resolver
    return multi_worker_util.is_chief(resolver.cluster_spec(), resolver.task_type, resolver.task_id)


def describe(strategy: tf.distribute.Strategy) -> str:
    """The devices in a few words, such as "CPU, 2 threads" or "2 replicas, NVIDIA H100"."""
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        device = tf.config.experimental.get_device_details(gpus[0]).get("device_name", gpus[0].name)
    else:
        threads = tf.config.threading.get_intra_op_parallelism_threads() or len(os.sched_getaffinity(0))
        device = f"CPU, {threads} threads"
    replicas = strategy.num_replicas_in_sync
    return f"{replicas} replicas, {device}" if replicas > 1 else device


def check_same(strategy: tf.distribute.Strategy, number: int, what: str) -> None:
    """Waits for all processes and compares their numbers.

    Raises:
        ValueError: in all processes, if the numbers differ.
    """
    if is_alone(strategy):
        return

    @tf.function
    def gathered():
        return tf.distribute.get_replica_context().all_gather(tf.constant([number], tf.int64), axis=0)

    numbers = strategy.experimental_local_results(strategy.run(gathered))[0].numpy().tolist()
    if len(set(numbers)) > 1:
        raise ValueError(
            f"The processes of the cluster do not agree on {what}: {numbers}. Give all of them the same "
            "flags, and an --output_dir that they share."
        )


def wait_for_all(strategy: tf.distribute.Strategy) -> None:
    """Returns when all processes have called it."""
    check_same(strategy, 0, "where they are")  # a collective: each waits for the others


@contextlib.contextmanager
def failing_together(strategy: tf.distribute.Strategy) -> Iterator[None]:
    """In a cluster, an error in the block ends this process at once, with its message and exit status 1.

    The other processes wait for this one at the next collective. They notice its death by its missing
    heartbeats; TensorFlow may not tell them about a process that exits cleanly.
    """
    try:
        yield
    except BaseException as error:
        if is_alone(strategy):
            raise
        if not isinstance(error, (ValueError, OSError, ImportError)):
            traceback.print_exc()
        hint = "This process ends, and the others with it. To go on, start all again with --resume."
        print(f"{type(error).__name__}: {error}\n{hint}", file=sys.stderr, flush=True)
        os._exit(1)


@contextlib.contextmanager
def written_by_chief(strategy: tf.distribute.Strategy, path: pathlib.Path | str) -> Iterator[pathlib.Path]:
    """`files.replacing` for the chief; for the others a temporary path that is thrown away.

    TensorFlow reads some variables of a model on all processes at once, so all of them must save it.
    """
    if is_chief(strategy):
        with files.replacing(path) as temporary:
            yield temporary
    else:
        with tempfile.TemporaryDirectory() as folder:
            yield pathlib.Path(folder) / pathlib.Path(path).name


def sharded_by_data(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """`dataset`, of which each process takes its share of every global batch, not of the files."""
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    return dataset.with_options(options)


def _tf_config():
    text = os.environ.get("TF_CONFIG", "")
    try:
        config = json.loads(text or "{}")
        if not isinstance(config, dict):
            raise TypeError("not an object")
        if not config:
            return config
        if not (isinstance(config["cluster"], dict) and isinstance(config["task"], dict)):
            raise TypeError("cluster or task is no object")
        kind, index = config["task"].get("type"), config["task"].get("index")
        if kind not in ("chief", "worker") or not isinstance(index, int):
            raise TypeError("a task has the type 'chief' or 'worker' and a whole number as its index")
        if not 0 <= index < len(config["cluster"].get(kind, ())):
            raise TypeError("the task's index is none of the cluster's")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"The environment variable TF_CONFIG is not as TensorFlow wants it ({error!r}): {text!r}. It "
            f"looks like {_EXAMPLE}, with the index of each process its own."
        ) from error
    return config


def _multi_worker(timeout):
    config = _tf_config()
    if not config:
        raise ValueError(
            f"strategy='multi_worker' needs the environment variable TF_CONFIG, such as {_EXAMPLE}, with the "
            "index of each process its own."
        )
    count = sum(len(config["cluster"].get(job, ())) for job in ("chief", "worker"))
    tf.get_logger().setLevel("WARNING")  # hides a line for every traced reduction
    waiting = f"Waiting at most {timeout} seconds for the {count} processes of TF_CONFIG. "
    waiting += "If one does not come, this one ends, with a list of its threads."
    print(waiting, file=sys.stderr, flush=True)
    # TensorFlow waits forever and blocks Python meanwhile, threads and signal handlers too.
    faulthandler.dump_traceback_later(timeout, exit=True)
    try:
        return tf.distribute.MultiWorkerMirroredStrategy()
    finally:
        faulthandler.cancel_dump_traceback_later()


def _split_cpu(count):
    cpu = tf.config.list_physical_devices("CPU")[0]
    try:
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * count)
    except RuntimeError as error:
        raise ValueError(f"virtual_devices={count} comes too late: TensorFlow has started.") from error
    return [f"CPU:{i}" for i in range(count)]
