"""The soak program, on a tenth of its steps, and what its data hold."""

import numpy as np
import pytest
from arrays import assert_all_equal
from soak import FaultyBatches, soak

from prl_keras import files


def test_a_batch_is_a_function_of_seed_epoch_and_index():
    one, other = FaultyBatches(3), FaultyBatches(3)
    for _ in range(5):
        other[7]
    assert_all_equal(one[9], other[9])
    other.epoch = 1
    assert one[9][0].shape != other[9][0].shape or not np.array_equal(one[9][0], other[9][0])


def test_the_data_are_ragged_not_finite_and_padded():
    batches = [FaultyBatches(0)[i] for i in range(100)]
    assert len({len(x) for x, _, _ in batches}) > 20
    is_bad = [~np.isfinite(x).all(axis=1) for x, _, _ in batches]
    assert 5 < sum(bad.any() and not bad.all() for bad in is_bad) < 30
    assert any(bad.all() and len(bad) > 3 for bad in is_bad)
    assert any((weights == 0).any() for _, _, weights in batches)


@pytest.mark.long  # about two minutes
def test_killed_again_and_again_it_ends_with_the_same_weights(tmp_path):
    figures = soak(tmp_path / "soak", steps=2000, kill_every=400, seed=1)
    assert figures == files.read_json(tmp_path / "soak" / "soak.json")
    assert figures["same_weights_when_killed"]
    assert figures["weights_finite"]
    assert figures["kills"] >= 2
    assert figures["examples_not_finite"] > 100
    assert figures["traces_after_the_first_epoch"] == 0
    assert figures["traces_of_the_step"] <= 2


@pytest.mark.parametrize(("steps", "kill_every"), [(1050, 400), (500, 400), (1000, 100)])
def test_settings_that_make_no_sense(tmp_path, steps, kill_every):
    with pytest.raises(ValueError, match=r"steps=|kill_every="):
        soak(tmp_path / "soak", steps, kill_every, seed=0)
    assert not (tmp_path / "soak").exists()
