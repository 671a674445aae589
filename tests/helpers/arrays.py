"""Comparisons of two lists of arrays, such as the weights of two models."""

import numpy as np


def assert_all_close(got, expected, rtol=1e-5, atol=1e-6, err_msg=""):
    for one, other in zip(got, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=rtol, atol=atol, err_msg=err_msg)


def assert_all_equal(got, expected):
    for one, other in zip(got, expected, strict=True):
        np.testing.assert_array_equal(one, other)
