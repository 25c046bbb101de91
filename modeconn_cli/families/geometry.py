"""Arc length and norm along a path."""

from __future__ import annotations

import numpy as np

from modeconn_cli.families.base import Array, Path


def geometry(path: Path, gram: Array, t: Array) -> tuple[Array, Array]:
    """Arc length from t[0] and norm |w(t)|, both in the weights' own Euclidean norm, for rising t (T,).

    ``gram`` (K, K) holds the inner products of the rows (W[0], W[1]-W[0], ..., W[K-1]-W[0]): differences, so
    that the speed between near-identical ends does not drown in cancellation.
    """
    c = path.coefficients(t)
    c[:, 0] = 1.0  # sum of the coefficients, which multiplies W[0] in the basis of differences
    l2 = np.sqrt(np.maximum(np.einsum("ti,ij,tj->t", c, gram, c), 0))

    # Gauss-Legendre on pieces that are smooth and, however coarse the grid, short.
    nodes, weights = np.polynomial.legendre.leggauss(16)
    inner = np.concatenate([path.breaks(), np.linspace(0, 1, 129)])
    knots = np.unique(np.concatenate([t, inner[(t[0] < inner) & (inner < t[-1])]]))
    left, width = knots[:-1], np.diff(knots)
    inside = left[:, None] + width[:, None] * (nodes + 1) / 2
    d = path.derivative(inside.ravel())
    d[:, 0] = 0.0
    speed = np.sqrt(np.maximum(np.einsum("ti,ij,tj->t", d, gram, d), 0)).reshape(inside.shape)
    pieces = (speed @ weights) * width / 2
    cumulative = np.concatenate([[0.0], np.cumsum(pieces)])
    return cumulative[np.searchsorted(knots, t)], l2
