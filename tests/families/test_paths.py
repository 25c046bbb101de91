"""Coefficient families against de Casteljau, piecewise interpolation, finite differences and brute-force lengths."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from modeconn_cli.errors import UserError
from modeconn_cli.evaluation.evaluator import gram
from modeconn_cli.families.base import Family, overrides
from modeconn_cli.families.bezier import Bezier, BezierCurve, segment
from modeconn_cli.families.chain import Chain
from modeconn_cli.families.geometry import geometry
from modeconn_cli.families.point import Point
from modeconn_cli.settings import choices, named_choice

families = st.one_of(st.integers(1, 7).map(Bezier), st.integers(0, 9).map(Chain))
times = st.lists(st.floats(0, 1), min_size=1, max_size=8)


def de_casteljau(W, t):
    """A Bezier curve's point by repeated interpolation of neighbours."""
    W = [np.asarray(row, dtype=float) for row in W]
    while len(W) > 1:
        W = [(1 - t) * a + t * b for a, b in pairwise(W)]
    return W[0]


def along_chain(W, t):
    """A polygonal chain's point: every coordinate interpolated between equally spaced knots."""
    W = np.asarray(W, dtype=float)
    return np.array([np.interp(t, np.linspace(0, 1, len(W)), column) for column in W.T])


def explicit_point(path, W, t):
    return de_casteljau(W, t) if isinstance(path, Bezier) else along_chain(W, t)


def differences_gram(W):
    rows = [W[0]] + [w - W[0] for w in W[1:]]
    return np.array([[float(np.sum(a * b)) for b in rows] for a in rows])


def polyline_lengths(path, W, t, pieces=4000):
    """Lengths from t[0] to every t along a fine polyline, with t and the chain's corners among its points."""
    knots = np.linspace(0, 1, len(W)) if isinstance(path, Chain) else []
    fine = np.unique(np.concatenate([t, knots, np.linspace(0, 1, pieces + 1)]))
    w = np.array([explicit_point(path, W, s) for s in fine])
    legs = np.linalg.norm(np.diff(w, axis=0), axis=1)
    return [float(legs[(fine[:-1] >= t[0]) & (fine[1:] <= s)].sum()) for s in t]


# --------------------------------------------------------------------------------------------- coefficients


@given(st.integers(1, 7), times)
def test_bezier_is_de_casteljau(degree, t):
    wanted = [de_casteljau(np.eye(degree + 1), s) for s in t]
    np.testing.assert_allclose(Bezier(degree).coefficients(t), wanted, rtol=1e-12, atol=1e-14)


@given(st.integers(0, 12), times)
def test_chain_is_piecewise_interpolation(bends, t):
    wanted = [along_chain(np.eye(bends + 2), s) for s in t]
    np.testing.assert_allclose(Chain(bends).coefficients(t), wanted, atol=1e-13)


def test_quadratic_bezier_by_hand():
    """Garipov et al. 2018, equation 3, at t = 1/4."""
    np.testing.assert_array_equal(Bezier(2).coefficients([0.25]), [[9 / 16, 6 / 16, 1 / 16]])


def test_chain_of_one_bend_by_hand():
    """Garipov et al. 2018, equation 2: 2 (t theta + (1/2 - t) w1), then 2 ((t - 1/2) w2 + (1 - t) theta)."""
    wanted = [[1, 0, 0], [0.5, 0.5, 0], [0, 1, 0], [0, 0.25, 0.75], [0, 0, 1]]
    np.testing.assert_array_equal(Chain(1).coefficients([0, 0.25, 0.5, 0.875, 1]), wanted)


@given(families, times)
def test_coefficients_sum_to_one_and_are_never_negative(path, t):
    c = path.coefficients(t)
    assert c.shape == (len(t), path.vertices)
    assert c.dtype == np.float64
    np.testing.assert_allclose(c.sum(1), 1, atol=1e-14)
    assert (c >= 0).all()


@given(families)
def test_ends_are_one_hot_exactly(path):
    start, end = np.zeros((2, path.vertices))
    start[0] = end[-1] = 1
    np.testing.assert_array_equal(path.coefficients([0, 1]), [start, end])


