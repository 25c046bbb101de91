"""What every search for permutations finds, and how it is stopped and goes on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Matching:
    """Permutations found, one for each group; the objective after every sweep of the best start, and which it was.

    permutations: (size,) for each group, where each new index comes from.
    before, after: the objective of B as it was given, and as these permutations leave it.
    measure: what the objective is; it grows, but for a loss.
    """

    permutations: list[Tensor]
    objective: list[float]
    start: int
    before: float
    after: float
    measure: str = "inner product"


@dataclass(frozen=True)
class AllMatched:
    """Permutations found for any number of networks, the first's the identity, and the objective after every sweep.

    permutations: for every network (size,) for each group, where each new index comes from.
    """

    permutations: list[list[Tensor]]
    objective: list[float]
    measure: str = "sum over pairs of inner products"


class Memory(Protocol):
    """Where a search leaves what it has found, for a later process to go on from to the same end."""

    @property
    def due(self) -> bool:
        """Whether it is time to leave something."""

    def begun(self) -> dict[str, Any] | None:
        """What was left; None: nothing."""

    def save(self, state: dict[str, Any]) -> None:
        """Leave tensors and plain values."""

    def stop_if_asked(self) -> None:
        """Raise where a stop was asked for before the last look at :attr:`due`, since when all is saved."""


class NoMemory:
    """Leaves nothing and begins anew."""

    due = False

    def begun(self) -> dict[str, Any] | None:
        return None

    def save(self, state: dict[str, Any]) -> None:
        pass

    def stop_if_asked(self) -> None:
        pass


NO_MEMORY = NoMemory()


def searched(value: Tensor) -> Tensor:
    """A parameter as searches compare it: in float32; of a complex one, real and imaginary parts, a dimension more."""
    return (torch.view_as_real(value) if value.is_complex() else value).detach().float()


def computed(value: Tensor, dtype: torch.dtype) -> Tensor:
    """What :func:`searched` gave, as a network of this type computes with it."""
    value = value.to(dtype.to_real())
    return torch.view_as_complex(value.contiguous()) if dtype.is_complex else value
