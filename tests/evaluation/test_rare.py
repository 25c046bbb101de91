"""Intervals by counting against binomial sums and plain loops, where resampling has nothing to resample."""

from __future__ import annotations

from math import comb

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modeconn_cli.evaluation.barriers import (
    CONVENTIONS,
    barrier_intervals,
    by_counting,
    resampled_means,
    share_bounds,
    verdict,
    verdict_bounds,
)
from modeconn_cli.evaluation.measured import Measured, Question, judged
from modeconn_cli.evaluation.rare import FEW, LEAST, is_counted, with_counts
from modeconn_cli.stages.merge import _rows
from modeconn_cli.tasks.classify import COLUMNS, Classify

T = np.linspace(0, 1, 5)


def intervals(wrong, confidence=0.95):
    """By convention, as a path's scores give them, before and after counting."""
    wrong = torch.as_tensor(wrong, dtype=torch.bool)
    values = 100.0 * wrong.double()
    plain = barrier_intervals(T, values.mean(1).numpy(), resampled_means(values, 40), confidence)
    return plain, with_counts(plain, T, wrong, 100.0, confidence)


def measured(errors, nll=None):
    errors = torch.as_tensor(errors, dtype=torch.bool)
    nll = torch.rand(errors.shape, generator=torch.Generator().manual_seed(0)) if nll is None else nll
    split = {"nll": nll, "error": errors}
    return Measured(T, np.ones(len(T)), {"train": split, "test": split}, COLUMNS, 0.0)


def test_examples_that_are_always_wrong_count_as_those_that_are_always_right():
    wrong = np.zeros((5, 100), dtype=bool)
    for always in (9, 10, 50):
        wrong[:, :always] = True
        _, wide = intervals(wrong)
        assert wide["above_mean"]["high"] == pytest.approx(2.95, abs=0.01)  # 100 (1 - 0.05 ** (1 / 100))


def no_more_than(k, n, p):
    return sum(comb(n, j) * p**j * (1 - p) ** (n - j) for j in range(k + 1))


@pytest.mark.parametrize(("k", "n"), [(0, 1), (0, 50), (1, 30), (7, 40), (39, 40), (40, 40)])
@pytest.mark.parametrize("odds", [1.5, 19, 39])
def test_bounds_of_a_share_are_those_at_which_so_many_are_as_seldom_as_that(k, n, odds):
    low, high = share_bounds(k, n, odds)
    seldom = 1 / (1 + odds)
    assert (low == 0) if k == 0 else 1 - no_more_than(k - 1, n, low) == pytest.approx(seldom)
    assert (high == 1) if k == n else no_more_than(k, n, high) == pytest.approx(seldom)


@pytest.mark.parametrize("n", [20, 46, 360, 5000])
def test_without_an_error_a_barrier_may_be_three_in_n(n):
    plain, wide = intervals(np.zeros((5, n)))
    for name in CONVENTIONS[:-1]:
        assert plain[name]["high"] == 0
        assert wide[name]["low"] == wide[name]["value"] == wide[name]["corrected"] == 0
        assert wide[name]["high"] == pytest.approx(100 * (1 - 0.05 ** (1 / n)))
        assert wide[name]["high"] == pytest.approx(300 / n, rel=0.08)
        assert wide[name]["se"] > 0
    assert wide["midpoint"]["high"] == -wide["midpoint"]["low"] == pytest.approx(100 * (1 - 0.025 ** (1 / n)))


@pytest.mark.parametrize(
    ("n", "odds", "wanted"), [(45, 1.5, "undecided"), (46, 1.5, "yes"), (182, 39, "undecided"), (183, 39, "yes")]
)
def test_no_error_in_so_many_is_a_verdict_at_its_odds(n, odds, wanted):
    """At a true barrier of 2 points, 0.98^n of samples would show no error either: less than 1 in 1 + odds at a yes."""
    _, wide = intervals(np.zeros((5, n)))
    assert (0.98**n < 1 / (1 + odds)) == (wanted == "yes")
    assert verdict(verdict_bounds(wide["above_mean"], odds), 2.0) == wanted


