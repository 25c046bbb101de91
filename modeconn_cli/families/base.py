"""What a family of points in weight space is: w(u) = c(u) @ W, coefficients c (K,) times control points W (K, P)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from torch import Tensor

Array = NDArray[np.float64]


class Family(Protocol):
    """Coefficients over the unit cube of the family's own coordinates, float64 throughout.

    A family must say ``vertices`` and ``coefficients``; the rest is here for one that runs from its first control
    point to its last over ``t``. It may also have ``derivative(u_td) -> (T, K)`` and ``breaks() -> (B,)``, where the
    derivative jumps, which make its length exact; see :func:`modeconn_cli.families.geometry.geometry`.

        >>> class Line(Family):
        ...     vertices = 2
        ...
        ...     def coefficients(self, u_td):
        ...         return np.hstack([1 - u_td, u_td])
        >>> Line().coefficients(Line().grid(3)).tolist()
        [[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]]
    """

    coordinates: tuple[str, ...] = ("t",)

    @property
    def vertices(self) -> int:
        """K, the number of control points."""

    def coefficients(self, u_td: ArrayLike) -> Array:
        """c (T, K) at coordinates u (T, d), each row summing to one; an endpoint's row is one-hot exactly."""

    def draw(self, rng: np.random.Generator, steps: int, stratified: bool = True) -> Array:
        """Coefficients (steps, K) to train an epoch at: u is uniform, each coordinate once in every stratum."""
        u = rng.random((steps, len(self.coordinates)))
        if stratified:
            for column in u.T:
                column[:] = (rng.permutation(steps) + column) / steps
        return self.coefficients(u)

    def grid(self, points: int) -> Array:
        """Coordinates (T, d) to evaluate at: ``points`` along each."""
        along = [np.linspace(0, 1, points) for _ in self.coordinates]
        return np.stack(np.meshgrid(*along, indexing="ij"), axis=-1).reshape(-1, len(along))

    def anchors(self, u_td: ArrayLike) -> Array:
        """Shares (T, E) of the buffers of the networks that the family joins; each row sums to one.

        Here of the first and the last control point, each point between them by its place in the row.
        """
        last = self.coefficients(u_td) @ np.linspace(0, 1, self.vertices)
        return np.stack([1 - last, last], axis=1)

    def force(self, g_p: Tensor, W_kp: Tensor, c_k: Tensor) -> Tensor:
        """dW (K, P) for a loss whose gradient at c @ W is g (P,): c outer g. All are on the network's device."""
        return c_k[:, None] * g_p

    def penalty(self, gram_kk: Tensor) -> Tensor:
        """A term () of the objective that knows W alone, by the float64 inner products of its rows."""
        return gram_kk.new_zeros(())


def overrides(family: Family, method: str) -> bool:
    """Whether a family has a method of its own in place of the default."""
    return getattr(type(family), method, None) not in (None, getattr(Family, method))


def along(u: ArrayLike) -> Array:
    """The single coordinate t (T,) out of u (T, 1) or (T,)."""
    return np.asarray(u, dtype=np.float64).reshape(-1)


def coefficients_at(family: Family, t: float) -> Array:
    """c(t), (K,), of a path; at its ends it is its first and last control point to the last bit."""
    if t in (0.0, 1.0):
        one_hot: Array = np.eye(family.vertices)[-int(t)]
        return one_hot
    return family.coefficients([[t]])[0]
