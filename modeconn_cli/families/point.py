"""One network."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from modeconn_cli.families.base import Array, Family


@dataclass(frozen=True)
class Point(Family):
    """One network, and nowhere to go: ordinary training is fitting a family with a single control point."""

    coordinates = ()
    vertices = 1

    def coefficients(self, u_td: ArrayLike) -> Array:
        return np.ones((len(np.asarray(u_td)), 1))

    def grid(self, points: int) -> Array:
        return np.empty((1, 0))

    def anchors(self, u_td: ArrayLike) -> Array:
        return self.coefficients(u_td)

    def derivative(self, u_td: ArrayLike) -> Array:
        return np.zeros((len(np.asarray(u_td)), 1))

    def breaks(self) -> Array:
        return np.empty(0)