def test_where_every_example_rises_the_barrier_may_be_lower():
    wrong = np.zeros((5, 60))
    wrong[2] = 1
    plain, wide = intervals(wrong)
    for name in CONVENTIONS[:-1]:
        assert plain[name]["low"] == plain[name]["high"] == 100
        assert wide[name]["low"] == pytest.approx(100 * 0.05 ** (1 / 60))
        assert wide[name]["high"] == 100


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_rises_and_falls_are_those_of_examples_one_by_one(data):
    n = data.draw(st.integers(FEW, 25))
    wrong = np.zeros((5, n), dtype=bool)
    wrong[:, n // 2 :] = data.draw(st.booleans())
    odd = data.draw(st.lists(st.integers(0, n - 1), max_size=4, unique=True))
    for i in odd:
        wrong[:, i] = data.draw(st.lists(st.booleans(), min_size=5, max_size=5))
    plain, wide = intervals(wrong)
    kinds = [tuple(column) if len({*column}) > 1 else None for column in wrong.T]  # None: it never changes
    if n - max(kinds.count(k) for k in kinds) >= FEW:
        assert wide == plain
        return
    high_end = 0 if wrong[0].sum() >= wrong[-1].sum() else -1
    for name in CONVENTIONS:
        sums = []
        for k, t in enumerate(T):
            above = []
            for e in wrong.T.astype(float):
                mean = (e[0] + e[-1]) / 2
                ends = {"above_line": (1 - t) * e[0] + t * e[-1], "above_max": e[high_end]}.get(name, mean)
                above.append(e[k] - ends)
            if name != "midpoint" or t == 0.5:
                sums.append((sum(max(a, 0) for a in above), sum(max(-a, 0) for a in above)))
        rises, falls = max(sums, key=lambda s: (round(s[0] - s[1], 9), s[0]))
        found = wide[name]
        assert found["rises"] - found["falls"] == pytest.approx(rises - falls)
        assert 100 * (rises - falls) / n == pytest.approx(found["value"])
        assert (found["examples"], found["each"]) == (n, pytest.approx(100 / n))
        assert found["low"] <= plain[name]["low"] <= found["value"] <= plain[name]["high"] <= found["high"]
        bounds, outer = by_counting(found, 39), verdict_bounds(found, 39)
        assert outer["low"] <= bounds["low"] <= bounds["high"] <= outer["high"]


def test_where_examples_enough_differ_resamples_stay():
    rng = np.random.default_rng(0)
    plain, wide = intervals(rng.random((5, 300)) < 0.1)
    assert wide == plain


def test_intervals_of_rare_errors_hold_the_truth():
    """Resamples alone hold a barrier of 1.5 points in two thirds of these."""
    rng, held = np.random.default_rng(0), {"plain": 0, "wide": 0}
    for _ in range(100):
        wrong = np.zeros((5, 60))
        wrong[2] = rng.random(60) < 0.015
        for key, found in zip(held, intervals(wrong), strict=True):
            held[key] += found["above_mean"]["low"] <= 1.5 <= found["above_mean"]["high"]
    assert held["plain"] < 75
    assert held["wide"] >= 93


def test_of_few_examples_no_verdict_is_given_and_no_deviation_of_one():
    question = Question(40, 0.95, Classify.verdict, 1.5)
    rising = np.zeros((5, LEAST))
    rising[2] = 1
    for n, wanted in ((1, "undecided"), (LEAST - 1, "undecided"), (LEAST, "no")):
        found = judged(measured(rising[:, :n]).barriers(question), question, n)
        assert found["connected"] == wanted
        assert found.get("too_few") == (n if n < LEAST else None)
    assert all(np.isnan(v).all() for v in measured(np.zeros((5, 1))).standard_errors().values())


def test_the_objective_is_no_count():
    assert is_counted(torch.tensor([[True, False]]))
    assert is_counted(torch.tensor([0.0, 1.0]))
    assert not is_counted(torch.tensor([0.0, 0.5]))
    question = Question(40, 0.95, Classify.verdict, 1.5)
    found = measured(np.zeros((5, 30)), torch.zeros(5, 30)).barriers(question)
    assert "rises" in found["test_error"]["above_mean"]
    assert "rises" not in found["test_nll"]["above_mean"]


def test_means_of_networks_without_an_error_are_not_certain_either():
    names = [f"{whose}.{s}.{k}" for whose in ("mean", "ends") for s in ("train", "test") for k in ("nll", "error")]
    kept = {name: torch.zeros(2, 50) for name in names}
    question = Question(40, 0.95, Classify.verdict, 1.5)
    row = _rows(["mean", "matched"], kept, COLUMNS, question)[0]
    assert row["test_error_above_mean"]["high"] == pytest.approx(100 * (1 - 0.025 ** (1 / 50)))
    assert row["test_nll_above_mean"]["high"] == 0
