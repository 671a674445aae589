"""Sums tell whether entries are finite: one entry that is not is found, and no large one is taken for one."""

import contextlib

import numpy as np
import pytest
import tensorflow as tf

from prl_keras.inputs import nonfinite
from prl_keras.keras_gaps import xla

BAD = (np.nan, np.inf, -np.inf)
WAYS = {"off": xla._off, "unknown": contextlib.nullcontext, "xla": contextlib.nullcontext}


def traced(function, way):
    def within(argument):
        with WAYS[way]():
            return function(argument)

    return tf.function(within, jit_compile=way == "xla")


def entries(*shape):
    return np.full(shape, np.finfo("float32").max)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("shape", [(1024, 1024), (3, 128, 64)], ids=str)
def test_one_entry_of_a_gradient_decides(shape, way):
    are_finite = traced(lambda gradient: nonfinite.are_finite([gradient, tf.zeros(3), None]), way)
    assert are_finite(entries(*shape))
    for value in BAD:
        for place in (0, 511, -1):
            gradient = entries(*shape)
            gradient.flat[place] = value
            assert not are_finite(gradient)
    opposite = entries(*shape)
    opposite.flat[:2] = np.inf, -np.inf
    assert not are_finite(opposite)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("shape", [(6, 5), (6, 3, 4), (6, 0), (0, 5), (6,)], ids=str)
def test_one_entry_of_an_example_decides(shape, way):
    find = traced(nonfinite.find, way)
    np.testing.assert_array_equal(find(entries(*shape)), np.zeros(shape[0], bool))
    if np.prod(shape):
        x = entries(*shape)
        x.reshape(6, -1)[[1, 3, 4], -1] = BAD
        np.testing.assert_array_equal(find(x), [False, True, False, True, True, False])
