"""Polygonal chains as in Garipov et al. 2018 (arXiv:1802.10026), equation 2."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from modeconn_cli.families.base import Array, Family, along
from modeconn_cli.families.options import Bends
from modeconn_cli.settings import choice


@dataclass(frozen=True)
class Chain(Family):
    """A polygonal chain through K = bends + 2 points, each leg taking the same share of t."""

    bends: int

    @property
    def vertices(self) -> int:
        return self.bends + 2

    def coefficients(self, u_td: ArrayLike) -> Array:
        leg, within = self._locate(u_td)
        rows = np.arange(len(leg))
        c = np.zeros((len(leg), self.vertices))
        c[rows, leg] = 1 - within
        c[rows, leg + 1] = within
        return c

    def derivative(self, u_td: ArrayLike) -> Array:
        leg, _ = self._locate(u_td)
        rows = np.arange(len(leg))
        d = np.zeros((len(leg), self.vertices))
        d[rows, leg] = -(self.bends + 1)
        d[rows, leg + 1] = self.bends + 1
        return d

    def breaks(self) -> Array:
        return np.arange(1, self.bends + 1) / (self.bends + 1)

    def _locate(self, u_td: ArrayLike) -> tuple[NDArray[np.int64], Array]:
        t = along(u_td)
        leg = np.searchsorted(self.breaks(), t, side="right")
        return leg, np.clip(t * (self.bends + 1) - leg, 0, 1)


@choice("curve", "chain")
@dataclass
class ChainCurve(Bends):
    """Options of :class:`Chain`."""

    def family(self) -> Chain:
        return Chain(self.bends)

    @property
    def title(self) -> str:
        return self.titled("polygonal chain")
