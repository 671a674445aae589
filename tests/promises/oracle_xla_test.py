"""One training step compiled by XLA equals the brute-force oracle, for every method."""

import functools

import keras
import pytest

from tests.promises.oracle_test import (
    METHODS,
    assert_same_weights,
    kinds,
    make_batch,
    make_models,
    oracle_step,
    reset,
    sgd_update,
)


@functools.cache
def models(method):
    made = make_models(method, kinds(method)[0], "mlp", 0.3, keras.optimizers.SGD(0.1), jit_compile=True)
    assert made[0].jit_compile is True
    return made


@pytest.mark.daily("standard-7", "bootstrap-7", "prl_l-7", "co_prl_l-7")
@pytest.mark.parametrize("n", [1, 2, 7, 33])  # compiled anew for each size
@pytest.mark.parametrize("method", METHODS)
def test_one_step_equals_the_brute_force_oracle(method, n):
    kind = kinds(method)[0]
    model, networks, twins = models(method)
    x, y, s = make_batch(kind, "mlp", n, "some")
    reset(networks, twins)
    step = oracle_step(method, kind, 0.3, twins, x, y, s)
    model.train_on_batch(x, y, sample_weight=s)
    sgd_update(twins, step.gradients, {})
    assert_same_weights(networks, twins)
