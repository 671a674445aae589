"""Figure 1: the numbers behind the picture show what the picture claims."""

import dataclasses
import functools

import numpy as np
import pytest

from prl_keras.experiments.paper import figure1

KEPT = 56  # of 80


def analytic(toy, method, theta):
    residuals = theta * toy.inputs - toy.targets
    return residuals**2 if method == "spl" else 2 * np.abs(residuals * toy.inputs)


def kept_by(toy, method, theta):
    return np.argsort(analytic(toy, method, theta), kind="stable")[:KEPT]


def brute_force_fit(toy, method, theta):
    for _ in range(200):
        kept = kept_by(toy, method, theta)
        residuals = theta * toy.inputs - toy.targets
        theta -= 0.05 * np.mean(2 * residuals[kept] * toy.inputs[kept])
    return theta


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("figure1")

    @functools.cache
    def draw(seed):
        return folder / f"{seed}.png", figure1.draw(folder / f"{seed}.png", seed)

    return draw


@pytest.mark.parametrize("seed", [0, 1, 2])
class TestTheClaim:
    @pytest.mark.long
    def test_gradient_filtering_keeps_flat_ones_and_loss_filtering_steep_ones(self, drawn, seed):
        _, numbers = drawn(seed)
        prl_g, spl = numbers["prl_g"], numbers["spl"]
        assert prl_g["kept_corrupted"] == spl["kept_corrupted"] == 12, "both fail, in equal measure"
        assert 0 < prl_g["largest_gradient_norm"] < 0.1 * spl["largest_gradient_norm"]
        assert 0 < prl_g["largest_curvature"] < 0.001 * spl["largest_curvature"]

    @pytest.mark.long
    def test_gradient_filtering_ends_nearer_to_the_clean_optimum(self, drawn, seed):
        _, numbers = drawn(seed)
        assert numbers["prl_g"]["distance"] < 0.3 < 1.5 < numbers["spl"]["distance"]

    @pytest.mark.daily("0")
    def test_the_numbers_are_those_of_the_brute_force_fit(self, drawn, seed):
        _, numbers = drawn(seed)
        toy = figure1.make_toy(seed)
        optimum = np.linalg.lstsq(toy.inputs[:, None], toy.clean_targets, rcond=None)[0][0]
        np.testing.assert_allclose(numbers["clean_optimum"], optimum)
        for method in ("spl", "prl_g"):
            end = brute_force_fit(toy, method, numbers["start"])
            left = np.intersect1d(kept_by(toy, method, end), np.flatnonzero(toy.is_corrupted))
            expected = {
                "end": end,
                "distance": abs(end - optimum),
                "kept_corrupted": len(left),
                "largest_gradient_norm": analytic(toy, "prl_g", end)[left].max(),
                "largest_curvature": 2 * np.max(toy.inputs[left] ** 2),
            }
            assert numbers[method] == pytest.approx(expected, rel=1e-3, abs=1e-4)


class TestTheFit:
    def test_scores_are_the_loss_and_the_gradient_norm(self):
        toy = figure1.make_toy(3)
        for theta in (-1.0, 0.5, 2.0):
            for method in ("spl", "prl_g"):
                scores = figure1.score(toy, method, theta)
                np.testing.assert_allclose(scores, analytic(toy, method, theta), rtol=1e-4, atol=1e-5)

    def test_as_many_are_dropped_as_are_corrupted(self):
        toy = figure1.make_toy(3)
        kept = figure1.is_kept(figure1.score(toy, "spl", 0.5))
        np.testing.assert_array_equal(np.flatnonzero(kept), np.sort(kept_by(toy, "spl", 0.5)))
        assert (~kept).sum() == toy.is_corrupted.sum() == (toy.targets != toy.clean_targets).sum()

    @pytest.mark.long
    def test_equal_input_sizes_make_both_filters_one(self):
        toy = figure1.make_toy(0)
        assert abs(figure1.fit(toy, "spl", steps=50) - figure1.fit(toy, "prl_g", steps=50)) > 1
        signs = dataclasses.replace(toy, inputs=np.sign(toy.inputs))
        ends = [figure1.fit(signs, method, steps=50) for method in ("spl", "prl_g")]
        np.testing.assert_allclose(*ends, atol=1e-5)

    @pytest.mark.daily("prl_g-3.0")
    @pytest.mark.parametrize("method, start", [("spl", 1.0), ("prl_g", -0.25), ("prl_g", 3.0)])
    def test_only_the_failure_of_loss_filtering_hangs_on_the_start(self, method, start):
        toy = figure1.make_toy(0)
        assert abs(figure1.fit(toy, method, start) - toy.clean_optimum) < 0.3


class TestThePicture:
    def test_is_a_small_png_and_nothing_else_is_left(self, tmp_path):
        path = tmp_path / "0.png"
        figure1.draw(path, 0)
        assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
        assert 20_000 < path.stat().st_size < 200_000
        assert list(tmp_path.iterdir()) == [path]

    @pytest.mark.long
    def test_has_the_same_bytes_for_the_same_seed(self, drawn, tmp_path):
        path, numbers = drawn(0)
        assert figure1.draw(tmp_path / "again.png", 0) == numbers
        assert (tmp_path / "again.png").read_bytes() == path.read_bytes() != drawn(1)[0].read_bytes()
