"""What a family of points is."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

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
