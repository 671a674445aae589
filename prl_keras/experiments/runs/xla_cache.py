"""XLA's compilations for a GPU, kept in a folder for the next process."""

import hashlib
import os
import pathlib
import subprocess

import tensorflow as tf

from prl_keras import files


def keep_compilations(cache_dir: pathlib.Path | str | None = None, device_type: str = "GPU") -> None:
    """Makes XLA keep what it compiles and tunes for a GPU, and load what it has kept.

    Call it before TensorFlow looks for devices: then it reads TF_XLA_FLAGS, which this sets, and XLA_FLAGS.
    One that is set already stays, so `TF_XLA_FLAGS= XLA_FLAGS=` before a command turns this off. Nothing is
    kept without a GPU of NVIDIA, or if the folder cannot be written.

    Args:
        cache_dir: As for `files.cache_folder`. It gets a folder for each kind of GPU and version of
            TensorFlow, which XLA itself does not tell apart.
        device_type: What XLA compiles for; "CPU" to try it without a GPU.
    """
    gpus = _gpus()
    if not gpus:
        return
    depends_on = (tf.version.VERSION, tf.version.GIT_VERSION, gpus, os.environ.get("XLA_FLAGS"))
    key = hashlib.sha256(repr(depends_on).encode()).hexdigest()[:16]
    folder = (files.cache_folder(cache_dir) / f"xla-{key}").absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return
    if not os.access(folder, os.W_OK) or any(letter.isspace() for letter in str(folder)):
        return  # the flags end at a space
    os.environ.setdefault(
        "TF_XLA_FLAGS",
        f"--tf_xla_persistent_cache_directory={folder} --tf_xla_persistent_cache_device_types={device_type}",
    )
    os.environ.setdefault("XLA_FLAGS", f"--xla_gpu_per_fusion_autotune_cache_dir={folder}")


def _gpus():
    """Names and drivers of the GPUs as text, "" without any. TensorFlow would read its flags if asked."""
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