@given(families, st.floats(1e-3, 1 - 1e-3))
def test_derivative_is_the_central_difference(path, t):
    h = 1e-6
    assume(all(abs(t - b) > 2 * h for b in path.breaks()))
    above, below = path.coefficients([t + h])[0], path.coefficients([t - h])[0]
    np.testing.assert_allclose(path.derivative([t])[0], (above - below) / (2 * h), atol=1e-7)


@given(families, times)
def test_derivative_sums_to_zero(path, t):
    np.testing.assert_allclose(path.derivative(t).sum(1), 0, atol=1e-12)


@given(families)
def test_derivative_at_the_ends_is_one_sided(path):
    h = 1e-7
    at, near = path.coefficients([0, 1]), path.coefficients([h, 1 - h])
    wanted = (near - at) / [[h], [-h]]
    np.testing.assert_allclose(path.derivative([0, 1]), wanted, atol=1e-4)


@given(st.integers(0, 60))
def test_chain_breaks_where_a_control_point_is_reached(bends):
    breaks = Chain(bends).breaks()
    assert breaks.shape == (bends,)
    np.testing.assert_allclose(Chain(bends).coefficients(breaks), np.eye(bends + 2)[1:-1], atol=1e-12)


@pytest.mark.parametrize("bends", [0, 1, 3, 6, 21, 48])
def test_chain_derivative_at_a_break_is_the_one_from_the_right(bends):
    chain = Chain(bends)
    np.testing.assert_array_equal(chain.derivative(chain.breaks()), chain.derivative(chain.breaks() + 1e-9))


@given(st.integers(1, 7))
def test_bezier_breaks_nowhere(degree):
    assert len(Bezier(degree).breaks()) == 0


def test_point_is_itself_everywhere():
    np.testing.assert_array_equal(Point().coefficients([0, 0.3, 1]), [[1], [1], [1]])
    np.testing.assert_array_equal(Point().derivative([0, 0.3, 1]), [[0], [0], [0]])
    assert len(Point().breaks()) == 0


def test_families_by_name():
    t = [0, 0.2, 0.7, 1]
    bezier, chain = (choices("curve")[name](bends=2).family() for name in ("bezier", "chain"))
    np.testing.assert_allclose(bezier.coefficients(t), [de_casteljau(np.eye(4), s) for s in t])
    np.testing.assert_allclose(chain.coefficients(t), [along_chain(np.eye(4), s) for s in t])
    np.testing.assert_array_equal(segment().coefficients([0.25]), [[0.75, 0.25]])


def test_a_path_of_another_name_is_refused():
    with pytest.raises(UserError, match=r"curve\.kind=spline: no such choice; there are bezier, chain, custom"):
        named_choice(BezierCurve(kind="spline"), "curve")


# ------------------------------------------------------------------------------------- what a family need not say


@dataclass(frozen=True)
class Arc(Family):
    """A circular arc of an angle below pi through W[0] and W[2], W[1] the circle's centre when it is one."""

    angle: float
    vertices = 3

    def coefficients(self, u_td):
        t = np.asarray(u_td)[:, 0]
        first, last = (np.sin(s * self.angle) / np.sin(self.angle) for s in (1 - t, t))
        return np.stack([first, 1 - first - last, last], axis=1)


class Plane(Family):
    """Affine coordinates about W[0]; outside the triangle coefficients are negative."""

    vertices = 3
    coordinates = "a", "b"

    def coefficients(self, u_td):
        u = 3 * np.asarray(u_td) - 1
        return np.hstack([1 - u.sum(1, keepdims=True), u])


@given(st.floats(0.1, 3.0), st.integers(0, 1000), st.lists(st.floats(0, 1), min_size=2, max_size=6, unique=True))
def test_length_of_a_family_that_gives_coefficients_alone(angle, seed, t):
    """An arc's length is its angle times its radius, wherever the circle lies."""
    rng, t = np.random.default_rng(seed), np.sort(t)
    centre, plane = rng.normal(size=6), np.linalg.qr(rng.normal(size=(6, 2)))[0].T
    around = np.array([[1, 0], [np.cos(angle), np.sin(angle)]]) @ plane
    W = np.stack([centre + 2.5 * around[0], centre, centre + 2.5 * around[1]])
    length, l2 = geometry(Arc(angle), differences_gram(W), t)
    np.testing.assert_allclose(length, 2.5 * angle * (t - t[0]), rtol=1e-7, atol=1e-12)
    on_circle = [centre + 2.5 * (np.cos(s * angle) * plane[0] + np.sin(s * angle) * plane[1]) for s in t]
    np.testing.assert_allclose(l2, np.linalg.norm(on_circle, axis=1), rtol=1e-7)


