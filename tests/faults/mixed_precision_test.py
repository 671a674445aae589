"""Overflow in float16."""

import keras
import numpy as np
import pytest
from arrays import assert_all_equal
from small_classifier import LOSS, X, Y, network

import prl_keras as prl


@pytest.mark.fault(17)
def test_a_step_that_overflows_in_float16_is_skipped_and_counts_for_nothing():
    previous = keras.config.dtype_policy()
    try:
        keras.config.set_dtype_policy("mixed_float16")
        model = prl.RobustModel(network(), rule=prl.Trim(prl.linear_ramp(0.4, steps=2)))
    finally:
        keras.config.set_dtype_policy(previous)
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1), initial_scale=2.0**40)
    model.compile(optimizer, LOSS)
    before, scales = model.get_weights(), []
    while int(optimizer.iterations) == 0 and len(scales) < 60:
        assert_all_equal(before, model.get_weights())
        logs = model.train_on_batch(X, Y, return_dict=True)
        scales.append(float(optimizer.dynamic_scale))
        # The schedule stands at step 0: nothing is dropped for an overflow.
        assert logs["kept_fraction"] == 1 and np.isfinite(list(logs.values())).all()
    assert 2 <= len(scales) < 60 and scales[0] == 2.0**39  # halved at each overflow
    assert all(np.isfinite(w).all() for w in model.get_weights())
    assert any(np.any(a != b) for a, b in zip(before, model.get_weights()))
    assert model.train_on_batch(X, Y, return_dict=True)["kept_fraction"] == 9 / 12
