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

import tensorflow as tf
from tensorflow.python.distribute import multi_worker_util

from prl_keras import files

STRATEGIES = ("auto", "one", "mirrored", "multi_worker")
_EXAMPLE = '{"cluster": {"worker": ["host1:2222", "host2:2222"]}, "task": {"type": "worker", "index": 0}}'


@functools.cache  # TensorFlow starts its devices once
def make_strategy(name="auto", virtual_devices=None, cluster_timeout=600):
    """A strategy, made before TensorFlow has done anything else in this process; the same one each time.

    Args:
        name: A name in `STRATEGIES`.
            one           TensorFlow's default device, a GPU if there is one
            mirrored      all GPUs of this machine, or all its virtual devices
            multi_worker  all processes of the cluster that the environment variable TF_CONFIG describes
            auto          multi_worker if TF_CONFIG has a cluster, else mirrored if there are several
                          devices, else one
        virtual_devices: Split the CPU into so many logical devices, to try replicas without GPUs.
        cluster_timeout: Seconds in which all processes of the cluster must have come; else this one ends,
            with a traceback and exit status 1.

    Returns:
        A `tf.distribute.Strategy`.

    Raises:
        ValueError: for an unknown name, a TF_CONFIG that is none, or virtual devices that do not fit.
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
        return tf.distribute.MirroredStrategy(cpus)  # of None: all GPUs
    return tf.distribute.get_strategy()


def is_alone(strategy):
    """Whether this process trains by itself, be it on several devices."""
    return not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)


def is_chief(strategy):
    """Whether this process is the one that writes files: the only one, or the first of several."""
    if is_alone(strategy):
        return True
    resolver = strategy.cluster_resolver
    return multi_worker_util.is_chief(resolver.cluster_spec(), resolver.task_type, resolver.task_id)


def check_same(strategy, number, what):
    """Waits for all the processes.

    Raises:
        ValueError: in all of them, if their numbers (integers) are not the same.
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


def wait_for_all(strategy):
    """Returns when all the processes have come here."""
    check_same(strategy, 0, "where they are")  # a collective: each waits for the others


@contextlib.contextmanager
def failing_together(strategy):
    """In a cluster an error in the block ends this process at once, with its message and exit status 1.

    The other processes wait for this one at the next collective. That it is gone they see by its missing
    heartbeats; of a process that left in good order TensorFlow may tell them nothing.
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
def written_by_chief(strategy, path):
    """`files.replacing` for the chief; for the others a path that comes to nothing.

    TensorFlow reads some variables of a model on all the processes at a time, so all of them save it.
    """
    if is_chief(strategy):
        with files.replacing(path) as temporary:
            yield temporary
    else:
        with tempfile.TemporaryDirectory() as folder:
            yield pathlib.Path(folder) / pathlib.Path(path).name


def sharded_by_data(dataset):
    """`dataset` so that each process takes its share of every global batch, and not of the files."""
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    return dataset.with_options(options)


def _tf_config():
    text = os.environ.get("TF_CONFIG", "")
    try:
        config = json.loads(text or "{}")
        if not isinstance(config, dict):
            raise TypeError("not an object")
        if config and not (isinstance(config["cluster"], dict) and isinstance(config["task"], dict)):
            raise TypeError("cluster or task is no object")
        if config and not (
            config["task"].get("type") in ("chief", "worker") and isinstance(config["task"].get("index"), int)
        ):
            raise TypeError("a task has the type 'chief' or 'worker' and a whole number as its index")
        if config and not 0 <= config["task"]["index"] < len(
            config["cluster"].get(config["task"]["type"], ())
        ):
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
    tf.get_logger().setLevel("WARNING")  # else a line for every reduction that it traces
    waiting = f"Waiting at most {timeout} seconds for the {count} processes of TF_CONFIG. "
    waiting += "If one does not come, this one ends, with a list of its threads."
    print(waiting, file=sys.stderr, flush=True)
    # TensorFlow waits for ever and lets no Python run meanwhile, neither threads nor signal handlers.
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