def test_a_derivative_without_breaks_is_enough():
    class Cubic(Family):
        vertices = 4

        def coefficients(self, u_td):
            return Bezier(3).coefficients(u_td)

        def derivative(self, u_td):
            assert u_td.shape[1:] == (1,)
            return Bezier(3).derivative(u_td)

    squared, t = differences_gram(control_points(Cubic(), 0)), np.linspace(0, 1, 5)
    np.testing.assert_array_equal(geometry(Cubic(), squared, t)[0], geometry(Bezier(3), squared, t)[0])


def test_a_plane_is_drawn_and_gridded_over_both_its_coordinates():
    drawn = Plane().draw(np.random.default_rng(0), 50)
    assert drawn.shape == (50, 3)
    np.testing.assert_allclose(drawn.sum(1), 1)
    u = (drawn[:, 1:] + 1) / 3
    for column in u.T:
        assert sorted(np.floor(column * 50).astype(int)) == list(range(50))
    assert abs(np.corrcoef(u.T)[0, 1]) < 0.4
    assert Plane().grid(3).tolist() == [[a, b] for a in (0, 0.5, 1) for b in (0, 0.5, 1)]
    assert Point().grid(9).shape == (1, 0)
    assert Bezier(2).grid(3).tolist() == [[0], [0.5], [1]]


@given(families, times)
def test_anchors_of_a_path_are_its_two_ends_by_their_share(path, t):
    anchors = path.anchors(np.array(t)[:, None])
    np.testing.assert_allclose(anchors, [[1 - s, s] for s in t], atol=1e-12)
    assert path.anchors([[0.0], [1.0]]).tolist() == [[1, 0], [0, 1]]
    assert Point().anchors([[]]).tolist() == [[1]]


@given(st.integers(0, 100), st.integers(1, 4))
def test_the_usual_force_is_the_chain_rule(seed, K):
    """L(c @ W) for L(w) = a . w has dL/dW_k = c_k a."""
    generator = torch.Generator().manual_seed(seed)
    c, a = torch.randn(K, generator=generator).double(), torch.randn(5, generator=generator).double()
    W = torch.randn(K, 5, generator=generator).double().requires_grad_()
    (wanted,) = torch.autograd.grad((c @ W) @ a, W)
    torch.testing.assert_close(Bezier(3).force(a, W.detach(), c), wanted, rtol=1e-13, atol=0)
    assert Bezier(3).penalty(W.detach() @ W.detach().T).item() == 0


def test_what_a_family_says_itself_is_known():
    class Own(Bezier):
        def force(self, g_p, W_kp, c_k):
            return torch.zeros_like(W_kp)

    assert overrides(Own(2), "force")
    assert not overrides(Own(2), "penalty")
    assert not any(overrides(f, name) for f in (Bezier(2), Chain(1), Point()) for name in ("force", "penalty"))


# ------------------------------------------------------------------------------------------------ geometry


def control_points(path, seed, dimensions=6):
    return np.random.default_rng(seed).normal(size=(path.vertices, dimensions))


@given(families, st.integers(0, 2**32 - 1), st.lists(st.floats(0, 1), min_size=1, max_size=9, unique=True))
def test_norm_is_the_explicit_norm(path, seed, t):
    W, t = control_points(path, seed), np.sort(t)
    _, l2 = geometry(path, differences_gram(W), t)
    np.testing.assert_allclose(l2, [np.linalg.norm(explicit_point(path, W, s)) for s in t], rtol=1e-7)


@pytest.mark.parametrize("path", [Bezier(1), Bezier(2), Bezier(3), Bezier(5), Chain(0), Chain(1), Chain(4), Chain(7)])
@pytest.mark.parametrize("t", [np.linspace(0, 1, 7), np.array([0, 1.0]), np.array([0.21, 0.22, 0.87])])
def test_length_is_the_polylines(path, t):
    W = control_points(path, seed=3)
    length, _ = geometry(path, differences_gram(W), t)
    np.testing.assert_allclose(length, polyline_lengths(path, W, t), rtol=1e-6 if len(t) > 2 else 1e-5)


