"""Metrics of ensembles beside scikit-learn's and sums written out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp
from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score

from modeconn_cli.evaluation import ensembles as E


def members(m=4, n=60, c=5, seed=0, scale=2.0):
    rng = torch.Generator().manual_seed(seed)
    shared = scale * torch.randn(1, n, c, generator=rng, dtype=torch.float64)
    own = torch.randn(m, n, c, generator=rng, dtype=torch.float64)
    y = torch.randint(0, c, (n,), generator=rng)
    return (shared + own).log_softmax(2), y


def test_an_ensemble_averages_probabilities():
    L, _ = members()
    assert torch.allclose(E.averaged(L).exp(), L.exp().mean(0), rtol=1e-13)
    far = torch.tensor([[[-2000.0, 0.0]], [[-2001.0, 0.0]]])  # whose probabilities are 0 in any float
    assert float(E.averaged(far)[0, 0]) == pytest.approx(-2000 + math.log((1 + math.exp(-1)) / 2))


@pytest.mark.parametrize("seed", range(3))
def test_scores_are_scikit_learns(seed):
    L, y = members(seed=seed)
    p = L[0].exp().numpy()
    assert E.nll(L[0], y) == pytest.approx(log_loss(y, p, labels=range(5)), rel=1e-12)
    assert E.brier(L[0], y) == pytest.approx(brier_score_loss(y, p, labels=range(5), scale_by_half=False), rel=1e-12)
    assert E.error(L[0], y) == pytest.approx(np.mean(p.argmax(1) != y.numpy()))
    wrong = p.argmax(1) != y.numpy()
    coarse = E.entropy(L[0]).numpy().round(1)  # with ties
    assert E.auroc(coarse, wrong) == pytest.approx(roc_auc_score(wrong, coarse), rel=1e-12)


@pytest.mark.parametrize("bins", [1, 4, 15])
def test_calibration_error_is_the_sum_over_bins(bins):
    L, y = members(n=200)
    confidence, said = L[0].exp().max(1)
    right = (said == y).double()
    wide = 0.0
    for b in range(bins):
        inside = [i for i in range(200) if b / bins < float(confidence[i]) <= (b + 1) / bins]
        if inside:
            wide += len(inside) / 200 * abs(float(right[inside].mean() - confidence[inside].mean()))
    assert E.calibration_error(L[0], y, bins) == pytest.approx(wide, rel=1e-10)
    order, mass, start = confidence.argsort(), 0.0, 0
    for b in range(bins):
        size = 200 // bins + (b < 200 % bins)
        inside = order[start : start + size]
        start += size
        mass += size / 200 * abs(float(right[inside].mean() - confidence[inside].mean()))
    assert E.calibration_error(L[0], y, bins, equal_mass=True) == pytest.approx(mass, rel=1e-10)


def test_bins_are_told_apart_from_the_first_to_the_last():
    """One example a bin of four, alternately right and wrong, so that no two may be taken together."""
    p = torch.tensor([0.2, 0.3, 0.6, 0.9]).double()
    rest = (1 - p) / 5
    L = torch.cat([p[:, None], rest[:, None].expand(4, 5)], 1).log()
    y = torch.tensor([1, 0, 1, 0])
    apart = (0.2 + 0.7 + 0.6 + 0.1) / 4
    assert E.calibration_error(L, y, 4) == pytest.approx(apart)
    assert E.calibration_error(L, y, 4, equal_mass=True) == pytest.approx(apart)


def test_certain_and_right_is_calibrated_certain_and_wrong_is_not():
    certain = torch.tensor([[0.0, -math.inf]] * 3)
    assert E.calibration_error(certain, torch.tensor([0, 0, 0])) == 0
    assert E.calibration_error(certain, torch.tensor([1, 1, 1])) == 1
    assert E.entropy(certain).tolist() == [0, 0, 0]


@pytest.mark.parametrize("T", [0.3, 1.0, 4.0])
def test_the_temperature_is_that_of_the_lowest_nll_of_a_fine_grid(T):
    L, _ = members(n=400)
    y = torch.multinomial(E.tempered(L[0], T).exp(), 1, generator=torch.Generator().manual_seed(1))[:, 0]
    found = E.temperature(L[0], y)
    lowest = E.nll(E.tempered(L[0], found), y)
    for s in np.linspace(-0.5, 0.5, 401):
        assert lowest <= E.nll(E.tempered(L[0], found * math.exp(s)), y) + 1e-12
    shifted = L[0] + torch.arange(400.0)[:, None]  # logits, not normalised
    assert E.temperature(shifted, y) == pytest.approx(found, rel=1e-6)


def test_the_temperature_has_bounds_where_the_best_has_none():
    L, _ = members()
    assert E.temperature(L[0], L[0].argmax(1)) == pytest.approx(1e-4)
    assert E.temperature(L[0], L[0].argmin(1)) == pytest.approx(1e4)


def test_members_are_compared_pair_by_pair():
    L, _ = members(m=3)
    p = L.exp().numpy()
    for i in range(3):
        for j in range(3):
            kl = np.mean([sum(a * math.log(a / b) for a, b in zip(p[i, k], p[j, k], strict=True)) for k in range(60)])
            cos = np.mean([p[i, k] @ p[j, k] / np.linalg.norm(p[i, k]) / np.linalg.norm(p[j, k]) for k in range(60)])
            assert E.divergence(L)[i, j] == pytest.approx(kl, abs=1e-12)
            assert E.cosine(L)[i, j] == pytest.approx(cos, rel=1e-12)
            assert E.disagreement(L)[i, j] == np.mean(p[i].argmax(1) != p[j].argmax(1))
    apart = torch.tensor([[[0.0, -math.inf]], [[-math.inf, 0.0]]])
    assert E.divergence(apart).tolist() == [[0, math.inf], [math.inf, 0]]
    assert E.uncertainty(apart).epistemic == pytest.approx([math.log(2)])
    assert E.pairs_mean(np.array([[9.0, 1.0], [3.0, 9.0]])) == 2.0
    assert math.isnan(E.pairs_mean(np.zeros((1, 1))))


@given(seed=st.integers(0, 10**6), m=st.integers(1, 6), scale=st.floats(0.01, 300))
@settings(max_examples=40, deadline=None)
def test_total_uncertainty_is_aleatoric_and_epistemic(seed, m, scale):
    L, _ = members(m=m, n=20, seed=seed, scale=scale)
    u = E.uncertainty(L)
    np.testing.assert_allclose(u.total, u.aleatoric + u.epistemic, atol=1e-10)
    assert (u.epistemic >= 0).all()
    assert (u.total <= math.log(5) + 1e-12).all()
    if m == 1:
        np.testing.assert_allclose(u.epistemic, 0, atol=1e-12)


def test_uncertainty_is_the_definition_written_out():
    L, _ = members(m=3, n=4)
    p = L.exp().numpy()
    for k in range(4):
        mean = p[:, k].mean(0)
        total = -sum(a * math.log(a) for a in mean)
        each = [-sum(a * math.log(a) for a in q) for q in p[:, k]]
        u = E.uncertainty(L)
        assert u.total[k] == pytest.approx(total)
        assert u.aleatoric[k] == pytest.approx(np.mean(each))
        assert u.epistemic[k] == pytest.approx(total - np.mean(each))
    assert logsumexp(E.averaged(L).numpy(), axis=1) == pytest.approx(0, abs=1e-12)


@given(seed=st.integers(0, 10**6), m=st.integers(1, 5), d=st.integers(1, 3))
def test_variances_of_a_mixture_add_up(seed, m, d):
    """Beside the second moment of the mixture, target by target."""
    rng = torch.Generator().manual_seed(seed)
    mean = torch.randn(m, 6, d, generator=rng, dtype=torch.float64)
    variance = torch.rand(m, 6, d, generator=rng, dtype=torch.float64)
    u = E.spread(torch.stack([mean, variance], 3))
    second = (variance + mean**2).mean(0) - mean.mean(0) ** 2
    np.testing.assert_allclose(u.total, second.mean(1), atol=1e-12)
    np.testing.assert_allclose(u.total, u.aleatoric + u.epistemic, atol=1e-12)
    if m == 1:
        assert (u.epistemic == 0).all()


def test_flips_are_changes_from_a_member_to_the_next():
    said = torch.tensor([[1, 0, 2], [1, 1, 2], [1, 0, 3], [1, 0, 3]])
    assert E.flips(said).tolist() == [0, 2, 1]
    assert E.flips(said[:1]).tolist() == [0, 0, 0]


def test_risk_over_coverage_is_the_error_of_the_least_uncertain():
    rng = np.random.default_rng(0)
    u, wrong = rng.normal(size=50), rng.random(50) < 0.3
    curve, area = E.risk_coverage(u, wrong)
    order = np.argsort(u)
    assert curve == pytest.approx([wrong[order[:k]].mean() for k in range(1, 51)])
    assert area == pytest.approx(curve.mean())
    loss = rng.random(50)
    assert E.risk_coverage(u, loss)[0] == pytest.approx([loss[order[:k]].mean() for k in range(1, 51)])
    flat, _ = E.risk_coverage(np.zeros(50), wrong)
    assert flat == pytest.approx(np.full(50, wrong.mean()))


SHARES = st.lists(st.one_of(st.just(0.0), st.floats(1e-3, 1e3)), min_size=1, max_size=30)


@given(SHARES, st.integers(0, 3), st.integers(0, 40), st.integers(0, 10**9))
@settings(max_examples=200, deadline=None)
def test_a_budget_is_divided_to_the_last_unit(share, least, room, seed):
    share, most = np.array(share), least + room
    budget = int(np.random.default_rng(seed).integers(len(share) * least, len(share) * most + 1))
    found = E.divided(budget, share, least, most)
    assert found.sum() == budget
    assert found.min() >= least
    assert found.max() <= most
    reachable = least * (share == 0).sum() + most * (share > 0).sum()
    if budget > reachable:  # those of no share are needed too
        assert (found[share > 0] == most).all()
        return
    # Between two values of the factor at which an example meets a bound, the sum is a straight line.
    bounds = np.unique([0.0, *(b / s for s in share if s for b in (least, most))])
    sums = [np.clip(f * share, least, most).sum() for f in bounds]
    if budget < sums[-1]:
        exact = np.clip(np.interp(budget, sums, bounds) * share, least, most)
        assert (np.abs(found - exact) < 1 + 1e-6).all()


def test_budgets_that_cannot_be_divided_are_refused():
    with pytest.raises(ValueError, match="sum to 2 to 6, not to 7"):
        E.divided(7, np.ones(2), 1, 3)
    with pytest.raises(ValueError, match="finite"):
        E.divided(7, np.array([1.0, math.nan]))
    assert E.divided(10, np.array([1.0, 3.0, 6.0])).tolist() == [1, 3, 6]
    assert E.divided(7, np.zeros(3)).tolist() == [3, 2, 2]
    assert E.divided(100, np.array([1.0, 3.0, 6.0, 1e-62])).tolist() == [10, 30, 60, 0]
    assert E.divided(100, np.array([1.0, 3.0, 0.0, 1e-310])).tolist() == [25, 75, 0, 0]
