"""Multilayer perceptron."""

from __future__ import annotations

import math
from itertools import pairwise

from torch import Tensor, nn

from modeconn_cli.errors import UserError

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "tanh": nn.Tanh}
NORMS: dict[str, type[nn.Module] | None] = {"batch": nn.BatchNorm1d, "layer": nn.LayerNorm, "none": None}


class MLP(nn.Module):
    """``depth`` hidden layers of ``width`` units on the flattened example: (N, *in_shape) -> (N, classes).

    A norm, where asked for, stands between each hidden linear map and its non-linearity; before BatchNorm, whose own
    shift would make it redundant, the map has no bias.
    """

    def __init__(self, features: int, classes: int, width: int, depth: int, activation: str, norm: str) -> None:
        super().__init__()
        sizes = [features] + [width] * depth
        make_norm = NORMS[norm]
        self.hidden = nn.Sequential()
        for fan_in, fan_out in pairwise(sizes):
            self.hidden.append(nn.Linear(fan_in, fan_out, bias=norm != "batch"))
            if make_norm is not None:
                self.hidden.append(make_norm(fan_out))
            self.hidden.append(ACTIVATIONS[activation]())
        self.head = nn.Linear(sizes[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.hidden(x.flatten(1)))


def build(
    in_shape: tuple[int, ...],
    classes: int,
    *,
    width: int = 128,
    depth: int = 3,
    activation: str = "relu",
    norm: str = "none",
) -> MLP:
    """An :class:`MLP`; depth 0 is a linear classifier. Raises UserError for an unknown activation or norm."""
    if activation not in ACTIVATIONS:
        raise UserError(f"mlp has no activation {activation!r}: use {', '.join(ACTIVATIONS)}")
    if norm not in NORMS:
        raise UserError(f"mlp has no norm {norm!r}: set architecture.norm to {', '.join(NORMS)}")
    return MLP(math.prod(in_shape), classes, width, depth, activation, norm)
