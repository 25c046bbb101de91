"""The permutation groups of a network, and how they act on its tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from modeconn_cli.symmetry.axes import Axis, Leaf, Place, families, leaves, permuted, places, resolve

Axes = list[Axis]


@dataclass(frozen=True)
class Group:
    """One index set whose permutations leave the network's function as it is.

    tensor, dim: the first tensor dimension that it runs along; size: of the index set.
    """

    tensor: str
    dim: int
    size: int
    leaf: Leaf

    @property
    def name(self) -> str:
        """As ``features.0.weight[0]``; groups inside the heads of one tensor share it."""
        return f"{self.tensor}[{self.dim}]"


@dataclass
class Symmetry:
    """The permutation groups of a network, and how they act on its tensors.

    groups: those with more than one index, in the order in which parameters meet them.
    axes: of every parameter and buffer, by its name in state_dict.
    inside: for a group, what depends on it: for every index of the group the groups that move there, as number lists.
    held_by: operations that need an order or are not known, each with the dimensions of tensors that it holds in place.
    program: the traced graph, if there is one. seen_at: the axes of those of its values that are activations, by name.
    """

    groups: list[Group]
    axes: dict[str, Axes]
    inside: dict[int, list[list[list[int]]]]
    held_by: dict[str, list[str]] = field(default_factory=dict)
    program: torch.export.ExportedProgram | None = field(default=None, repr=False)
    seen_at: dict[str, Axes] = field(default_factory=dict, repr=False)

    @cached_property
    def places(self) -> dict[str, list[Place]]:
        """Where leaves run along every tensor."""
        return {name: places(axes) for name, axes in self.axes.items()}

    def permute(self, state: dict[str, Tensor], permutations: Sequence[Tensor]) -> dict[str, Tensor]:
        """The state of the same function after permuting every group.

        Args:
            state: a state_dict of the traced module.
            permutations: for each group, (size,) where each new index comes from.
        """
        by_leaf = {g.leaf: p.cpu() for g, p in zip(self.groups, permutations, strict=True)}
        return {name: permuted(value, self.places.get(name, []), by_leaf) for name, value in state.items()}

    def moves(self, state: dict[str, Tensor], permutations: Sequence[Tensor]) -> dict[str, Tensor]:
        """What :meth:`permute` does, for use without this project.

        ``<tensor>:<dim>`` is what ``index_select`` along that dimension takes, for every dimension that may move. Where
        what moves along one dimension depends on another, ``<tensor>`` is the flat position of every element's source.
        """
        by_leaf = {g.leaf: p.cpu() for g, p in zip(self.groups, permutations, strict=True)}
        found: dict[str, Tensor] = {}
        for name, value in state.items():
            runs = [p for p in self.places.get(name, []) if p.leaf in by_leaf]
            if any(p.within for p in runs):
                found[name] = permuted(torch.arange(value.numel()).view(value.shape), runs, by_leaf)
                continue
            for dim in sorted({p.dim for p in runs}):
                found[f"{name}:{dim}"] = permuted(
                    torch.arange(value.shape[dim]), [replace(p, dim=0) for p in runs if p.dim == dim], by_leaf
                )
        return found

    def turn(self, permutations: list[Tensor], group: int, relative: Tensor) -> None:
        """Permute one group further, from what it is; what moves inside its indices goes where they go."""
        permutations[group] = permutations[group][relative]
        for members in self.inside.get(group, []):
            before = [[permutations[g] for g in here] for here in members]
            for here, source in zip(members, relative.tolist(), strict=True):
                for g, permutation in zip(here, before[source], strict=True):
                    permutations[g] = permutation

    def identity(self) -> list[Tensor]:
        """The permutations that move nothing."""
        return [torch.arange(g.size) for g in self.groups]


def symmetry_of(tensors: Mapping[str, Axes]) -> Symmetry:
    """The groups that tensors have, by their names in state_dict, once all equations between their axes are made."""
    groups: dict[Leaf, Group] = {}
    for name, axes in tensors.items():
        for dim, axis in enumerate(axes):
            for leaf in leaves(axis):
                if not leaf.pinned and leaf.size > 1 and leaf not in groups:
                    groups[leaf] = Group(name, dim, leaf.size, leaf)
    number = {leaf: i for i, leaf in enumerate(groups)}
    inside: dict[int, list[list[list[int]]]] = {}
    for axes in tensors.values():
        for family in [f for axis in axes for f in families(axis)]:
            over = resolve(family.over)
            members = [[number[leaf] for leaf in leaves(m) if leaf in number] for m in family.members]
            if isinstance(over, Leaf) and over in number and any(members):
                known = inside.setdefault(number[over], [])
                if members not in known:
                    known.append(members)
    return Symmetry(list(groups.values()), dict(tensors), inside)
