"""Points that a training passes by, averaged as they come."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Average:
    """The running mean of points (P,), in float64 where the device has it.

    Args:
        like: a point, for its size and device.
        decay: the weight that the mean keeps when a point is added, of an exponential average; None: the plain mean.
    """

    def __init__(self, like: Tensor, decay: float | None = None) -> None:
        wide = torch.float32 if like.device.type == "mps" else torch.float64
        self.mean, self.decay, self.count = torch.zeros_like(like, dtype=wide), decay, 0

    @torch.no_grad()
    def add(self, w_p: Tensor) -> None:
        self.count += 1
        self.mean.lerp_(w_p.to(self.mean.dtype), self.share)

    @property
    def share(self) -> float:
        """Of the point that was added last."""
        return 1 / self.count if self.decay is None or self.count == 1 else 1 - self.decay

    def state(self) -> dict[str, Any]:
        """As Trainer.state."""
        return {"mean": self.mean, "count": self.count}

    def load(self, state: dict[str, Any]) -> None:
        self.mean.copy_(state["mean"])
        self.count = state["count"]
