"""What a family of points in weight space is: w(u) = c(u) @ W, coefficients c (K,) times control points W (K, P)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from modeconn_cli.errors import UserError

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


def end_coordinates(family: Family) -> Array:
    """Coordinates (2, d) of the first and the last control point: 0 and 1 of a path, else corners of the unit cube.

    Raises:
        ValueError: one of them is at no corner.
    """
    d = len(family.coordinates)
    if d == 1:
        return np.array([[0.0], [1.0]])
    corners = np.array(list(itertools.product((0.0, 1.0), repeat=d)))
    c = np.asarray(family.coefficients(corners), dtype=np.float64)
    wanted = np.eye(family.vertices)[[0, -1]]
    found = [np.flatnonzero(np.isclose(c, row, rtol=0, atol=1e-9).all(1)) for row in wanted]
    for name, at in zip(("first", "last"), found, strict=True):
        if not len(at):
            raise ValueError(f"its {name} control point is at no corner of the unit cube")
    return corners[[at[0] for at in found]]


def coefficients_at(family: Family, u: float | Sequence[float]) -> Array:
    """c(u), (K,), at coordinates (d,); at the ends it is the first and the last control point to the last bit.

    Raises:
        UserError: the family has another number of coordinates.
    """
    at = np.atleast_1d(np.asarray(u, dtype=np.float64))
    if len(at) != len(family.coordinates):
        names = ", ".join(family.coordinates)
        raise UserError(f"t={u} is no point of a surface over {names}: what asks for one t does so of a path.")
    for row, end in zip((0, -1), end_coordinates(family), strict=True):
        if np.array_equal(at, end):
            one_hot: Array = np.eye(family.vertices)[row]
            return one_hot
    return family.coefficients(at[None])[0]
