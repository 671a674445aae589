"""Three parts: what a training step costs in kernels, in seconds and memory, and in PyTorch."""

import dataclasses
import gc
import importlib.util
import itertools
import json
import pathlib
import subprocess
import sys
import time

import tensorflow as tf

from prl_keras import METHODS
from prl_keras.experiments import benchmark
from prl_keras.experiments.benchmark.kernel_rows import rows
from prl_keras.experiments.benchmark.kernels import count_row
from prl_keras.experiments.benchmark.measure import timed_rounds, warm_up
from prl_keras.experiments.benchmark.steps import gpu_peak, make_work
from prl_keras.experiments.benchmark.suites import Case
from prl_keras.experiments.gpu_check.items import Items, OutOfTime
from prl_keras.experiments.gpu_check.job import Job, Size

EPSILON = 0.45
_FIRST = 5  # so many methods come before the others, in all variants
_VARIANTS = tuple(itertools.product((False, True), ("float32", "bfloat16")))  # is_compiled, precision


def kernels(job: Job) -> None:
    """Counts the kernels of each step, as `python -m binaries.benchmark --suite=kernels` does."""
    by_title = {row.title: row for row in rows()[: job.size.most]}

    def count(title):
        counted = count_row(by_title[title])
        job.say(f"kernels: {title}: {counted.fusions} fusions")
        return counted._asdict()

    Items(job.path("kernels"), job.attempt).measure(by_title, count, job.until, job.say)


def steps(job: Job) -> None:
    """Measures seconds and memory of each method's step, with and without XLA, in float32 and bfloat16."""
    by_name = {name_of(case): case for case in step_cases(job.size)}
    timed = _Steps(job.size)

    def measure(name):
        facts = timed.measure(by_name[name])
        job.say(f"steps: {name}: {1000 * min(facts['seconds']):.2f} ms")
        return facts

    Items(job.path("steps"), job.attempt).measure(by_name, measure, job.until, job.say)


def step_cases(size: Size) -> list[Case]:
    """The cases of the part "steps": the most telling methods in all variants, then the others."""
    found = []
    for methods in (size.methods[:_FIRST], size.methods[_FIRST:]):
        for is_compiled, precision in _VARIANTS:
            for method in methods:
                case = Case(
                    method,
                    EPSILON if METHODS[method].drops_a_fraction else 0.0,
                    network=size.network,
                    norm="group" if METHODS[method].score == "gradient" else "batch",
                    batch_size=size.batch_size,
                    is_compiled=is_compiled,
                    precision=precision,
                )
                found += [case.baseline, case]
    return list(dict.fromkeys(found))


def name_of(case: Case) -> str:
    """The item of a case."""
    return f"{case.title}, {case.norm} norm, {case.precision}, {'XLA' if case.is_compiled else 'no XLA'}"


def pytorch(job: Job) -> None:
    """Times PyTorch's step of plain training, in a process of its own for each variant."""
    by_name = {
        f"{precision}, {'torch.compile' if is_compiled else 'eager'}": (is_compiled, precision)
        for is_compiled, precision in _VARIANTS
    }

    def measure(name):
        is_compiled, precision = by_name[name]
        options = {"batch_size": job.size.batch_size, "precision": precision, "is_compiled": is_compiled}
        options |= {"rounds": job.size.rounds, "least_seconds": job.size.least_seconds}
        facts = _in_pytorch(options, job.until)
        job.say(f"pytorch: {name}: {1000 * min(facts['seconds']):.2f} ms")
        return facts

    Items(job.path("pytorch"), job.attempt).measure(by_name, measure, job.until, job.say)


def lacks_pytorch() -> str:
    """Why there is no PyTorch to measure, or ""."""
    return "" if importlib.util.find_spec("torch") else "PyTorch is not installed here"


class _Steps:
    """Times cases beside their baselines, which stay in memory."""

    def __init__(self, size):
        self.size, self.baselines = size, {}

    def measure(self, case):
        """The `facts` of a case; its rounds are beside those of its baseline."""
        base = case.baseline
        if case == base:
            self.baselines[base], facts = _warm(case)
        else:
            if base not in self.baselines:
                self.baselines[base], _ = _warm(base)
            work, facts = _warm(case)
        works = {base: self.baselines[base]}
        if case != base:
            works[case] = work
        seconds: dict[Case, list[float]] = {base: [], case: []}
        for timings in timed_rounds(works, self.size.rounds, self.size.least_seconds):
            for timed, (each, _) in timings.items():
                seconds[timed].append(each)
        facts |= {"case": dataclasses.asdict(case), "seconds": seconds[case], "base_seconds": seconds[base]}
        del works
        gc.collect()  # the case's networks leave the device
        return facts


def _warm(case):
    """-> (the case's work after its first steps, their seconds and the peak of GPU memory that it adds)."""
    start, is_gpu = time.perf_counter(), gpu_peak() is not None
    before = tf.config.experimental.get_memory_info("GPU:0")["current"] if is_gpu else 0
    work = make_work(case)
    warm_up(work)
    facts = {"first_seconds": time.perf_counter() - start, "parameters": work.parameters, "peak": None}
    if is_gpu:
        tf.config.experimental.reset_memory_stats("GPU:0")  # trying out convolutions took more
        work.run(1)
        facts["peak"] = gpu_peak() - before
    return work, facts


def _in_pytorch(options, until):
    program = pathlib.Path(benchmark.__file__).parent / "pytorch.py"
    command = [sys.executable, str(program), json.dumps(options)]
    try:
        left = max(1.0, until - time.monotonic())
        done = subprocess.run(command, capture_output=True, text=True, timeout=left)
    except subprocess.TimeoutExpired as error:
        raise OutOfTime from error
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise RuntimeError(f"exit status {done.returncode}, {lines[-1] if lines else 'no message'}")
    return json.loads(done.stdout.strip().splitlines()[-1])
