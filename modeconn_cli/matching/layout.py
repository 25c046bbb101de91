"""Where a network's groups run through its tensors, and which of them meet there: all that weights do not change."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from modeconn_cli.symmetry.equations import leaves
from modeconn_cli.symmetry.groups import Symmetry
from modeconn_cli.symmetry.places import Place


@dataclass(frozen=True)
class Occurrence:
    """Where a group runs along a tensor.

    tensor: the number of the tensor; number: of this among the places of groups along it.
    first: of consecutive positions, which need no copy to be looked at; else None.
    """

    tensor: int
    place: Place
    first: int | None
    number: int

    @property
    def dim(self) -> int:
        return self.place.dim

    def rows(self, tensor: Tensor) -> Tensor:
        """A tensor as (size, everything else) along it."""
        place, n = self.place, len(self.place.at)
        for dim, at in place.within:
            tensor = tensor.index_select(dim, at.to(tensor.device))
        if self.first is not None:
            return tensor.narrow(place.dim, self.first, n).movedim(place.dim, 0).reshape(n, -1)
        at = place.at.reshape(-1).to(tensor.device)
        return tensor.index_select(place.dim, at).movedim(place.dim, 0).reshape(n, -1)


# For each index of a group the group inside it, and which of that one's occurrences.
Inner = list[tuple[int, int]]


class Layout:
    """The occurrences of groups in tensors.

    counting: the names of all tensors that count, which a search may share a layout for.
    names: those of them that groups run through; shapes, places: of each of these, and where groups run along it.
    occurrences: of each group. The following are lists of the same shape, or for each group:
    neighbours: the other groups that move what an occurrence sees.
    quadratic: whether a group runs twice through the same part of a tensor, so that its objective is quadratic.
    across: the other dimensions of the tensor along which something moves; None where these do not move by themselves.
    alike: a group's occurrences, those together that have the same neighbours, without those that are nested.
    nested: which occurrences are made of what is inside the group, and of which inner groups. What is inside can then
        be given its best permutation for every pair of the group's indices.
    """

    def __init__(self, symmetry: Symmetry, tensors: Mapping[str, Tensor], names: Sequence[str]) -> None:
        """The layout of the named tensors, of which the shapes alone matter."""
        self.symmetry = symmetry
        self.counting = names
        self.groups = symmetry.groups
        number = {leaf: i for i, leaf in enumerate(symmetry.leaves)}
        self.names = [n for n in names if any(leaf in number for axis in symmetry.axes[n] for leaf in leaves(axis))]
        self.shapes = [tensors[n].shape for n in self.names]
        self.places = [symmetry.places[n] for n in self.names]
        self.occurrences: list[list[Occurrence]] = [[] for _ in self.groups]
        self.neighbours: list[list[set[int]]] = [[] for _ in self.groups]
        self.overlaps: list[np.ndarray] = []  # of each tensor, which occurrences have elements in common
        self.quadratic = [False] * len(self.groups)
        for t, along in enumerate(self.places):
            here = [(number[p.leaf], p) for p in along if p.leaf in number]
            overlaps = _overlaps([p for _, p in here], self.shapes[t])
            self.overlaps.append(overlaps)
            for k, (g, place) in enumerate(here):
                self.occurrences[g].append(_occurrence(t, place, k))
                met = [here[j][0] for j in range(len(here)) if j != k and overlaps[k, j]]
                self.neighbours[g].append(set(met) - {g})
                self.quadratic[g] = self.quadratic[g] or g in met
        self.nested = [self._nested(g) for g in range(len(self.groups))]
        self.alike = [self._alike(g) for g in range(len(self.groups))]
        self.across = [[self._across(run) for run in runs] for runs in self.occurrences]

    def _across(self, run: Occurrence) -> list[int] | None:
        along = self.places[run.tensor]
        here = torch.cat([p.at.reshape(-1) for p in along if p.dim == run.dim])
        if any(p.within for p in along) or len(here.unique()) < len(here):
            return None
        return sorted({p.dim for p in along} - {run.dim})

    def _alike(self, group: int) -> list[tuple[int, ...]]:
        found: dict[frozenset[int], list[int]] = {}
        for r in range(len(self.occurrences[group])):
            if r not in self.nested[group]:
                found.setdefault(frozenset(self.neighbours[group][r]), []).append(r)
        return [tuple(runs) for runs in found.values()]

    def _nested(self, group: int) -> dict[int, list[Inner]]:
        dependents = [m for m in self.symmetry.inside.get(group, []) if all(len(here) == 1 for here in m)]
        inside = self.inside(group)
        found = {}
        for r, run in enumerate(self.occurrences[group]):
            met = self.neighbours[group][r] & inside
            here = [self._members(m, run) for m in dependents if met & {g for (g,) in m}]
            parts = [part for part in here if part is not None]
            if parts and met == {g for part in parts for g, _ in part} and self._made_of(run, parts):
                found[r] = parts
        return found

    def inside(self, group: int) -> set[int]:
        """The groups that move inside a group's indices."""
        return {g for members in self.symmetry.inside.get(group, []) for here in members for g in here}

    def _members(self, dependent: list[list[int]], run: Occurrence) -> Inner | None:
        """The groups inside a group's indices, and where they run within one of its occurrences."""
        overlaps = self.overlaps[run.tensor][run.number]
        found = []
        for (g,) in dependent:
            occurrences = enumerate(self.occurrences[g])
            found += [(g, k) for k, x in occurrences if x.tensor == run.tensor and overlaps[x.number]]
        shapes = {tuple(self.occurrences[g][k].place.at.shape) for g, k in found}
        # Each member once, in the order of the group's indices.
        return found if [[g] for g, _ in found] == dependent and len(shapes) == 1 else None

    def _made_of(self, run: Occurrence, parts: list[Inner]) -> bool:
        """Whether inner groups cover every index of an occurrence whole, each element of it once."""
        for one, two in itertools.combinations(parts, 2):
            numbers = [[self.occurrences[g][k].number for g, k in part] for part in (one, two)]
            if self.overlaps[run.tensor][np.ix_(*numbers)].any():
                return False
        first = [self.occurrences[g][k].place for g, k in (part[0] for part in parts)]
        if all(place.dim == run.dim for place in first):
            return sum(place.at.numel() for place in first) == run.place.at.shape[1]
        return len(parts) == 1 and first[0].at.numel() == self.shapes[run.tensor][first[0].dim]


def _occurrence(tensor: int, place: Place, number: int) -> Occurrence:
    first, n = int(place.at[0, 0]), len(place.at)
    consecutive = place.at.shape[1] == 1 and torch.equal(place.at[:, 0], torch.arange(first, first + n))
    return Occurrence(tensor, place, first if consecutive else None, number)


def _overlaps(found: Sequence[Place], shape: Sequence[int]) -> np.ndarray:
    """Which places of a tensor have elements in common (n, n)."""
    met = np.ones((len(found), len(found)), dtype=bool)
    if len({p.dim for p in found}) == len(found):
        return met
    for dim, length in enumerate(shape):
        mask = np.ones((len(found), length), dtype=np.float32)
        for row, place in zip(mask, found, strict=True):
            here = [at for d, at in place.within if d == dim] + ([place.at.reshape(-1)] if place.dim == dim else [])
            if here:
                row[:] = 0
                row[here[-1].numpy()] = 1
        met &= mask @ mask.T > 0
    return met
