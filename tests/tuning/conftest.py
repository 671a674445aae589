"""Searches of a few steps a trial: tracing a model takes longer than training it step by step."""

import pytest
import tensorflow as tf


@pytest.fixture(autouse=True, scope="module")
def eager():
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)
