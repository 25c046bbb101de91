"""Running means and SWAG's Gaussian beside sums over all points at once, and its samples' covariance."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from modeconn_cli.training.averages import Average, Gaussian, gaussian_sample

POINTS = np.random.default_rng(0).normal(3, 1, (9, 5)) * [1, 0.1, 5, 1e-3, 2]


def filled(average: Average, points: np.ndarray = POINTS) -> Average:
    for w in points:
        average.add(torch.tensor(w, dtype=torch.float32))
    return average


def test_the_running_mean_is_the_mean() -> None:
    found = filled(Average(torch.zeros(5)))
    np.testing.assert_allclose(found.mean.numpy(), POINTS.astype("float32").astype(float).mean(0), rtol=1e-12)
    assert found.count == 9


def test_a_decaying_mean_weighs_points_by_their_age() -> None:
    found = filled(Average(torch.zeros(5), 0.7))
    ages = np.arange(8, -1, -1)
    weights = np.where(ages == 8, 0.7**8, 0.3 * 0.7**ages)
    assert weights.sum() == pytest.approx(1)
    np.testing.assert_allclose(found.mean.numpy(), weights @ POINTS.astype("float32"), rtol=1e-6)


def test_the_gaussian_has_the_points_moments_and_the_last_deviations() -> None:
    found = filled(Gaussian(torch.zeros(5), 4))
    assert isinstance(found, Gaussian)
    points = POINTS.astype("float32").astype(float)
    np.testing.assert_allclose(found.variance(1e-30).numpy(), points.var(0), rtol=1e-8)
    # From the mean of the points so far, itself among them, as in the paper.
    wanted = [points[i] - points[: i + 1].mean(0) for i in range(5, 9)]
    np.testing.assert_allclose(found.deviations.numpy(), wanted, rtol=1e-4, atol=1e-6)


def test_the_first_deviation_is_zero_and_the_variance_has_a_floor() -> None:
    found = filled(Gaussian(torch.zeros(5), 4), POINTS[:1])
    assert isinstance(found, Gaussian)
    assert not found.deviations.any()
    assert found.variance(1e-3).tolist() == pytest.approx([1e-3] * 5)


def test_what_was_gathered_goes_on_from_a_saved_state() -> None:
    whole, part, rest = filled(Gaussian(torch.zeros(5), 4)), Gaussian(torch.zeros(5), 4), Gaussian(torch.zeros(5), 4)
    filled(part, POINTS[:6])
    rest.load(part.state())
    filled(rest, POINTS[6:])
    assert isinstance(whole, Gaussian)
    assert torch.equal(rest.deviations, whole.deviations)
    assert torch.equal(rest.mean, whole.mean)
    assert torch.equal(rest.square, whole.square)


def test_samples_have_the_covariance_of_the_paper() -> None:
    """Of 10^5 samples, beside diag(sigma^2) / 2 + D^T D / (2 (K - 1)); taking the variance for the deviation fails."""
    found = filled(Gaussian(torch.zeros(5, dtype=torch.float64), 4))
    assert isinstance(found, Gaussian)
    variance, D = found.variance(1e-30), found.deviations.double()
    generator = torch.Generator().manual_seed(1)
    z1, z2 = (torch.randn(100_000, n, generator=generator, dtype=torch.float64) for n in (5, 4))
    drawn = gaussian_sample(found.mean, variance, D, z1, z2).numpy()
    wanted = np.diag(variance.numpy()) / 2 + D.numpy().T @ D.numpy() / (2 * 3)
    deviation = np.sqrt(np.diag(wanted))
    scale = np.outer(deviation, deviation)
    np.testing.assert_allclose(np.cov(drawn.T) / scale, wanted / scale, atol=0.02)
    np.testing.assert_allclose((drawn.mean(0) - found.mean.numpy()) / deviation, 0, atol=0.02)
    wrong = gaussian_sample(found.mean, variance.square(), D, z1, z2).numpy()
    assert np.abs(np.cov(wrong.T) / scale - wanted / scale).max() > 0.2


def test_one_sample_is_the_formula() -> None:
    mean, variance, D = torch.tensor([1.0, 2]), torch.tensor([4.0, 9]), torch.tensor([[1.0, 0], [0, 2], [1, 1]])
    found = gaussian_sample(mean, variance, D, torch.tensor([1.0, -1]), torch.tensor([1.0, 2, 3]))
    wanted = [1 + 2 / 2**0.5 + (1 + 3) / 4**0.5, 2 - 3 / 2**0.5 + (4 + 3) / 4**0.5]
    assert found.tolist() == pytest.approx(wanted)


def test_points_in_half_precision_are_averaged_in_more() -> None:
    found = Gaussian(torch.zeros(1, dtype=torch.float16), 2)
    for w in (1.0, 1.001, 1.002):
        found.add(torch.tensor([w], dtype=torch.float16))
    exact = torch.tensor([1.0, 1.001, 1.002], dtype=torch.float16).double()
    assert float(found.mean) == pytest.approx(float(exact.mean()), rel=1e-12)
    assert found.deviations.dtype == torch.float32
    assert float(found.deviations[-1]) == pytest.approx(float(exact[2] - exact.mean()), rel=1e-6)
