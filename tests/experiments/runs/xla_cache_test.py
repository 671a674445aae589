"""XLA's compilations are kept for the next process, for the device that they are of."""

import os

import pytest
from processes import python

from prl_keras.experiments.runs import xla_cache
from prl_keras.experiments.runs.xla_cache import keep_compilations

PROGRAM = """
import sys
import binaries.train  # imports what a program imports
from prl_keras.experiments.runs import xla_cache

xla_cache._gpus = lambda: "made up"
xla_cache.keep_compilations(sys.argv[1], sys.argv[2])
import tensorflow as tf

multiply = tf.function(lambda x: tf.linalg.matmul(x, x) + 1.0, jit_compile=True)
print(multiply(tf.fill([3, 3], 2.0))[0, 0].numpy())
"""


def run(folder, device_type, **environment):
    return python("-c", PROGRAM, folder, device_type, check=False, **environment)


@pytest.fixture
def no_flags(monkeypatch):
    for name in ("TF_XLA_FLAGS", "XLA_FLAGS"):
        monkeypatch.setenv(name, "")  # to be restored
        monkeypatch.delenv(name)


@pytest.mark.long
def test_the_next_process_reads_what_one_has_compiled(tmp_path, no_flags):
    assert run(tmp_path, "CPU").stdout == "13.0\n"
    (kept,) = tmp_path.glob("xla-*/*.pb")
    written = kept.stat().st_mtime_ns
    assert run(tmp_path, "CPU").stdout == "13.0\n"
    assert list(tmp_path.glob("xla-*/*.pb")) == [kept] and kept.stat().st_mtime_ns == written
    kept.write_bytes(kept.read_bytes()[:100])
    assert run(tmp_path, "CPU").returncode != 0  # it was read

    assert run(tmp_path, "GPU").stdout == "13.0\n"  # what runs on a CPU is not kept
    assert run(tmp_path, "CPU", TF_XLA_FLAGS="").stdout == "13.0\n"
    assert run(tmp_path, "CPU", XLA_FLAGS="--xla_cpu_enable_fast_math=false").stdout == "13.0\n"
    assert len(list(tmp_path.glob("xla-*/*.pb"))) == 2


def test_nothing_is_kept_without_a_gpu(tmp_path, no_flags, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    keep_compilations(tmp_path)
    assert "TF_XLA_FLAGS" not in os.environ and "XLA_FLAGS" not in os.environ and not list(tmp_path.iterdir())


def test_the_kind_of_gpu_and_flags_tell_folders_apart(tmp_path, no_flags, monkeypatch):
    program = tmp_path / "nvidia-smi"
    program.write_text('#!/bin/sh\necho "$GPU, 580.1"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    folders = set()
    for name, flags in (("H100", None), ("A100", None), ("H100", None), ("H100", "--xla_cpu_max_isa=AVX2")):
        monkeypatch.setenv("GPU", name)
        monkeypatch.delenv("TF_XLA_FLAGS", raising=False)
        monkeypatch.delenv("XLA_FLAGS", raising=False)
        if flags:
            monkeypatch.setenv("XLA_FLAGS", flags)
        keep_compilations(tmp_path / "cache")
        directory, device = os.environ["TF_XLA_FLAGS"].split()
        assert device == "--tf_xla_persistent_cache_device_types=GPU"
        folder = directory.removeprefix("--tf_xla_persistent_cache_directory=")
        assert os.environ["XLA_FLAGS"] == (flags or f"--xla_gpu_per_fusion_autotune_cache_dir={folder}")
        folders.add(folder)
    assert folders == {str(path) for path in (tmp_path / "cache").iterdir()} and len(folders) == 3


@pytest.mark.parametrize("folder", ["file", "file/folder", "with space"])
def test_a_folder_that_does_not_do_is_left_out(tmp_path, no_flags, monkeypatch, folder):
    monkeypatch.setattr(xla_cache, "_gpus", lambda: "made up")
    (tmp_path / "file").write_text("")
    keep_compilations(tmp_path / folder)
    assert "TF_XLA_FLAGS" not in os.environ and "XLA_FLAGS" not in os.environ
