"""Paths in weight space: w(t) = c(t) @ W, a family of coefficients c(t) times control points W (K, P).

Segments and Bezier curves as in Garipov et al. 2018 (arXiv:1802.10026), equations 2 and 3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import comb

Array = NDArray[np.float64]


class Path(Protocol):
    """A family of coefficients over t in [0, 1], float64 throughout; rows of W come out exactly at the ends."""

    @property
    def control_points(self) -> int:
        """K."""

    def coefficients(self, t: ArrayLike) -> Array:
        """c(t) of shape (T, K), rows summing to one."""

    def derivative(self, t: ArrayLike) -> Array:
        """dc/dt of shape (T, K), rows summing to zero; from the right where it jumps."""

    def breaks(self) -> Array:
        """Where the derivative jumps, strictly between 0 and 1."""


@dataclass(frozen=True)
class Point:
    """One network, wherever t is: ordinary training is fitting a path with a single control point."""

    control_points: int = 1

    def coefficients(self, t: ArrayLike) -> Array:
        return np.ones((len(np.asarray(t)), 1))

    def derivative(self, t: ArrayLike) -> Array:
        return np.zeros((len(np.asarray(t)), 1))

    def breaks(self) -> Array:
        return np.empty(0)


@dataclass(frozen=True)
class Bezier:
    """A Bezier curve of degree n = K - 1; degree 1 is the segment (1-t, t)."""

    degree: int

    @property
    def control_points(self) -> int:
        return self.degree + 1

    def coefficients(self, t: ArrayLike) -> Array:
        return _bernstein(self.degree, np.asarray(t, dtype=np.float64))

    def derivative(self, t: ArrayLike) -> Array:
        lower = _bernstein(self.degree - 1, np.asarray(t, dtype=np.float64))
        none = np.zeros((len(lower), 1))
        return self.degree * (np.hstack([none, lower]) - np.hstack([lower, none]))

    def breaks(self) -> Array:
        return np.empty(0)


@dataclass(frozen=True)
class Chain:
    """A polygonal chain through K = bends + 2 points, each leg taking the same share of t."""

    bends: int

    @property
    def control_points(self) -> int:
        return self.bends + 2

    def coefficients(self, t: ArrayLike) -> Array:
        leg, within = self._locate(t)
        rows = np.arange(len(leg))
        c = np.zeros((len(leg), self.control_points))
        c[rows, leg] = 1 - within
        c[rows, leg + 1] = within
        return c

    def derivative(self, t: ArrayLike) -> Array:
        leg, _ = self._locate(t)
        rows = np.arange(len(leg))
        d = np.zeros((len(leg), self.control_points))
        d[rows, leg] = -(self.bends + 1)
        d[rows, leg + 1] = self.bends + 1
        return d

    def breaks(self) -> Array:
        return np.arange(1, self.bends + 1) / (self.bends + 1)

    def _locate(self, t: ArrayLike) -> tuple[NDArray[np.int64], Array]:
        t = np.asarray(t, dtype=np.float64)
        leg = np.searchsorted(self.breaks(), t, side="right")
        return leg, np.clip(t * (self.bends + 1) - leg, 0, 1)


def segment() -> Bezier:
    """The straight line from W[0] to W[1]."""
    return Bezier(1)


def by_name(kind: str, control_points: int) -> Path:
    """The family called ``bezier`` or ``chain`` with K control points (K at least 2)."""
    return Bezier(control_points - 1) if kind == "bezier" else Chain(control_points - 2)


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


def _bernstein(n: int, t: Array) -> Array:
    k = np.arange(n + 1)
    return comb(n, k) * t[:, None] ** k * (1 - t[:, None]) ** (n - k)
