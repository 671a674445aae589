"""The first part: which device and versions there are, and whether the device computes what a CPU does."""

import importlib.metadata
import platform
import subprocess
import time
from typing import Any

import numpy as np
import tensorflow as tf

from prl_keras import files
from prl_keras.experiments.data import tfds
from prl_keras.experiments.gpu_check.items import Items
from prl_keras.experiments.gpu_check.job import Job
from prl_keras.experiments.runs import strategies

DEVICE = "device"  # the item; the others are comparisons
_PACKAGES = ("tensorflow", "keras", "numpy", "torch")
# Kind of arithmetic -> the largest difference, as a fraction of the largest value. TF32 and bfloat16 round
# each factor to 2^-11 and 2^-9.
_TOLERANCES = {"float32": 1e-5, "float32 as TF32": 2e-3, "bfloat16": 2e-2}


def run(job: Job) -> float:
    """Writes the items; returns the time at which it began, which tells how long a process takes to start.

    Raises:
        ValueError: without a GPU, unless this is a rehearsal; if the folder has results of another device.
        OSError, ImportError, ValueError: if the data are missing or damaged.
    """
    begun = time.monotonic()
    gpus = tf.config.list_physical_devices("GPU")
    if not gpus and job.size.name == "paper":
        raise ValueError(
            f"TensorFlow {tf.__version__} finds no GPU here. Install its CUDA libraries (pip install "
            "tensorflow[and-cuda]), or write --rehearsal to try all parts at a tiny size on the CPU."
        )
    facts = device_facts()
    job.say(f"{facts['device']}, TensorFlow {tf.__version__}")
    _check_same(job, facts)
    _check_data(job)
    items = Items(job.path("smoke"), job.attempt)
    items.found.clear()  # it takes a second, and the machine may have changed
    items.put(DEVICE, facts)
    kinds = [kind for kind in _TOLERANCES if gpus or kind != "float32 as TF32"]
    keys = [f"{name}, {kind}" for name in _OPERATIONS for kind in kinds]
    items.measure([DEVICE, *keys], _compare, job.until, job.say)
    for key in keys:
        job.say(f"{key}: {verdict(items.found[key])}")
    return begun


def verdict(facts: dict[str, Any]) -> str:
    """A comparison in a few words."""
    if "error" in facts:
        return f"failed: {facts['error']}"
    word = "agrees" if facts["agrees"] else "DIFFERS"
    return f"{word}, {facts['difference']:.1e} of at most {facts['tolerance']:.0e}"


def device_facts() -> dict[str, Any]:
    """The device, its driver and the versions."""
    gpus = tf.config.list_physical_devices("GPU")
    details = tf.config.experimental.get_device_details(gpus[0]) if gpus else {}
    build = tf.sysconfig.get_build_info()
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "device": strategies.describe(tf.distribute.get_strategy()),
        "compute_capability": ".".join(map(str, details.get("compute_capability", ()))) or None,
        "driver": _driver(),
        "cuda": build.get("cuda_version"),
        "cudnn": build.get("cudnn_version"),
        "tf32": tf.config.experimental.tensor_float_32_execution_enabled(),
        "versions": versions,
    }


def _driver():
    """The driver's version and the GPU's memory, as nvidia-smi says them; None where it is missing."""
    command = ["nvidia-smi", "--query-gpu=driver_version,memory.total", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip().splitlines()[0]


def _check_same(job, facts):
    """The times of two devices must not come to stand in one table."""
    about = {"size": job.size.name, "device": facts["device"]}
    about |= {name: facts["versions"][name] for name in ("tensorflow", "keras")}
    path = job.path("about")
    if path.exists():
        saved = files.read_json(path, about, "Take another --output_dir.")
        different = [f"{name} {saved[name]!r}, not {value!r}" for name, value in about.items()
                     if saved[name] != value]  # fmt: skip
        if different:
            raise ValueError(
                f"{job.output_dir} holds a check of {'; '.join(different)}. Take another --output_dir."
            )
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(path, about)


def _check_data(job):
    """Raises now what `load` would raise minutes later."""
    name = job.size.cells[0].dataset
    if name == "cifar10":
        options = {key: job.data_options.get(key) for key in ("data_dir", "download")}
        builder = tfds.open_builder(name, options["data_dir"], bool(options["download"]))
        tfds.read_split(builder, "test[:1]", lambda example: (example["label"],))


def _compare(key):
    name, kind = key.split(", ")
    rng = np.random.default_rng(0)
    operation, *shapes = _OPERATIONS[name]
    arrays = [rng.standard_normal(shape) for shape in shapes]
    with tf.device("CPU"):
        expected = operation(*(tf.constant(array, tf.float64) for array in arrays)).numpy()
    dtype = tf.bfloat16 if kind == "bfloat16" else tf.float32
    before = tf.config.experimental.tensor_float_32_execution_enabled()
    tf.config.experimental.enable_tensor_float_32_execution(kind == "float32 as TF32")
    try:
        found = tf.cast(operation(*(tf.constant(array, dtype) for array in arrays)), tf.float64).numpy()
    finally:
        tf.config.experimental.enable_tensor_float_32_execution(before)
    difference = float(np.abs(found - expected).max() / np.abs(expected).max())
    tolerance = _TOLERANCES[kind]
    return {"difference": difference, "tolerance": tolerance, "agrees": difference <= tolerance}


_OPERATIONS = {
    "convolution": (lambda x, kernel: tf.nn.conv2d(x, kernel, 1, "SAME"), (8, 32, 32, 64), (3, 3, 64, 64)),
    "matrix product": (tf.matmul, (512, 1024), (1024, 512)),
}
