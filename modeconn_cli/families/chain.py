"""Polygonal chains."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from modeconn_cli.families.base import Array


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
