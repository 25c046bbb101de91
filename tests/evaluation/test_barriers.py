"""Barriers by every convention against plain loops; the bootstrap against what is known of it in closed form."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from modeconn_cli.evaluation.barriers import CONVENTIONS, barrier_intervals, barriers, resampled_means, verdict


def slow(t, L):
    """One curve's barriers by the definitions, point by point."""
    line, start, end = [], L[0], L[-1]
    for s, value in zip(t, L, strict=True):
        line.append(value - ((1 - s) * start + s * end))
    middle = next(
        a + (b - a) * (0.5 - s) / (u - s)
        for s, u, a, b in zip(t, t[1:], L, L[1:], strict=False)
        if s <= 0.5 <= u  # on a point or between two
    )
    return {
        "above_line": sorted(line)[-1],
        "above_mean": sorted(L)[-1] - (start + end) / 2,
        "above_max": sorted(L)[-1] - sorted([start, end])[-1],
        "midpoint": middle - (start + end) / 2,
    }


@st.composite
def curves(draw):
    inner = draw(st.lists(st.integers(1, 999), max_size=7, unique=True))
    t = np.array([0.0, *[i / 1000 for i in sorted(inner)], 1.0])
    values = st.floats(-100, 100)
    rows = draw(st.integers(1, 4))
    L = [[draw(values) for _ in t] for _ in range(rows)]
    return t, np.array(L)


@given(curves())
def test_conventions_are_their_definitions(curve):
    t, L = curve
    found = barriers(t, L)
    assert set(found) == set(CONVENTIONS)
    for name in CONVENTIONS:
        np.testing.assert_allclose(found[name], [slow(t, row)[name] for row in L], rtol=1e-12, atol=1e-10)
        np.testing.assert_allclose(barriers(t, L[0])[name], found[name][0], rtol=0, atol=0)


@given(curves())
def test_bounds_that_the_ends_give(curve):
    t, L = curve
    found = barriers(t, L)
    assert (found["above_line"] >= 0).all()
    assert (found["above_max"] >= 0).all()
    assert (found["above_mean"] >= np.abs(L[:, 0] - L[:, -1]) / 2 - 1e-9).all()
    assert (found["above_mean"] >= found["midpoint"] - 1e-9).all()


@pytest.mark.parametrize(
    ("t", "L", "wanted"),
    [
        ([0, 0.5, 1], [1, 4, 2], (2.5, 2.5, 2, 2.5)),
        ([0, 0.75, 1], [1, 4, 3], (1.5, 2, 1, 1)),
        ([0, 0.25, 0.5, 1], [3, 4, 0, 1], (1.5, 2, 1, -2)),
        ([0, 1], [1, 5], (0, 2, 0, 0)),
        ([0, 0.4, 0.6, 1], [2, 1, 1, 2], (0, 0, 0, -1)),
        ([0, 0.4, 0.8, 1], [0, 1, 3, 0], (3, 3, 3, 1.5)),
    ],
)
def test_conventions_worked_by_hand(t, L, wanted):
    found = barriers(np.array(t, dtype=float), np.array(L, dtype=float))
    np.testing.assert_allclose([found[name] for name in CONVENTIONS], wanted, atol=1e-12)


# ---------------------------------------------------------------------------------------------- resampling


def test_two_examples_have_three_means_in_binomial_shares():
    means = resampled_means(torch.tensor([[0.0, 1.0]]), 40_000)
    assert means.shape == (40_000, 1)
    values, counts = np.unique(means, return_counts=True)
    assert values.tolist() == [0, 0.5, 1]
    np.testing.assert_allclose(counts / 40_000, [0.25, 0.5, 0.25], atol=0.01)  # four standard errors


def test_mean_and_covariance_are_the_analytic_bootstraps():
    """Bootstrap means have the sample's mean and its population covariance over n."""
    generator = torch.Generator().manual_seed(1)
    base = torch.randn(60, generator=generator, dtype=torch.float64)
    values = torch.stack([base.exp(), 2 - base, torch.randn(60, generator=generator, dtype=torch.float64)])
    R = 40_000
    means = resampled_means(values, R)
    covariance = np.cov(values.numpy(), bias=True) / 60
    spread = np.sqrt(np.diag(covariance))
    assert np.all(np.abs(means.mean(0) - values.numpy().mean(1)) < 4 * spread / np.sqrt(R))
    found = np.cov(means.T)
    np.testing.assert_allclose(found, covariance, atol=0.03 * np.outer(spread, spread).max(), rtol=0.04)
    assert covariance[0, 1] < 0


