"""Which permutation of B lies nearest to A in weight space: coordinate ascent over the network's groups.

The objective is the inner product of A with the permuted B over all parameters (Ainsworth et al. 2023,
arXiv:2209.04836, section 3.2). With every other group held, one group's best permutation is a linear assignment
problem.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from modeconn_cli.symmetry.axes import Axis, index, leaves, positions, size
from modeconn_cli.symmetry.graph import Symmetry


@dataclass(frozen=True)
class Matching:
    """Permutations found, one for each group; the objective after every sweep of the best start, and which it was."""

    permutations: list[Tensor]
    objective: list[float]
    start: int


@dataclass(frozen=True)
class _Place:
    """Where a group's index set runs along a tensor: (size, m) flat positions along ``dim``; None: ``run`` of them.

    run: the first of consecutive positions and their number, which need no copy to be looked at.
    """

    tensor: int
    dim: int
    at: Tensor | None
    run: tuple[int, int] = (0, 0)


def _place(tensor: int, dim: int, at: Tensor) -> _Place:
    first, n = int(at[0, 0]), len(at)
    if at.shape[1] == 1 and torch.equal(at[:, 0], torch.arange(first, first + n)):
        return _Place(tensor, dim, None, (first, n))
    return _Place(tensor, dim, at)


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
        self.places: list[list[_Place]] = [[] for _ in self.groups]
        self.around: list[set[int]] = []  # the groups of each tensor
        for t, axes in enumerate(self.axes):
            self.around.append(set())
            for d, axis in enumerate(axes):
                for leaf, at in positions(axis):
                    if leaf in number:
                        self.places[number[leaf]].append(_place(t, d, at))
                        self.around[t].add(number[leaf])
        self.permutations = symmetry.identity()
        self.moved = [0] * len(self.groups)  # a clock for each group
        self.clock = 0
        self._terms: dict[tuple[int, int], tuple[int, Tensor]] = {}
        self._rows_of_a: dict[tuple[int, int], Tensor] = {}
        # Where a group runs along two dimensions of one tensor its cost is quadratic.
        self.quadratic = [
            len({p.tensor for p in places}) < len({(p.tensor, p.dim) for p in places}) for places in self.places
        ]

    def term(self, group: int, place: int) -> Tensor:
        """One tensor's part of a group's cost matrix (size, size): rows of A against rows of B as it is now."""
        p = self.places[group][place]
        since = max((self.moved[g] for g in self.around[p.tensor] if g != group), default=0)
        kept = self._terms.get((group, place))
        if kept is not None and kept[0] >= since and not self.quadratic[group]:
            return kept[1]
        if (group, place) not in self._rows_of_a:
            self._rows_of_a[group, place] = _rows(self.a[p.tensor], p)
        found = self._rows_of_a[group, place] @ _rows(self.b[p.tensor], p).T
        self._terms[group, place] = self.clock, found
        return found

    def cost(self, group: int, places: Sequence[int] | None = None) -> Tensor:
        """The group's cost matrix, or what some of its places contribute to it."""
        chosen = range(len(self.places[group])) if places is None else places
        total: Tensor | None = None
        for place in chosen:
            term = self.term(group, place)
            total = term if total is None else total + term
        n = self.groups[group].size
        return torch.zeros(n, n) if total is None else total

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
        return self.constant + sum(float(torch.dot(x.reshape(-1), y.reshape(-1))) for x, y in moving)


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


@torch.no_grad()
def activation_matching(
    symmetry: Symmetry,
    a: Mapping[str, Tensor],
    b: Mapping[str, Tensor],
    batches: Iterable[Tensor],
    centred: bool = True,
    watch: Callable[[], None] = lambda: None,
) -> Matching:
    """Match B to A by what their units do on the same examples: every group at its non-linearities' outputs.

    A permutation of B only renames what its units do, so groups do not depend on one another.

    Args:
        batches: inputs, each of the shape that the module was traced with.
        centred: by correlation (Li et al. 2016, arXiv:1511.07543); else by least squares, which is the
            uncentred inner product. A unit that is constant correlates with none.
        watch: called after every batch; it may raise to stop.
    """
    groups = {g.leaf for g in symmetry.groups}
    sites = {
        (name, dim): axis
        for name, axes in symmetry.seen_at.items()
        for dim, axis in enumerate(axes)
        if any(leaf in groups for leaf in leaves(axis))
    }
    sums = {place: _Moments(size(axis)) for place, axis in sites.items()}
    wanted = {name for name, _ in sites}
    for x in batches:
        seen = [_observe(symmetry, state, x, wanted) for state in (a, b)]
        for name, dim in sites:
            sums[name, dim].add(*(s[name].movedim(dim, 0).flatten(1).double() for s in seen))
        watch()
    alike = {place: m.correlation() if centred else m.product for place, m in sums.items()}
    problem = _ActivationProblem(symmetry, sites, alike)
    objective = [problem.objective()]
    # Groups that are factors of one axis, heads and what is inside them, depend on one another; others settle at once.
    for g in sorted(range(len(symmetry.groups)), key=lambda g: symmetry.groups[g].size):
        problem.solve(g, problem.first_cost(g))
    while True:
        objective.append(problem.objective())
        watch()
        moved = [problem.solve(g, problem.cost(g)) for g in range(len(symmetry.groups))]
        if not any(moved):
            return Matching(problem.permutations, objective, 0)


