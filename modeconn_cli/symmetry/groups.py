"""The symmetry groups of a network, and how they act on its tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from modeconn_cli.symmetry.axes import Action, Axes, Leaf
from modeconn_cli.symmetry.equations import dependents, leaves, pin, resolve
from modeconn_cli.symmetry.places import Place, permuted, places

FROZEN = "freezing"  # what holds parameters that do not train


@dataclass(frozen=True)
class Group:
    """One index set that may be acted on without the network's function changing.

    tensor, dim: the first tensor dimension that it runs along; size: of the index set; leaf: the index set itself.
    """

    tensor: str
    dim: int
    size: int
    leaf: Leaf

    @property
    def name(self) -> str:
        """As ``features.0.weight[0]``; groups inside the heads of one tensor share it."""
        return f"{self.tensor}[{self.dim}]"

    @property
    def action(self) -> Action:
        """What may act on it."""
        return self.leaf.action


@dataclass
class Symmetry:
    """The permutation groups of a network, and how they act on its tensors.

    groups: those with more than one index, in the order in which parameters meet them.
    axes: of every parameter and buffer, by its name in state_dict.
    inside: for a group, what depends on it: for every index of the group the groups that move there, as number lists.
    pinned_by: operations that need an order or are not known, each with the dimensions of tensors that it pins.
    program: the traced graph, if there is one. activations: the axes of those of its values that units are compared at,
        by name.

    >>> free = Leaf(3)
    >>> symmetry = symmetry_of({"w": [free, Leaf(2, Action.fixed)], "v": [free]})
    >>> state = {"w": torch.arange(6).view(3, 2), "v": torch.arange(3)}
    >>> moved = symmetry.permute(state, [torch.tensor([2, 0, 1])])
    >>> moved["w"].tolist(), moved["v"].tolist()
    ([[4, 5], [0, 1], [2, 3]], [2, 0, 1])
    """

    groups: list[Group]
    axes: dict[str, Axes]
    inside: dict[int, list[list[list[int]]]]
    pinned_by: dict[str, list[str]] = field(default_factory=dict)
    program: torch.export.ExportedProgram | None = field(default=None, repr=False)
    activations: dict[str, Axes] = field(default_factory=dict, repr=False)

    @property
    def leaves(self) -> list[Leaf]:
        """The index set of every group."""
        return [g.leaf for g in self.groups]

    @cached_property
    def places(self) -> dict[str, list[Place]]:
        """Where leaves run along every tensor."""
        return {name: places(axes) for name, axes in self.axes.items()}

    def permute(self, state: dict[str, Tensor], permutations: Sequence[Tensor]) -> dict[str, Tensor]:
        """The state of the same function after permuting every group.

        Args:
            state: a state_dict of the traced module.
            permutations: for each group, (size,) where each new index comes from.

        Returns:
            Tensors of the same shapes; those that nothing moves are the ones given.
        """
        by_leaf = {leaf: p.cpu() for leaf, p in zip(self.leaves, permutations, strict=True)}
        return {name: permuted(value, self.places.get(name, []), by_leaf) for name, value in state.items()}

    def moves(self, state: dict[str, Tensor], permutations: Sequence[Tensor]) -> dict[str, Tensor]:
        """What :meth:`permute` does, for use without this project.

        ``<tensor>:<dim>`` is what ``index_select`` along that dimension takes, for every dimension that may move. Where
        what moves along one dimension depends on another, ``<tensor>`` is the flat position of every element's source.
        """
        by_leaf = {leaf: p.cpu() for leaf, p in zip(self.leaves, permutations, strict=True)}
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

    def permute_group(self, permutations: list[Tensor], group: int, relative: Tensor) -> None:
        """Permute one group further, in place: by ``relative`` (size,) from where ``permutations`` have brought it.

        What moves inside its indices goes where they go.
        """
        permutations[group] = permutations[group][relative]
        for members in self.inside.get(group, []):
            before = [[permutations[g] for g in here] for here in members]
            for here, source in zip(members, relative.tolist(), strict=True):
                for g, permutation in zip(here, before[source], strict=True):
                    permutations[g] = permutation

    def identity(self) -> list[Tensor]:
        """The permutations that move nothing."""
        return [torch.arange(g.size) for g in self.groups]


def moved(state: Mapping[str, Tensor], moves: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state permuted by what :meth:`Symmetry.moves` gave."""
    found = dict(state)
    for key, source in moves.items():
        name, _, dim = key.rpartition(":")
        if name in found and dim.isdecimal():
            found[name] = found[name].index_select(int(dim), source)
        else:
            found[key] = found[key].reshape(-1)[source.reshape(-1)].view(found[key].shape)
    return found


def frozen(module: nn.Module) -> list[str]:
    """The parameters that do not train beside some that do: they are fixed, and so is the order of what they hold."""
    parameters = dict(module.named_parameters())
    trains = any(p.requires_grad for p in parameters.values())
    return [n for n, p in parameters.items() if trains and not p.requires_grad]


def held(symmetry: Symmetry, module: nn.Module) -> Symmetry:
    """The groups that leave a module's frozen parameters where they are."""
    for name in frozen(module):
        for axis in symmetry.axes.get(name, []):
            pin(axis, FROZEN)
    return symmetry_of(symmetry.axes)


def symmetry_of(tensors: Mapping[str, Axes]) -> Symmetry:
    """The groups that tensors have, by their names in state_dict, once all equations between their axes are made.

    Raises:
        ValueError: more than permutations may act on an axis, which nothing here searches for or applies.
    """
    groups: dict[Leaf, Group] = {}
    for name, axes in tensors.items():
        for dim, axis in enumerate(axes):
            for leaf in leaves(axis):
                if leaf.action > Action.permutation:
                    raise ValueError(f"{name}[{dim}] has the action {leaf.action.name}; give fixed or permutation")
                if not leaf.pinned and leaf.size > 1 and leaf not in groups:
                    groups[leaf] = Group(name, dim, leaf.size, leaf)
    number = {leaf: i for i, leaf in enumerate(groups)}
    inside: dict[int, list[list[list[int]]]] = {}
    for axes in tensors.values():
        for dependent in [d for axis in axes for d in dependents(axis)]:
            over = resolve(dependent.over)
            members = [[number[leaf] for leaf in leaves(m) if leaf in number] for m in dependent.members]
            if isinstance(over, Leaf) and over in number and any(members):
                known = inside.setdefault(number[over], [])
                if members not in known:
                    known.append(members)
    return Symmetry(list(groups.values()), dict(tensors), inside)
