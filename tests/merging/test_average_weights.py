"""Weights of averages beside exhaustive search, closed forms and SciPy's general solvers."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize

from modeconn_cli.errors import UserError
from modeconn_cli.merging.arithmetic import SCALES, moved
from modeconn_cli.merging.given import Given
from modeconn_cli.merging.weights import best_affine, best_convex, greedy, learned, least_squares, uniform


def networks(n=3, p=5, seed=0, **more):
    W = torch.randn(n, p, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return Given(W, [f"seed {i}" for i in range(n)], lambda v: [v], p, **more)


@given(st.integers(1, 6), st.integers(0, 100))
def test_the_mean_of_equal_networks_is_the_network(n, seed):
    w = torch.randn(7, generator=torch.Generator().manual_seed(seed))
    same = Given(w.expand(n, -1), ["w"] * n, lambda v: [v], 7)
    assert torch.equal(uniform(same).point, w)
    assert uniform(same).shares == pytest.approx([1 / n] * n)


def test_the_mean_is_the_mean():
    found = uniform(networks(4))
    torch.testing.assert_close(found.point, networks(4).points.mean(0))
    assert found.note["weights"] == [0.25] * 4


# ------------------------------------------------------------------------------------------------------ greedy


@given(st.integers(1, 6), st.integers(0, 200))
def test_greedy_keeps_what_does_not_make_it_worse(n, seed):
    """Beside the recipe written out over sets of networks; scores are coarse, so that many are equal."""
    rng = np.random.default_rng(seed)
    worth = {frozenset(s): float(rng.integers(0, 3)) for k in range(n) for s in itertools.combinations(range(n), k + 1)}
    loss = [(float(x)) for x in rng.permutation(n)]

    def score(point, shares):
        inside = frozenset(i for i, s in enumerate(shares) if s > 0)
        assert {s for s in shares if s > 0} == {1 / len(inside)}
        torch.testing.assert_close(point, given_.points[sorted(inside)].mean(0))
        return worth[inside], 0.0

    given_ = networks(n, alone=lambda: [(worth[frozenset([i])], loss[i]) for i in range(n)], score=score)
    found = greedy(given_)
    order = sorted(range(n), key=lambda i: (worth[frozenset([i])], loss[i]))
    kept = {order[0]}
    for i in order[1:]:
        if worth[frozenset(kept | {i})] <= worth[frozenset(kept)]:
            kept |= {i}
    assert {i for i, a in enumerate(found.note["weights"]) if a} == kept
    torch.testing.assert_close(found.point, given_.points[sorted(kept)].mean(0))
    assert worth[frozenset(kept)] <= min(worth[frozenset([i])] for i in range(n))


# ----------------------------------------------------------------------------------------------- least squares


def problem(n, d, seed):
    E = np.random.default_rng(seed).normal(size=(n, d)) + 0.5
    return E @ E.T


@given(st.integers(1, 6), st.integers(1, 8), st.integers(0, 200))
def test_convex_weights_are_the_best_of_every_set_of_networks(n, d, seed):
    """Of each set the best with that support, where it is not negative: one of these is the best of all."""
    G = problem(n, d, seed)
    a = best_convex(G)
    assert a.min() >= 0
    assert a.sum() == pytest.approx(1)
    best = np.inf
    for k in range(n):
        for inside in itertools.combinations(range(n), k + 1):
            part = G[np.ix_(inside, inside)]
            x = np.linalg.lstsq(part, np.ones(k + 1), rcond=None)[0]
            x = x / x.sum() if abs(x.sum()) > 1e-12 else np.full(k + 1, 1 / (k + 1))
            best = min(best, x @ part @ x if x.min() >= 0 else np.inf)
    assert a @ G @ a <= best + 1e-8 * np.trace(G)
    corners = np.random.default_rng(seed).dirichlet(np.ones(n) / 2, 300)
    assert a @ G @ a <= np.einsum("ki,ij,kj->k", corners, G, corners).min() + 1e-8 * np.trace(G)


@given(st.integers(1, 6), st.integers(0, 200))
def test_affine_weights_solve_the_conditions_of_lagrange(n, seed):
    G = problem(n, 8, seed)
    system = np.block([[G, np.ones((n, 1))], [np.ones((1, n)), np.zeros((1, 1))]])
    wanted = np.linalg.solve(system, np.append(np.zeros(n), 1.0))[:n]
    np.testing.assert_allclose(best_affine(G), wanted, atol=1e-6)


def test_networks_that_answer_alike_share_the_weight():
    same = np.ones((3, 3))
    np.testing.assert_allclose(best_affine(same), np.full(3, 1 / 3), atol=1e-12)
    np.testing.assert_allclose(best_convex(np.zeros((2, 2))).sum(), 1)


def linear(n=3, p=4, examples=30, seed=0):
    """Networks x @ w under half the squared error, whose averages answer as the averaged answers do."""
    g = torch.Generator().manual_seed(seed)
    X = torch.randn(examples, p, generator=g, dtype=torch.float64)
    truth = torch.randn(p, generator=g, dtype=torch.float64)
    W = truth + torch.randn(n, p, generator=g, dtype=torch.float64)
    y = X @ truth + 0.1 * torch.randn(examples, generator=g, dtype=torch.float64)

    def gradient(point, shares):
        r = X @ point - y
        return float((r @ r) / (2 * examples)), X.T @ r / examples

    return Given(W, ["w"] * n, lambda v: [v], p, gradient=gradient, residuals=lambda: (W @ X.T - y)[..., None])


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_of_linear_networks_the_learned_soup_is_the_least_squares_one_and_scipys(affine, seed):
    given_ = linear(seed=seed)
    by_answers = np.array(least_squares(given_, affine).note["weights"])
    by_descent = np.array(learned(given_, affine, 800, 0.05).note["weights"])
    solved = minimize(
        lambda a: given_.gradient(given_.average(a), [])[0],
        np.full(3, 1 / 3),
        bounds=None if affine else [(0, None)] * 3,
        constraints={"type": "eq", "fun": lambda a: a.sum() - 1},
        method="SLSQP",
        options={"ftol": 1e-14},
    )
    np.testing.assert_allclose(by_answers, solved.x, atol=2e-4)
    np.testing.assert_allclose(by_descent, solved.x, atol=5e-3)


def test_a_learned_soup_is_no_worse_than_the_mean_however_it_is_trained():
    given_ = linear(seed=5)
    for lr in (0.01, 30.0):
        found = learned(given_, False, 5, lr)
        first, last = found.note["validation_loss"]
        assert last <= first == pytest.approx(given_.gradient(given_.points.mean(0), [])[0])
        assert last == pytest.approx(given_.gradient(found.point, [])[0])


def test_weights_of_any_sign_leave_shares_of_buffers_that_are_none():
    given_ = networks(2)
    found = given_.weighted(np.array([1.5, -0.5]))
    torch.testing.assert_close(found.point, 1.5 * given_.points[0] - 0.5 * given_.points[1])
    assert found.shares == [1.0, 0.0]


# ------------------------------------------------------------------------------------------- the parent, moved


def test_the_scale_is_given_or_the_best_of_twenty():
    assert len(SCALES) == 20
    assert SCALES[0] == 0.05
    assert SCALES[-1] == 1.0
    target = networks().points[1]

    def score(point, shares):
        away = float((point - target).norm())
        return round(away), away  # many are equal by the first

    given_ = networks(3, parent=networks().points[0], score=score)
    vector = given_.points[1] - given_.points[0]
    assert torch.equal(moved(given_, vector, 0.3).point, given_.parent + 0.3 * vector)
    found = moved(given_, vector, None)
    assert found.note["scale"] == 1.0
    assert found.shares == [1 / 3] * 3
    with pytest.raises(UserError, match=r"nothing is left of what training changed of soup\.parent"):
        moved(given_, 0 * vector, 0.5)
