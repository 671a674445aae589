"""What all the tests share."""

import fnmatch
import gc

import keras  # noqa: F401
import pytest
import tensorflow as tf

# On a GPU convolutions and matrix products are of 10 bits otherwise, and the oracle is met to 1e-4 only.
tf.config.experimental.enable_tensor_float_32_execution(False)

# Python would look through all that these packages hold again and again: a twentieth of the tests' time.
gc.freeze()
gc.set_threshold(50_000, 20, 20)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Marks the cases of a test as `long` that its mark `daily` does not name."""
    unmatched, names_nodes = {}, any("::" in argument for argument in config.args)
    for item in items:
        for mark in item.iter_markers("daily"):
            case = item.callspec.id
            found = [pattern for pattern in mark.args if fnmatch.fnmatchcase(case, pattern)]
            unmatched.setdefault(item.nodeid.removesuffix(f"[{case}]"), set(mark.args)).difference_update(
                found
            )
            if not found:
                item.add_marker(pytest.mark.long)
    wrong = {test: patterns for test, patterns in unmatched.items() if patterns}
    if wrong and not names_nodes:
        raise pytest.UsageError(f"daily() names cases that are not there: {wrong}")
