"""Bezier curves as in Garipov et al. 2018 (arXiv:1802.10026), equation 3; the segment is the one of degree 1."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import comb

from modeconn_cli.families.base import Array, Family, along
from modeconn_cli.families.options import Bends
from modeconn_cli.settings import choice


@dataclass(frozen=True)
class Bezier(Family):
    """A Bezier curve of degree n = K - 1; degree 1 is the segment (1-t, t)."""

    degree: int

    @property
    def vertices(self) -> int:
        return self.degree + 1

    def coefficients(self, u_td: ArrayLike) -> Array:
        return _bernstein(self.degree, along(u_td))

    def derivative(self, u_td: ArrayLike) -> Array:
        lower = _bernstein(self.degree - 1, along(u_td))
        none = np.zeros((len(lower), 1))
        return self.degree * (np.hstack([none, lower]) - np.hstack([lower, none]))

    def breaks(self) -> Array:
        return np.empty(0)


@choice("curve", "bezier")
@dataclass
class BezierCurve(Bends):
    """Options of :class:`Bezier`, of degree bends + 1."""

    def family(self) -> Bezier:
        return Bezier(self.bends + 1)

    @property
    def title(self) -> str:
        return self.titled("Bezier curve")


def segment() -> Bezier:
    """The straight line from W[0] to W[1]."""
    return Bezier(1)


def _bernstein(n: int, t: Array) -> Array:
    k = np.arange(n + 1)
    return comb(n, k) * t[:, None] ** k * (1 - t[:, None]) ** (n - k)
