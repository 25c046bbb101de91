"""Arc length and norm along a path; distance and norm on a surface."""

from __future__ import annotations

import numpy as np

from modeconn_cli.families.base import Array, Family

PIECES = 128  # at least, on the whole of t
CHORDS = 32  # in place of a piece, where the family gives no derivative


def geometry(family: Family, gram: Array, t: Array) -> tuple[Array, Array]:
    """Arc length from t[0] and norm |w(t)|, both in the weights' own Euclidean norm, for rising t (T,).

    ``gram`` (K, K) holds the inner products of the rows (W[0], W[1]-W[0], ..., W[K-1]-W[0]): differences, so
    that the speed between near-identical ends does not drown in cancellation.

    >>> from modeconn_cli.families.bezier import segment
    >>> length, norm = geometry(segment(), np.array([[9.0, 0.0], [0.0, 16.0]]), np.array([0.0, 1.0]))
    >>> [round(float(v), 6) for v in (*length, *norm)]  # from (3, 0) to (3, 4)
    [0.0, 4.0, 3.0, 5.0]
    """
    c = _coefficients(family, t)
    c[:, 0] = 1.0  # sum of the coefficients, which multiplies W[0] in the basis of differences
    pieces = _integrated if hasattr(family, "derivative") else _chords
    knots, lengths = pieces(family, gram, t)
    cumulative = np.concatenate([[0.0], np.cumsum(lengths)])
    return cumulative[np.searchsorted(knots, t)], _norms(c, gram)


def distances(family: Family, gram: Array, u_td: Array) -> tuple[Array, Array]:
    """Straight distance from the first of coordinates u (T, d), and norm |w(u)|, (T,) each; ``gram`` as above."""
    c = np.array(family.coefficients(u_td), dtype=np.float64)
    away = c - c[0]
    away[:, 0], c[:, 0] = 0.0, 1.0
    return _norms(away, gram), _norms(c, gram)


def _integrated(family: Family, gram: Array, t: Array) -> tuple[Array, Array]:
    """Knots (N,), among them every t, and lengths (N - 1,) between them, by the family's own derivative."""
    # Gauss-Legendre on pieces that are smooth and, however coarse the grid, short.
    nodes, weights = np.polynomial.legendre.leggauss(16)
    breaks = family.breaks() if hasattr(family, "breaks") else np.empty(0)
    knots = _knots(t, np.concatenate([breaks, np.linspace(0, 1, PIECES + 1)]))
    left, width = knots[:-1], np.diff(knots)
    inside = left[:, None] + width[:, None] * (nodes + 1) / 2
    d = family.derivative(inside.reshape(-1, 1))  # type: ignore[attr-defined]
    d[:, 0] = 0.0
    return knots, (_norms(d, gram).reshape(inside.shape) @ weights) * width / 2


def _chords(family: Family, gram: Array, t: Array) -> tuple[Array, Array]:
    """The same by chords: relative error of the order of 1e-8 on a smooth path, whose corners may lie anywhere."""
    knots = _knots(t, np.linspace(0, 1, PIECES * CHORDS + 1))
    steps = np.diff(_coefficients(family, knots), axis=0)
    steps[:, 0] = 0.0
    return knots, _norms(steps, gram)


def _knots(t: Array, inner: Array) -> Array:
    return np.unique(np.concatenate([t, inner[(t[0] < inner) & (inner < t[-1])]]))


def _coefficients(family: Family, t: Array) -> Array:
    return np.array(family.coefficients(t.reshape(-1, 1)), dtype=np.float64)


def _norms(c: Array, gram: Array) -> Array:
    return np.sqrt(np.maximum(np.einsum("ti,ij,tj->t", c, gram, c), 0))
