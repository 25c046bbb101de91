"""What a network holds besides its coordinates, and what of it holds at a point between networks.

running statistics   of norms that train: estimated anew, or averaged             statistics.py
singular vectors     of spectral norms: computed from the weights at the point    spectral.py
what all ends share  kept as it is, entry by entry: constants, masks, frozen norms
everything else      real and complex numbers interpolated where they are finite; what is left, as integers, taken
                     from the nearest end; named, since neither need be what is meant
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from modeconn_cli.evaluation.spectral import settle, vector_names
from modeconn_cli.evaluation.statistics import norm_layers, statistics_names
from modeconn_cli.forward import identical
from modeconn_cli.states import named_state, set_state

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Kinds:
    """Names, as a module's state has them, of running statistics with their counters, and of singular vectors."""

    statistics: frozenset[str]
    vectors: frozenset[str]

    @staticmethod
    def of(module: nn.Module) -> Kinds:
        return Kinds(frozenset(statistics_names(module, norm_layers(module))), frozenset(vector_names(module)))

    def between(self, ends: Sequence[State], shares: Sequence[float]) -> dict[str, Tensor]:
        """Tensors of networks by these shares, which sum to one.

        Statistics are averaged, their counters the first end's; singular vectors are an end's, to be computed anew.
        """
        nearest = max(range(len(ends)), key=lambda i: shares[i])
        found = {}
        for key, first in ends[0].items():
            values = [end[key] for end in ends]
            if key in self.statistics and not first.is_floating_point():
                found[key] = first
            elif key in self.vectors or not (first.is_floating_point() or first.is_complex()):
                found[key] = values[nearest]
            else:
                found[key] = _interpolated(values, shares, nearest)
        return found

    def unknown(self, ends: Sequence[State]) -> list[str]:
        """Names of what differs between the ends and is neither statistics nor singular vectors."""
        known = self.statistics | self.vectors
        return [k for k, v in ends[0].items() if k not in known and not all(identical(v, e[k]) for e in ends[1:])]


def _interpolated(values: Sequence[Tensor], shares: Sequence[float], nearest: int) -> Tensor:
    """The mean by shares, entry by entry, where all are finite; elsewhere the nearest end's."""
    so_far, mean = shares[0], values[0]
    for value, share in zip(values[1:], shares[1:], strict=True):
        so_far += share
        # Leaves what all agree in exactly as it is.
        mean = torch.lerp(mean, value, share / so_far if so_far else 0.0)
    finite = torch.stack([torch.isfinite(v) for v in values]).all(0)
    return mean if finite.all() else torch.where(finite, mean, values[nearest])


def midpoint(module: nn.Module, a: State, b: State) -> dict[str, Tensor]:
    """The state halfway between two networks of a module's architecture, statistics averaged; all on the CPU."""
    made = copy.deepcopy(module).cpu()
    set_state(made, Kinds.of(module).between([a, b], [0.5, 0.5]))
    settle(made)
    return {k: v.detach() for k, v in named_state(made).items()}