class _ActivationProblem:
    """Likeness of units (D, D) along axes, and the permutations of the groups that these axes are made of."""

    def __init__(
        self, symmetry: Symmetry, sites: Mapping[tuple[str, int], Axis], alike: Mapping[tuple[str, int], Tensor]
    ):
        self.groups = symmetry.groups
        self.permutations = symmetry.identity()
        self.sites, self.alike = sites, alike
        number = {g.leaf: i for i, g in enumerate(self.groups)}
        self.places: list[list[tuple[tuple[str, int], Tensor]]] = [[] for _ in self.groups]
        for place, axis in sites.items():
            for leaf, at in positions(axis):
                if leaf in number:
                    self.places[number[leaf]].append((place, at))

    def now(self, place: tuple[str, int]) -> Tensor:
        """Likeness of A's units with B's as permuted now."""
        by_leaf = {g.leaf: p for g, p in zip(self.groups, self.permutations, strict=True)}
        return self.alike[place][:, index(self.sites[place], by_leaf)]

    def cost(self, group: int) -> Tensor:
        """(size, size), for permutations from what the group is now."""
        n = self.groups[group].size
        total = torch.zeros(n, n, dtype=torch.float64)
        for place, at in self.places[group]:
            now = self.now(place)
            for m in range(at.shape[1]):
                total += now[at[:, m]][:, at[:, m]]
        return total

    def first_cost(self, group: int) -> Tensor:
        """Like :meth:`cost`, but with the other factors of an axis matched at their best for every pair by itself."""
        n = self.groups[group].size
        total = torch.zeros(n, n, dtype=torch.float64)
        for place, at in self.places[group]:
            if at.shape[1] == 1:
                total += self.alike[place][at[:, 0]][:, at[:, 0]]
                continue
            for i, j in np.ndindex(n, n):
                block = self.alike[place][at[i]][:, at[j]].numpy()
                total[i, j] += block[np.arange(len(block)), assign(block)].sum()
        return total

    def solve(self, group: int, cost: Tensor) -> bool:
        """Give a group its best permutation by these costs; whether it moved."""
        relative = torch.from_numpy(assign(cost.numpy()))
        gain = float(cost[torch.arange(len(cost)), relative].sum() - cost.trace())
        if gain <= 1e-9 * float(cost.abs().sum() + 1e-300):
            return False
        self.permutations[group] = self.permutations[group][relative]
        return True

    def objective(self) -> float:
        """Likeness of every unit with its partner, summed."""
        return sum(float(self.now(place).trace()) for place in self.sites)


class _Moments:
    """Sums over examples of two sets of units, rows (size, examples)."""

    def __init__(self, size: int) -> None:
        self.n = 0
        self.product = torch.zeros(size, size, dtype=torch.float64)
        self.sums = [torch.zeros(size, dtype=torch.float64) for _ in "ab"]
        self.squares = [torch.zeros(size, dtype=torch.float64) for _ in "ab"]

    def add(self, a: Tensor, b: Tensor) -> None:
        self.n += a.shape[1]
        self.product += (a @ b.T).cpu()
        for i, x in enumerate((a, b)):
            self.sums[i] += x.sum(1).cpu()
            self.squares[i] += x.square().sum(1).cpu()

    def correlation(self) -> Tensor:
        """(size, size), zero for units that do not vary."""
        mean = [s / self.n for s in self.sums]
        std = [(q / self.n - m.square()).clamp(min=0).sqrt() for q, m in zip(self.squares, mean, strict=True)]
        covariance = self.product / self.n - mean[0][:, None] * mean[1][None, :]
        scale = std[0][:, None] * std[1][None, :]
        return torch.where(scale > 1e-12, covariance / scale.clamp(min=1e-12), 0.0)


def _observe(symmetry: Symmetry, state: Mapping[str, Tensor], x: Tensor, wanted: set[str]) -> dict[str, Tensor]:
    """The named values of the traced graph on a batch, with these weights."""
    program = symmetry.program
    signature = program.graph_signature
    stored = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    found: dict[str, Tensor] = {}

    class Observer(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> Any:
            value = super().run_node(n)
            if n.name in wanted:
                found[n.name] = value[0] if isinstance(value, tuple | list) else value
            return value

    inputs: list[Any] = []
    for node in program.graph.nodes:
        if node.op != "placeholder":
            break
        name = stored.get(node.name)
        if name is not None:
            inputs.append(state[name] if name in state else program.constants[name])
        elif node.name in signature.inputs_to_lifted_tensor_constants:
            inputs.append(program.constants[signature.inputs_to_lifted_tensor_constants[node.name]])
        else:
            inputs.append(x)
    Observer(program.graph_module).run(*inputs)
    return found


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
        return tensor.narrow(place.dim, *place.run).movedim(place.dim, 0).reshape(place.run[1], -1)
    picked = tensor.index_select(place.dim, place.at.reshape(-1).to(tensor.device)).movedim(place.dim, 0)
    return picked.reshape(len(place.at), -1)
