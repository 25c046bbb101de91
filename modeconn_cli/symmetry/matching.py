"""Which permutation of B lies nearest to A in weight space: coordinate ascent over the network's groups.

The objective is the inner product of A with the permuted B over all parameters (Ainsworth et al. 2023,
arXiv:2209.04836, section 3.2). With every other group held, one group's best permutation is a linear assignment
problem.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from modeconn_cli.symmetry.axes import Axis, index, leaves, positions
from modeconn_cli.symmetry.graph import Symmetry


@dataclass(frozen=True)
class Matching:
    """Permutations found, one for each group; the objective after every sweep of the best start, and which it was."""

    permutations: list[Tensor]
    objective: list[float]
    start: int


@dataclass(frozen=True)
class _Place:
    """Where a group's index set runs along a tensor: (size, m) flat positions along ``dim``; None: all, in order."""

    tensor: int
    dim: int
    at: Tensor | None


class _Problem:
    """A and B on one device, B moving; the terms of every group's cost matrix are kept until a neighbour moves."""

    def __init__(
        self, symmetry: Symmetry, a: Mapping[str, Tensor], b: Mapping[str, Tensor], names: Sequence[str]
    ) -> None:
        self.groups = symmetry.groups
        number = {g.leaf: i for i, g in enumerate(self.groups)}
        self.names = [n for n in names if any(leaf in number for axis in symmetry.axes[n] for leaf in leaves(axis))]
        still = set(names) - set(self.names)
        self.constant = float(sum((a[n].double() * b[n].double()).sum() for n in sorted(still)))
        self.axes: list[list[Axis]] = [symmetry.axes[n] for n in self.names]
        self.a = [a[n].detach().float() for n in self.names]
        self.b = [b[n].detach().float().clone() for n in self.names]
        device = self.a[0].device if self.a else torch.device("cpu")
        self.places: list[list[_Place]] = [[] for _ in self.groups]
        self.around: list[set[int]] = []  # the groups of each tensor
        for t, axes in enumerate(self.axes):
            self.around.append(set())
            for d, axis in enumerate(axes):
                for leaf, at in positions(axis):
                    if leaf in number:
                        whole = at.shape[1] == 1 and len(at) == self.a[t].shape[d]
                        self.places[number[leaf]].append(_Place(t, d, None if whole else at.to(device)))
                        self.around[t].add(number[leaf])
        self.permutations = symmetry.identity()
        self.moved = [0] * len(self.groups)  # a clock for each group
        self.clock = 0
        self._terms: dict[tuple[int, int], tuple[int, Tensor]] = {}
        # Where a group runs along two dimensions of one tensor its cost is quadratic.
        self.quadratic = [len({p.tensor for p in places}) < len(places) for places in self.places]

    def term(self, group: int, place: int) -> Tensor:
        """One tensor's part of a group's cost matrix (size, size): rows of A against rows of B as it is now."""
        p = self.places[group][place]
        since = max((self.moved[g] for g in self.around[p.tensor] if g != group), default=0)
        kept = self._terms.get((group, place))
        if kept is not None and kept[0] >= since and not self.quadratic[group]:
            return kept[1]
        found = _rows(self.a[p.tensor], p) @ _rows(self.b[p.tensor], p).T
        self._terms[group, place] = self.clock, found
        return found

    def cost(self, group: int, places: Sequence[int] | None = None) -> Tensor:
        """The group's cost matrix, or what some of its places contribute to it."""
        chosen = range(len(self.places[group])) if places is None else places
        total: Tensor | None = None
        for place in chosen:
            term = self.term(group, place)
            total = term if total is None else total + term
        size = self.groups[group].size
        return torch.zeros(size, size) if total is None else total

    def move(self, group: int, relative: Tensor) -> None:
        """Permute a group of B, from what it is now."""
        leaf = self.groups[group].leaf
        self.clock += 1
        self.moved[group] = self.clock
        self.permutations[group] = self.permutations[group][relative]
        for t in {p.tensor for p in self.places[group]}:
            for d, axis in enumerate(self.axes[t]):
                if any(x is leaf for x in leaves(axis)):
                    self.b[t] = self.b[t].index_select(d, index(axis, {leaf: relative}).to(self.b[t].device))
        here = relative.to(self.b[0].device)
        for place in range(len(self.places[group])):
            kept = self._terms.get((group, place))
            if kept is not None:
                self._terms[group, place] = kept[0], kept[1][:, here]

    def solve(self, group: int, places: Sequence[int] | None = None) -> bool:
        """Give a group its best permutation, the others held; whether it moved."""
        cost = self.cost(group, places).double().cpu().numpy()
        relative = torch.from_numpy(assign(cost))
        gain = float(cost[np.arange(len(cost)), relative.numpy()].sum() - np.trace(cost))
        if gain <= 1e-7 * (abs(float(np.trace(cost))) + float(np.abs(cost).mean()) + 1e-30):
            return False
        if places is None and self.quadratic[group]:
            before = self.objective()
            self.move(group, relative)
            if self.objective() <= before:
                self.move(group, torch.argsort(relative))
                return False
            return True
        self.move(group, relative)
        return True

    def objective(self) -> float:
        """The inner product of A with B as it is now."""
        moving = zip(self.a, self.b, strict=True)
        return self.constant + float(sum((x * y).sum(dtype=torch.float64) for x, y in moving))