def test_a_constant_offset_along_the_path_has_no_spread():
    base = torch.rand(50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    means = resampled_means(torch.stack([base, base + 3, base - 1]), 200)
    assert means.std(0).min() > 0.01
    np.testing.assert_allclose(means[:, 1] - means[:, 0], 3, atol=1e-12)
    np.testing.assert_allclose(means[:, 2] - means[:, 0], -1, atol=1e-12)
    intervals = barrier_intervals(np.array([0, 0.5, 1]), means.mean(0), means, 0.95)
    for name in CONVENTIONS:
        assert intervals[name]["high"] - intervals[name]["low"] < 1e-10


def test_many_examples_are_resampled_in_parts_that_differ():
    n = 300_000  # more than a part holds fourteen resamples of
    values = torch.stack([torch.ones(n), torch.arange(n).double() / n])
    means = resampled_means(values, 30)
    assert means.shape == (30, 2)
    np.testing.assert_array_equal(means[:, 0], 1)
    assert len(np.unique(means[:, 1])) == 30
    deviation = (means[:, 1] - 0.5) / np.sqrt(1 / 12 / n)
    assert np.abs(deviation).max() < 5
    assert 0.6 < deviation.std() < 1.5


def test_resampling_depends_on_its_seed_alone():
    values = torch.rand(3, 20, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(1)
    first = resampled_means(values, 50)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    np.testing.assert_array_equal(resampled_means(values, 50), first)
    assert torch.equal(torch.get_rng_state(), state)
    assert not np.array_equal(resampled_means(values, 50, seed=1), first)


def test_booleans_and_floats_are_averaged_in_float64():
    wrong = torch.tensor([[True] * 3 + [False] * 7])
    np.testing.assert_array_equal(resampled_means(wrong, 100), resampled_means(wrong.double(), 100))
    fine = torch.full((1, 1000), 1 + 1e-12, dtype=torch.float64)
    np.testing.assert_allclose(resampled_means(fine, 5), 1 + 1e-12, rtol=1e-14)


# ----------------------------------------------------------------------------------------------- intervals


def test_intervals_are_percentiles_of_the_resampled_barriers():
    rng = np.random.default_rng(0)
    t, L = np.array([0, 0.3, 0.5, 1]), np.array([1, 2, 4, 1.5])
    resampled = L + rng.normal(size=(1001, 4))
    found = barrier_intervals(t, L, resampled, 0.9)
    for name in CONVENTIONS:
        ordered = sorted(slow(t, row)[name] for row in resampled)
        assert found[name]["value"] == pytest.approx(slow(t, L)[name], abs=1e-12)
        assert found[name]["low"] == pytest.approx(ordered[50], abs=1e-12)  # 1001 values: whole ranks
        assert found[name]["high"] == pytest.approx(ordered[950], abs=1e-12)


@pytest.mark.parametrize(("confidence", "least", "most"), [(0.95, 0.88, 0.985), (0.5, 0.4, 0.6)])
def test_intervals_cover_as_often_as_they_say(confidence, least, most):
    """Examples whose loss at 1/2 lies 0.3 above the ends' on average, in many data sets."""
    generator = torch.Generator().manual_seed(0)
    t, covered, trials = np.array([0, 0.5, 1]), 0, 300
    for _ in range(trials):
        values = torch.randn(3, 60, generator=generator, dtype=torch.float64)
        values[1] += 0.3
        resampled = resampled_means(values, 200)
        interval = barrier_intervals(t, values.mean(1).numpy(), resampled, confidence)["midpoint"]
        covered += interval["low"] <= 0.3 <= interval["high"]
    assert least < covered / trials < most


@pytest.mark.parametrize(
    ("low", "high", "wanted"),
    [
        (0.0, 1.9, "yes"),
        (0.0, 2.0, "undecided"),
        (1.9, 2.1, "undecided"),
        (2.0, 2.0, "no"),
        (2.0, 9.0, "no"),
        (2.1, 2.2, "no"),
        (-1.0, -0.5, "yes"),
    ],
)
def test_verdicts(low, high, wanted):
    assert verdict({"value": (low + high) / 2, "low": low, "high": high}, 2.0) == wanted