@pytest.mark.parametrize("degree", [2, 3, 5])
def test_length_does_not_depend_on_the_grid(degree):
    """Two points measure the length that many points do, to more digits than anything prints."""
    squared = differences_gram(control_points(Bezier(degree), seed=3))
    fine, _ = geometry(Bezier(degree), squared, np.linspace(0, 1, 301))
    for points in (2, 3, 11, 61):
        coarse, _ = geometry(Bezier(degree), squared, np.linspace(0, 1, points))
        assert coarse[-1] == pytest.approx(fine[-1], rel=1e-9), f"{points} points"


@given(st.integers(0, 9), st.integers(0, 1000), st.lists(st.floats(0, 1), min_size=2, max_size=6, unique=True))
def test_length_of_a_chain_is_the_sum_of_its_legs(bends, seed, t):
    """Exactly, whether or not its corners are among t."""
    t = np.sort(t)
    W = control_points(Chain(bends), seed)
    legs = np.linalg.norm(np.diff(W, axis=0), axis=1)
    reached = [sum(leg * np.clip(s * (bends + 1) - i, 0, 1) for i, leg in enumerate(legs)) for s in t]
    length, _ = geometry(Chain(bends), differences_gram(W), t)
    np.testing.assert_allclose(length, np.array(reached) - reached[0], rtol=1e-10, atol=1e-12)


@given(st.integers(0, 1000), st.lists(st.floats(0, 1), min_size=2, max_size=6, unique=True))
def test_length_of_a_segment_is_its_share_of_the_distance(seed, t):
    W, t = control_points(Bezier(1), seed), np.sort(t)
    length, _ = geometry(segment(), differences_gram(W), t)
    np.testing.assert_allclose(length, (t - t[0]) * np.linalg.norm(W[1] - W[0]), rtol=1e-12, atol=1e-14)


def test_length_of_a_parabola():
    """Bends at (0,0), (1/2,0), (1,1) draw y = x^2, whose arc length is known."""
    W, t = np.array([[0, 0], [0.5, 0], [1, 1.0]]), np.linspace(0, 1, 5)
    length, _ = geometry(Bezier(2), differences_gram(W), t)
    wanted = (2 * t * np.sqrt(1 + 4 * t**2) + np.arcsinh(2 * t)) / 4
    np.testing.assert_allclose(length, wanted, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("degree", [1, 2, 4])
def test_length_does_not_depend_on_how_far_the_origin_is(degree):
    """Near-identical networks of large norm: an ordinary Gram matrix would leave no correct digit."""
    differences = 1e-5 * torch.tensor(control_points(Bezier(degree), 1, dimensions=40))
    far = 1e6 * torch.ones(40, dtype=torch.float64)
    W = far + differences
    exact = (W - W[0]).numpy()  # what the addition rounded to is not the path's doing
    t = np.linspace(0, 1, 4)
    near, _ = geometry(Bezier(degree), differences_gram(exact), t)
    length, l2 = geometry(Bezier(degree), gram(W.clone()), t)
    np.testing.assert_allclose(length, near, rtol=1e-9)
    np.testing.assert_allclose(length[-1], polyline_lengths(Bezier(degree), exact, t)[-1], rtol=1e-6)
    np.testing.assert_allclose(l2, 1e6 * np.sqrt(40), rtol=1e-9)


def test_coinciding_ends_have_no_length():
    W = np.ones((2, 5))
    length, l2 = geometry(segment(), differences_gram(W), np.linspace(0, 1, 3))
    np.testing.assert_array_equal(length, 0)
    np.testing.assert_allclose(l2, np.sqrt(5))


@given(families, st.floats(0, 1))
def test_a_single_t_has_no_length_but_a_norm(path, t):
    W = control_points(path, seed=5)
    length, l2 = geometry(path, differences_gram(W), np.array([t]))
    assert length.tolist() == [0]
    np.testing.assert_allclose(l2, [np.linalg.norm(explicit_point(path, W, t))], rtol=1e-7)


def test_geometry_leaves_its_arguments_alone():
    W, t = control_points(Chain(2), 0), np.linspace(0, 1, 4)
    squared = differences_gram(W)
    before = squared.copy(), t.copy()
    geometry(Chain(2), squared, t)
    np.testing.assert_array_equal(squared, before[0])
    np.testing.assert_array_equal(t, before[1])
