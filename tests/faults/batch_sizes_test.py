"""Ragged last batches, batches of 1, fewer examples than a batch."""

import numpy as np
import pytest
from small_classifier import X, Y, compiled

import prl_keras as prl


@pytest.mark.fault(4)
class TestOddBatches:
    @pytest.mark.daily("5-4-False", "3-8-False")
    @pytest.mark.parametrize("jit_compile", [False, True])
    @pytest.mark.parametrize(("n", "batch_size"), [(11, 4), (5, 4), (3, 8), (1, 4)])
    def test_cost_at_most_two_traces(self, n, batch_size, jit_compile):
        traces = []
        model = compiled(
            jit_compile=jit_compile, rule=lambda s, r, t: traces.append(1) or prl.Trim(0.3)(s, r, t)
        )
        for _ in range(2):
            history = model.fit(X[:n], Y[:n], batch_size=batch_size, epochs=2, verbose=0).history
        assert 1 <= len(traces) <= 2
        assert np.isfinite(history["loss"]).all()
