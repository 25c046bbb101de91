"""One network."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from modeconn_cli.families.base import Array


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
