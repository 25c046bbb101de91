"""What a way of merging is given: networks, what they were trained on from, and how points between them do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from modeconn_cli.families.base import Array
from modeconn_cli.merging.vectors import Parts, wide

# Of a network on the validation split, lower being better: a column's mean, and the loss, which tells equal ones apart.
Score = tuple[float, float]


@dataclass(frozen=True, eq=False)
class Merging:
    """A merged network.

    point: (P,). shares: (N,) of the networks in its buffers, not negative, of sum one. note: how it came about, as
    plain values; ``weights``, where it is an average with these.
    """

    point: Tensor
    shares: Sequence[float]
    note: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Given:
    """Networks to be merged.

    points: W (N, P). names: what they are called. parent: (P,) what all were trained on from, where that is given.
    parts: a point's tensors. size: how many of P are coordinates. alone: of every network the validation score, with
    its own buffers. score: that of a point (P,) with shares (N,) of the networks in its buffers.
    gradient: the validation loss there, and its gradient (P,). residuals: of every network's answers to the validation
    examples, (N, n, D). progress, check: as of matching.given.
    """

    points: Tensor
    names: Sequence[str]
    parts: Parts
    size: int
    parent: Tensor | None = None
    alone: Callable[[], Sequence[Score]] = lambda: ()
    score: Callable[[Tensor, Sequence[float]], Score] = lambda point, shares: (0.0, 0.0)
    gradient: Callable[[Tensor, Sequence[float]], tuple[float, Tensor]] = lambda point, shares: (0.0, point)
    residuals: Callable[[], Tensor] = lambda: torch.empty(0)
    progress: Callable[[int, int, str], None] = lambda done, total, note: None
    check: Callable[[], None] = lambda: None

    @property
    def evenly(self) -> list[float]:
        """The same share of each network."""
        return [1 / len(self.points)] * len(self.points)

    @property
    def vectors(self) -> Tensor:
        """T (N, P): what training changed of the parent."""
        assert self.parent is not None
        return self.points - self.parent

    def average(self, weights: Array) -> Tensor:
        """The networks' average (P,) with weights (N,) of sum one; a single one of them is left as it is."""
        used = [(float(a), w) for a, w in zip(weights, self.points, strict=True) if a != 0]
        if len(used) == 1:
            return used[0][1].clone()
        # In float64 a piece at a time: equal networks average to what they are.
        found = torch.empty_like(self.points[0])
        for start in range(0, len(found), 1 << 20):
            part = slice(start, start + (1 << 20))
            found[part] = sum(a * wide(w[part]) for a, w in used)
        return found

    def weighted(self, weights: Array, **note: Any) -> Merging:
        """:meth:`average` as a merged network."""
        kept = np.clip(weights, 0, None)
        shares = (kept / kept.sum()).tolist()
        return Merging(self.average(weights), shares, {"weights": [float(a) for a in weights], **note})
