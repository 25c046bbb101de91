"""Points that a training passes by: their mean, and the Gaussian of SWAG, gathered as they come.

Izmailov et al. 2018 (arXiv:1803.05407); Maddox et al. 2019 (arXiv:1902.02476), section 3.
"""

from __future__ import annotations

import math
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


class Gaussian(Average):
    """The mean m of points w_i, the mean of their squares, and the last K deviations D, the newest last.

    A deviation is from the running mean that holds the point already, as in the published code: the first is zero.
    """

    def __init__(self, like: Tensor, rank: int) -> None:
        super().__init__(like)
        self.rank, self.square = rank, torch.zeros_like(self.mean)
        self._deviations: list[Tensor] = []  # on the CPU: they are the bulk, and used once

    @torch.no_grad()
    def add(self, w_p: Tensor) -> None:
        super().add(w_p)
        wide = w_p.to(self.mean.dtype)
        self.square.lerp_(wide.square(), self.share)
        kind = torch.promote_types(w_p.dtype, torch.float32)
        self._deviations = [*self._deviations, (wide - self.mean).to("cpu", kind)][-self.rank :]

    @property
    def deviations(self) -> Tensor:
        """D (K, P), on the CPU."""
        return torch.stack(self._deviations)

    def variance(self, floor: float) -> Tensor:
        """sigma^2 (P,): the mean of squares less the square of the mean, no less than ``floor``."""
        return (self.square - self.mean.square()).clamp(min=floor)

    def state(self) -> dict[str, Any]:
        return {**super().state(), "square": self.square, "deviations": self._deviations}

    def load(self, state: dict[str, Any]) -> None:
        super().load(state)
        self.square.copy_(state["square"])
        self._deviations = [*state["deviations"]]


def gaussian_sample(mean_p: Tensor, variance_p: Tensor, D_kp: Tensor, z1_p: Tensor, z2_k: Tensor) -> Tensor:
    """m + sigma z1 / sqrt(2) + D^T z2 / sqrt(2 (K - 1)), of covariance diag(sigma^2) / 2 + D^T D / (2 (K - 1)).

    Args:
        mean_p, variance_p: (P,) m and sigma^2, the variance and not the deviation.
        D_kp: (K, P), K of at least 2.
        z1_p, z2_k: (..., P) and (..., K), standard normal.
    """
    K = len(D_kp)
    return mean_p + variance_p.sqrt() * z1_p / math.sqrt(2) + z2_k @ D_kp / math.sqrt(2 * (K - 1))
