"""One training step compiled by XLA equals the brute-force oracle, for every method."""

import functools

import keras
import pytest

import prl_keras as prl
from tests.promises.oracle_test import (
    KINDS,
    MAX_NORM,
    METHODS,
    PAIRS,
    assert_same_weights,
    kinds,
    make_batch,
    make_network,
    oracle_step,
    reset,
    sgd_update,
)


@functools.cache
def models(method):
    """As `oracle_test.make_models`, compiled by XLA."""
    kind = kinds(method)[0]
    options = {"max_norm": MAX_NORM[method]} if method in MAX_NORM else {}
    optimizer = keras.optimizers.SGD(0.1)
    model = prl.build(
        method,
        lambda: make_network(kind, "mlp"),
        loss=KINDS[kind][2],
        optimizer=optimizer,
        epsilon=0.3,
        jit_compile=True,
        **options,
    )
    assert model.jit_compile is True
    names = ("network_a", "network_b") if method in PAIRS else ("network",)
    networks = [getattr(model, name, model) for name in names]
    return model, networks, [make_network(kind, "mlp", head=False) for _ in networks]


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
