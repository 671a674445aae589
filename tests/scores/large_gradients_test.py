"""Gradients of large matrices: one entry that is not finite is found, and no number is taken for one."""

import numpy as np
import pytest
import tensorflow as tf

from prl_keras.inputs import nonfinite


def gradient(value=0.0, place=(0, 0)):
    entries = np.full((1024, 1024), 1e30, "float32")
    entries[place] = value
    return [tf.constant(entries), tf.zeros(3), None]


@pytest.mark.parametrize("jit_compile", [False, True])
def test_one_entry_decides(jit_compile):
    are_finite = tf.function(nonfinite.are_finite, jit_compile=jit_compile)
    assert are_finite(gradient())
    for value in (np.nan, np.inf, -np.inf):
        for place in ((0, 0), (511, 3), (1023, 1023)):
            assert not are_finite(gradient(value, place))
    opposite = gradient(np.inf)[0].numpy()
    opposite[0, 1] = -np.inf
    assert not are_finite([tf.constant(opposite)])
