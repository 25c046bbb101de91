"""What methods that descend a loss share: losses of networks between A and B, and the best midpoint so far."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from modeconn_cli.matching.search import Matching
from modeconn_cli.symmetry.groups import Symmetry

if TYPE_CHECKING:
    from modeconn_cli.matching.given import Given

Parameters = Mapping[str, Tensor]
Loss = Callable[[Parameters, int], Tensor]  # of a network with these parameters, on a step's batch
Check = Callable[[Parameters], float]  # of a network with these parameters, on examples that are always the same
Watch = Callable[[int, float], None]  # step, loss; it may raise to stop


def told(given: Given, steps: int) -> Watch:
    """Tells how far a training is, and stops it where that was asked for and its state is saved."""

    def watch(step: int, loss: float) -> None:
        given.progress(step + 1, steps, f"loss {loss:.4f}")
        given.memory.stop_if_asked()

    return watch


class BestMidpoint:
    """The permutations with the lowest midpoint loss so far, from none on, and what every check found."""

    def __init__(self, symmetry: Symmetry, a: Parameters, b: Parameters, check: Check) -> None:
        self.symmetry, self.a, self.b, self.check = symmetry, a, b, check
        self.found: list[float] = []
        self._lowest = float("inf")
        self.permutations = symmetry.identity()
        self.try_out(self.permutations)

    def try_out(self, permutations: Sequence[Tensor]) -> None:
        """Check the midpoint of A and the permuted B."""
        moved = self.symmetry.permute(dict(self.b), permutations)
        loss = self.check({n: torch.lerp(self.a[n], moved[n], 0.5) for n in self.a})
        if loss < self._lowest:
            self.permutations, self._lowest = [p.clone() for p in permutations], loss
        self.found.append(loss)

    def state(self) -> dict[str, Any]:
        return {"found": self.found, "lowest": self._lowest, "permutations": self.permutations}

    def load(self, state: Mapping[str, Any]) -> None:
        self.found, self._lowest, self.permutations = state["found"], state["lowest"], state["permutations"]

    def matching(self) -> Matching:
        return Matching(self.permutations, self.found, 0, self.found[0], self._lowest, "midpoint loss")