def assign(cost: np.ndarray) -> np.ndarray:
    """For each row the column of the assignment with the largest total."""
    from scipy.optimize import linear_sum_assignment

    columns: np.ndarray = linear_sum_assignment(cost, maximize=True)[1]
    return columns


def weight_matching(
    symmetry: Symmetry,
    a: Mapping[str, Tensor],
    b: Mapping[str, Tensor],
    parameters: Sequence[str],
    seed: int = 0,
    restarts: int = 3,
    sweeps: int = 100,
    watch: Callable[[int, int, float], None] = lambda start, sweep, objective: None,
) -> Matching:
    """Match B to A by their weights.

    The first start settles the groups in order of how far the rest determines them: next to inputs, outputs and
    groups that are settled. Later starts are random. Each is swept until nothing moves; the best is kept.

    Args:
        a, b: state_dicts of the traced module.
        parameters: names of the tensors that count; BatchNorm's running statistics and the like do not.
        restarts: further random starts.
        watch: called after every sweep with start, sweep and objective; it may raise to stop.
    """
    best: Matching | None = None
    for start in range(restarts + 1):
        problem = _Problem(symmetry, a, b, parameters)
        if not problem.groups:
            return Matching([], [problem.objective()], 0)
        rng = np.random.default_rng([seed, start])
        if start == 0:
            _settle(problem)
        else:
            for g in range(len(problem.groups)):
                problem.move(g, torch.from_numpy(rng.permutation(problem.groups[g].size)))
        objective = [problem.objective()]
        solved = [-1] * len(problem.groups)
        for sweep in range(sweeps):
            still = True
            for g in rng.permutation(len(problem.groups)).tolist():
                neighbours = set().union(*(problem.around[p.tensor] for p in problem.places[g])) - {g}
                if solved[g] >= max((problem.moved[n] for n in neighbours), default=0) and solved[g] >= 0:
                    continue
                still = not problem.solve(g) and still
                solved[g] = problem.clock
            objective.append(problem.objective())
            watch(start, sweep, objective[-1])
            if still:
                break
        if best is None or objective[-1] > best.objective[-1]:
            best = Matching(problem.permutations, objective, start)
    assert best is not None
    return best


def _settle(problem: _Problem) -> None:
    """Solve every group once, each by the tensors whose other axes are settled, the most determined group next."""
    settled: set[int] = set()
    mass = [float(a.norm()) * float(b.norm()) for a, b in zip(problem.a, problem.b, strict=True)]
    while len(settled) < len(problem.groups):
        shares = {}
        for g in range(len(problem.groups)):
            if g in settled:
                continue
            places = problem.places[g]
            known = [i for i, p in enumerate(places) if problem.around[p.tensor] - {g} <= settled]
            whole = sum(mass[p.tensor] for p in places)
            shares[g] = (sum(mass[places[i].tensor] for i in known) / (whole or 1.0), known)
        group = max(shares, key=lambda g: (shares[g][0], -g))
        known = shares[group][1]
        problem.solve(group, known or None)
        settled.add(group)


def _rows(tensor: Tensor, place: _Place) -> Tensor:
    """A tensor as (size, everything else) along a place."""
    if place.at is None:
        return tensor.movedim(place.dim, 0).reshape(tensor.shape[place.dim], -1)
    picked = tensor.index_select(place.dim, place.at.reshape(-1)).movedim(place.dim, 0)
    return picked.reshape(len(place.at), -1)
