"""Bad, large and numpy epsilons, and ramps longer than the training."""

import functools
import warnings

import numpy as np
import pytest
from small_classifier import X, Y, compiled

import prl_keras as prl
from prl_keras.experiments.runs.config import RunConfig


@pytest.mark.fault(1)
class TestEpsilon:
    @pytest.mark.parametrize("make", [prl.Trim, functools.partial(prl.linear_ramp, steps=10)])
    def test_of_half_or_more_is_warned_of_once(self, make):
        for epsilon in (0.5, 0.6):
            with pytest.warns(UserWarning, match="An epsilon of 0.5 or more") as seen:
                make(epsilon)
            assert [warning.filename for warning in seen] == [__file__]  # the user's own line
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            make(0.49)

    @pytest.mark.parametrize("epsilon", ["0.3", None, float("nan"), -0.1, 1, True])
    def test_that_is_no_fraction_is_refused_with_name_value_and_range(self, epsilon):
        for make in (prl.Trim, lambda e: prl.linear_ramp(e, 10)):
            with pytest.raises(ValueError, match=r"epsilon=.* must be a number in \[0, 1\)"):
                make(epsilon)

    def test_a_ramp_longer_than_the_training_is_warned_of(self):
        with pytest.warns(UserWarning, match=r"ramp_epochs=5 .* epochs=3"):
            RunConfig(ramp_epochs=5, epochs=3)

    def test_a_ramp_goes_only_as_far_as_the_training(self):
        model = compiled(rule=prl.Trim(prl.linear_ramp(0.4, steps=4)))
        kept = [model.fit(X, Y, batch_size=12, verbose=0).history["kept_fraction"][0] for _ in range(2)]
        assert kept == pytest.approx([1.0, 10 / 12])  # of the steps 0 and 1


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_numpy_epsilons_mean_their_decimal(dtype):
    for percent in range(100):
        rule = prl.Trim(dtype(percent / 100))
        assert np.count_nonzero(rule(np.arange(1000.0))) == max(1, 1000 - 10 * percent)
    labels = np.zeros(1000, int)
    assert prl.corrupt("symmetric", labels, dtype(0.7), 0, num_classes=3).is_corrupted.sum() == 700
