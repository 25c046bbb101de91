"""Barriers by every convention against plain loops; the bootstrap against what is known of it in closed form."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from modeconn_cli.evaluation.barriers import (
    CONVENTIONS,
    COPIES,
    TOWARDS_MAXIMUM,
    barrier_intervals,
    barriers,
    resampled_means,
    verdict,
    verdict_bounds,
)


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


def test_the_midpoint_has_percentiles_of_its_resamples():
    rng = np.random.default_rng(0)
    t, L = np.array([0, 0.3, 0.5, 1]), np.array([1, 2, 4, 1.5])
    resampled = L + rng.normal(size=(1001, 4))
    found = barrier_intervals(t, L, resampled, 0.9)
    for name in CONVENTIONS:
        assert found[name]["value"] == pytest.approx(slow(t, L)[name], abs=1e-12)
    ordered = sorted(slow(t, row)["midpoint"] for row in resampled)
    assert found["midpoint"]["low"] == pytest.approx(ordered[50], abs=1e-12)  # 1001 values: whole ranks
    assert found["midpoint"]["high"] == pytest.approx(ordered[950], abs=1e-12)
    assert found["midpoint"]["corrected"] == found["midpoint"]["value"]
    assert found["midpoint"]["se"] == pytest.approx(np.std(ordered, ddof=1))


def by_copies(name, t, L, noise):
    """Mean of what L - w has at the point that is highest on L + w, over every w and -w, one by one."""
    found = []
    for w in [*noise, *(-row for row in noise)]:
        chosen, read = ([a + s * b for a, b in zip(L, w, strict=True)] for s in (1, -1))
        if name == "above_line":
            chosen, read = ([v - (1 - s) * c[0] - s * c[-1] for s, v in zip(t, c, strict=True)] for c in (chosen, read))
        at = chosen.index(max(chosen))
        ends = {
            "above_line": 0,
            "above_mean": (read[0] + read[-1]) / 2,
            "above_max": read[0] if chosen[0] >= chosen[-1] else read[-1],
        }
        found.append(read[at] - ends[name])
    return sum(found) / len(found)


@pytest.mark.parametrize(("R", "level"), [(20, 0), (101, 3)])
def test_a_maximum_is_read_off_a_copy_that_did_not_choose_it(R, level):
    """The whole interval by plain loops; on a path that is nearly flat, and on one with a peak."""
    rng = np.random.default_rng(R)
    t, L = np.array([0, 0.2, 0.5, 0.6, 1]), np.array([4, 4.1, 4 + level, 4.2, 4.3])
    resampled = L + rng.normal(size=(R, 5))
    found = barrier_intervals(t, L, resampled, 0.9)
    noise, first = resampled - L, min(COPIES, R // 2)
    for name in CONVENTIONS[:-1]:
        value, corrected = slow(t, L)[name], by_copies(name, t, L, noise)
        others = [(by_copies(name, t, row, noise[:first]), slow(t, row)[name]) for row in resampled[first:]]
        mixed = [a + TOWARDS_MAXIMUM * (b - a) for a, b in others]
        centre = corrected + TOWARDS_MAXIMUM * (value - corrected) - sum(mixed) / len(mixed)
        low, high = (centre + np.percentile(mixed, q) for q in (5, 95))
        corrected = min(max(corrected, 0), value)
        wanted = {"value": value, "corrected": corrected, "se": np.std([a for a, _ in others], ddof=1)}
        wanted |= {"low": min(max(low, 0), corrected), "high": max(high, value)}
        assert found[name] == pytest.approx(wanted, abs=1e-12), name


@given(curves(), st.integers(0, 1000))
def test_an_interval_holds_its_estimates_and_no_barrier_below_zero(curve, seed):
    t, L = curve
    resampled = L[0] + np.random.default_rng(seed).normal(size=(20, len(t)))
    for name, found in barrier_intervals(t, L[0], resampled, 0.5).items():
        assert found["low"] <= found["corrected"] <= found["value"] <= found["high"]
        assert name == "midpoint" or found["low"] >= 0


def latent(rng, n, t, percent):
    """Errors (T, n), 0 or 100, of examples that are hard or easy all along a path, and of ends that differ.

    What is not an example's own (0.15 of the variance) is a walk in t, of correlation exp(-|t - s| / 0.3).
    """
    own, rest = rng.standard_normal((2, n))
    wrong = []
    for step, level in zip(np.diff(t, prepend=0), percent, strict=True):
        kept = np.exp(-step / 0.3)
        rest = kept * rest + np.sqrt(1 - kept**2) * rng.standard_normal(n)
        wrong.append(np.sqrt(0.85) * own + np.sqrt(0.15) * rest > NormalDist().inv_cdf(1 - level / 100))
    return 100.0 * np.array(wrong)


@pytest.mark.parametrize("shape", ["flat", "plateau", "peak"])
def test_the_true_barrier_is_covered_and_a_flat_path_joins(shape):
    """A plain bootstrap of the maximum covers 1% of flat paths here and calls nearly all of them undecided."""
    rng, t, trials = np.random.default_rng(1), np.linspace(0, 1, 31), 100
    above = {"flat": 0 * t, "plateau": 2 * np.clip(np.minimum(t, 1 - t) / 0.15, 0, 1), "peak": 6 * np.sin(np.pi * t)}
    true = above[shape].max()
    covered, joined, bias = 0, 0, []
    for trial in range(trials):
        errors = latent(rng, 360, t, 10 + above[shape])
        resampled = resampled_means(torch.from_numpy(errors), 200, seed=trial)
        found = barrier_intervals(t, errors.mean(1), resampled, 0.95)["above_mean"]
        covered += found["low"] <= true <= found["high"]
        joined += verdict(verdict_bounds(found, 1.5), 2.0) == "yes"
        bias.append(found["corrected"] - true)
    assert covered >= 90  # of 95 expected
    assert abs(np.mean(bias)) < 0.7
    if shape == "flat":
        assert joined >= 85
    if shape == "peak":
        assert joined == 0


def test_bounds_of_a_verdict_are_normal_quantiles():
    barrier = {"value": 5.0, "corrected": 3.0, "se": 2.0, "low": 0.0, "high": 9.0}
    assert verdict_bounds(barrier, 1) == {"low": 3.0, "high": 3.0}
    assert verdict_bounds(barrier, 39) == pytest.approx({"low": 3 - 2 * 1.959964, "high": 3 + 2 * 1.959964}, rel=1e-6)
    assert verdict_bounds(barrier, 1.5) == pytest.approx({"low": 3 - 2 * 0.253347, "high": 3 + 2 * 0.253347}, rel=1e-5)
    before_it_was_corrected = {"value": 5.0, "low": 1.0, "high": 9.0}
    assert verdict_bounds(before_it_was_corrected, 1.5) == {"low": 1.0, "high": 9.0}


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
