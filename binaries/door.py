"""Shared by all programs: a quiet TensorFlow, flags of data and devices, errors as one line."""

import inspect
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # before TensorFlow is imported

from absl import app, flags

from prl_keras.experiments.runs.xla_cache import keep_compilations

flags.disclaim_key_flags()  # a flag defined here belongs to the program that calls the function


def data_flags(download: bool = True) -> None:
    """Defines the flags that locate the data; with `download` also the one that permits downloads."""
    flags.DEFINE_string("data_dir", None, "Folder of TensorFlow Datasets; their own default if left out.")
    flags.DEFINE_string(
        "cache_dir", None, "Where features and XLA's programs are kept; ~/.cache/prl_keras by default."
    )
    if download:
        flags.DEFINE_bool("download", False, "Let TensorFlow Datasets fetch what is missing.")


def device_flags(default: str, strategies: Sequence[str]) -> None:
    """Defines the flags of the devices: the arguments of `make_strategy`."""
    text = "Devices to train on; see prl_keras/experiments/runs/strategies.py."
    flags.DEFINE_enum("strategy", default, strategies, text)
    text = "Split the CPU into so many devices, to try replicas."
    flags.DEFINE_integer("virtual_devices", None, text, lower_bound=1)
    text = "Seconds in which all machines of TF_CONFIG must come."
    flags.DEFINE_integer("cluster_timeout", 600, text, lower_bound=1)


def config_flags(config: Any) -> None:
    """Defines the flags of a run's data, size and network: fields of `RunConfig`, with its defaults."""
    from prl_keras.experiments.data.load import DATASETS
    from prl_keras.experiments.runs.config import CORRUPTIONS
    from prl_keras.experiments.runs.networks import NETWORKS, NORMS, PRECISIONS

    texts: dict[str, tuple[str, Any]] = {
        "dataset": ("Data set.", list(DATASETS)),
        "corruption": ("Corruption of the training targets.", CORRUPTIONS),
        "network": ("Network; auto fits the data.", ["auto", *NETWORKS]),
        "norm": ("Normalization; auto fits the method.", ["auto", *NORMS]),
        "precision": ("What the layers compute in; weights and logits are float32.", list(PRECISIONS)),
        "epsilon": ("Fraction of the training targets to corrupt, in [0, 1).", float),
        "noise_seed": ("Seed of the corruption.", int),
        "epochs": ("Passes over the training data.", int),
        "train_size": ("Train on so many examples, a fixed random choice; all if left out.", int),
        "test_size": ("Test on so many examples; all if left out.", int),
        "seed": ("Seed of initial weights, dropout and batches.", int),
    }
    for name, (text, kind) in texts.items():
        default = getattr(config, name)
        if isinstance(kind, (list, tuple)):
            flags.DEFINE_enum(name, default, kind, text)
        else:
            {float: flags.DEFINE_float, int: flags.DEFINE_integer}[kind](name, default, text)


def run(program: Callable[..., Any], example: str) -> None:
    """Runs `program` with the values of the flags that its file defines, as keyword arguments.

    Args:
        program: Function. Its return value is the exit status. A ValueError, OSError or ImportError ends the
            process with its message, the usage and exit status 1.
        example: A flag that the error message for positional arguments shows.
    """
    app.run(main_of(program, example))


def main_of(program: Callable[..., Any], example: str) -> Callable[[list[str]], Any]:
    """The `main(argv)` that `run` passes to absl."""

    def main(argv):
        if len(argv) > 1:
            raise app.UsageError(f"Unknown arguments {argv[1:]}; flags look like {example}.")
        own = flags.FLAGS.get_key_flags_for_module(inspect.getmodule(program) or sys.modules["__main__"])
        values = {flag.name: flag.value for flag in own}
        keep_compilations(values.get("cache_dir"))
        try:
            return program(**values)
        except (ValueError, OSError, ImportError) as error:
            raise app.UsageError(str(error)) from error

    return main
