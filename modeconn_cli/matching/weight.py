"""Which permutation of B lies nearest to A in weight space: coordinate ascent over the network's groups.

The objective is the inner product of A with the permuted B over all parameters (Ainsworth et al. 2023,
arXiv:2209.04836, section 3.2). With every other group held, one group's best permutation is a linear assignment
problem.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from modeconn_cli.symmetry.axes import Leaf, Place, averaged, leaves, permuted, sources
from modeconn_cli.symmetry.groups import Symmetry

SHAKEN = 0.6  # share of the groups that a further start shuffles
HOPE = 5  # a further start is given up where so many times its last sweep's gain would not make it the best


@dataclass(frozen=True)
class Matching:
    """Permutations found, one for each group; the objective after every sweep of the best start, and which it was.

    before, after: the objective of B as it was given, and as these permutations leave it.
    measure: what the objective is; it grows, but for a loss.
    """

    permutations: list[Tensor]
    objective: list[float]
    start: int
    before: float
    after: float
    measure: str = "inner product"


class Memory(Protocol):
    """Where a search leaves what it has found, for a later process to go on from to the same end."""

    @property
    def due(self) -> bool:
        """Whether it is time to leave something."""

    def begun(self) -> dict[str, Any] | None:
        """What was left; None: nothing."""

    def save(self, state: dict[str, Any]) -> None:
        """Leave tensors and plain values."""


class Forgetful:
    """Remembers nothing."""

    due = False

    def begun(self) -> dict[str, Any] | None:
        return None

    def save(self, state: dict[str, Any]) -> None:
        pass


@dataclass(frozen=True)
class _Run:
    """Where a group runs along a tensor: a :class:`Place` of it.

    first: of consecutive positions, which need no copy to be looked at; else None.
    number: among those of the tensor.
    """

    tensor: int
    place: Place
    first: int | None
    number: int

    @property
    def dim(self) -> int:
        return self.place.dim


Family = list[tuple[int, int]]  # for each index of a group the group inside it, and which of that one's runs


def _run(tensor: int, place: Place, number: int) -> _Run:
    first, n = int(place.at[0, 0]), len(place.at)
    straight = place.at.shape[1] == 1 and torch.equal(place.at[:, 0], torch.arange(first, first + n))
    return _Run(tensor, place, first if straight else None, number)


@dataclass
class _Term:
    """Part of a group's cost matrix (size, size), as it was at ``since``.

    orders: for every run that it is from, the order that the tensor had then along every dimension across.
    """

    since: int
    value: Tensor
    orders: list[list[Tensor]]


class WeightProblem:
    """A and B on one device, B moving.

    The terms of a group's cost matrix are kept, and where its neighbours move only what moved is multiplied again.
    Beyond A and B it holds a copy of B, one of what in A is not contiguous along a run, and kept terms as large as A
    and B at most.

    Args:
        begin: permutations that B has to begin with; None: as it is.
    """

    def __init__(
        self,
        symmetry: Symmetry,
        a: Mapping[str, Tensor],
        b: Mapping[str, Tensor],
        names: Sequence[str],
        begin: Sequence[Tensor] | None = None,
    ) -> None:
        self.symmetry = symmetry
        self.groups = symmetry.groups
        number = {g.leaf: i for i, g in enumerate(self.groups)}
        self.names = [n for n in names if any(leaf in number for axis in symmetry.axes[n] for leaf in leaves(axis))]
        still = set(names) - set(self.names)
        self.constant = float(sum((a[n].double() * b[n].double()).sum() for n in sorted(still)))
        self.places = [symmetry.places[n] for n in self.names]
        self.a = [a[n].detach().float() for n in self.names]
        self.b = [b[n].detach().float().clone() for n in self.names]
        self.runs: list[list[_Run]] = [[] for _ in self.groups]
        self.beside: list[list[set[int]]] = [[] for _ in self.groups]  # groups that move what a run sees
        self.meets: list[np.ndarray] = []  # of each tensor, which runs have elements in common
        self.quadratic = [False] * len(self.groups)  # a group that runs twice through the same part of a tensor
        for t, along in enumerate(self.places):
            here = [(number[p.leaf], p) for p in along if p.leaf in number]
            meets = _meetings([p for _, p in here], self.a[t].shape)
            self.meets.append(meets)
            for k, (g, place) in enumerate(here):
                self.runs[g].append(_run(t, place, k))
                met = [here[j][0] for j in range(len(here)) if j != k and meets[k, j]]
                self.beside[g].append(set(met) - {g})
                self.quadratic[g] = self.quadratic[g] or g in met
        self.nested = [self._nesting(g) for g in range(len(self.groups))]
        self.together = [self._alike(g) for g in range(len(self.groups))]
        self.permutations = symmetry.identity() if begin is None else [p.clone() for p in begin]
        if begin is not None:
            by_leaf = {g.leaf: p for g, p in zip(self.groups, begin, strict=True)}
            self.b = [permuted(x, along, by_leaf) for x, along in zip(self.b, self.places, strict=True)]
        self.moved = [0] * len(self.groups)  # a clock for each group
        self.clock = 0
        self.order = [[torch.arange(n) for n in x.shape] for x in self.a]  # along every dimension of B, since the start
        self.across = [[self._across(run) for run in runs] for runs in self.runs]
        self._terms: dict[tuple[int, ...], _Term] = {}
        self._most = sum(x.numel() for x in (*self.a, *self.b))
        self._prices: dict[int, np.ndarray] = {}
        self._rows_of_a: dict[tuple[int, int], Tensor] = {}

    def _across(self, run: _Run) -> list[int] | None:
        """The dimensions besides its own along which something moves; None where these do not move by themselves."""
        along = self.places[run.tensor]
        here = torch.cat([p.at.reshape(-1) for p in along if p.dim == run.dim])
        if any(p.within for p in along) or len(here.unique()) < len(here):
            return None
        return sorted({p.dim for p in along} - {run.dim})

    def _alike(self, group: int) -> list[tuple[int, ...]]:
        """A group's runs, those together that the same groups move; their terms go stale together."""
        found: dict[frozenset[int], list[int]] = {}
        for r in range(len(self.runs[group])):
            if r not in self.nested[group]:
                found.setdefault(frozenset(self.beside[group][r]), []).append(r)
        return [tuple(runs) for runs in found.values()]

    def _nesting(self, group: int) -> dict[int, list[Family]]:
        """Which of a group's runs are made of what is inside the group, and of which families.

        What is inside such a group can be given its best permutation for every pair of the group's indices.
        """
        families = [m for m in self.symmetry.inside.get(group, []) if all(len(here) == 1 for here in m)]
        inside = {g for m in self.symmetry.inside.get(group, []) for here in m for g in here}
        found = {}
        for r, run in enumerate(self.runs[group]):
            met = self.beside[group][r] & inside
            here = [self._members(m, run) for m in families if met & {g for (g,) in m}]
            parts = [part for part in here if part is not None]
            if parts and met == {g for part in parts for g, _ in part} and self._made_of(run, parts):
                found[r] = parts
        return found

    def _members(self, family: list[list[int]], run: _Run) -> Family | None:
        """A family's members and where they run within a run of the group that they are inside."""
        meets = self.meets[run.tensor][run.number]
        found = []
        for (g,) in family:
            found += [(g, k) for k, x in enumerate(self.runs[g]) if x.tensor == run.tensor and meets[x.number]]
        shapes = {tuple(self.runs[g][k].place.at.shape) for g, k in found}
        # Each member once, in the family's order.
        return found if [[g] for g, _ in found] == family and len(shapes) == 1 else None

    def _made_of(self, run: _Run, parts: list[Family]) -> bool:
        """Whether families cover every index of a group's run whole, each element of it once."""
        for one, two in itertools.combinations(parts, 2):
            numbers = [[self.runs[g][k].number for g, k in part] for part in (one, two)]
            if self.meets[run.tensor][np.ix_(*numbers)].any():
                return False
        first = [self.runs[g][k].place for g, k in (part[0] for part in parts)]
        if all(place.dim == run.dim for place in first):
            return sum(place.at.numel() for place in first) == run.place.at.shape[1]
        return len(parts) == 1 and first[0].at.numel() == self.a[run.tensor].shape[first[0].dim]

    def aim(self, a: Mapping[str, Tensor]) -> None:
        """Match to other weights from here on; B stays where it is."""
        self.a = [a[n].detach().float() for n in self.names]
        self._terms.clear()
        self._rows_of_a.clear()

    def present(self) -> dict[str, Tensor]:
        """B's tensors that may move, as they are now."""
        return dict(zip(self.names, self.b, strict=True))

    def term(self, group: int, runs: tuple[int, ...]) -> Tensor:
        """Some runs' part of a group's cost matrix (size, size): rows of A against rows of B as it is now."""
        key = (group, *runs)
        kept = self._terms.get(key)
        if kept is not None and self._renew(group, runs, kept):
            return kept.value
        total = None
        for r in runs:
            a, b = self.rows_of_a(group, r), _rows(self.b[self.runs[group][r].tensor], self.runs[group][r])
            total = a @ b.T if total is None else total.addmm_(a, b.T)
        assert total is not None
        others = sum(term.value.numel() for k, term in self._terms.items() if k != key)
        if others + total.numel() <= self._most:
            self._terms[key] = _Term(self.clock, total, self._orders(group, runs))
        return total

    def _orders(self, group: int, runs: tuple[int, ...]) -> list[list[Tensor]]:
        return [[self.order[self.runs[group][r].tensor][d] for d in self.across[group][r] or []] for r in runs]

    def _renew(self, group: int, runs: tuple[int, ...], term: _Term) -> bool:
        """Bring a term up to date where that takes less than forming it anew; whether it is."""
        if self.quadratic[group]:
            return False
        if term.since >= max((self.moved[g] for g in self.beside[group][runs[0]]), default=0):
            return True
        now = self._orders(group, runs)
        changes = []
        for r, before, after in zip(runs, term.orders, now, strict=True):
            if self.across[group][r] is None:
                return False
            dims = zip(self.across[group][r] or [], before, after, strict=True)
            moved = [(d, x, y, (x != y).nonzero()[:, 0]) for d, x, y in dims if x is not y and not torch.equal(x, y)]
            if len(moved) > 1 or any(2 * len(at) > len(x) for _, x, _, at in moved):
                return False
            changes += [(self.runs[group][r], d, at, torch.argsort(y)[x[at]]) for d, x, y, at in moved]
        for run, d, at, was in changes:
            b, here = self.b[run.tensor], at.to(term.value.device)
            change = b.index_select(d, here) - b.index_select(d, was.to(here.device))
            term.value.addmm_(_rows(self.a[run.tensor].index_select(d, here), run), _rows(change, run).T)
        term.since, term.orders = self.clock, now
        return True

    def rows_of_a(self, group: int, r: int) -> Tensor:
        """A along a run (size, everything else)."""
        if (group, r) not in self._rows_of_a:
            self._rows_of_a[group, r] = _rows(self.a[self.runs[group][r].tensor], self.runs[group][r])
        return self._rows_of_a[group, r]

    def cost(self, group: int, chosen: Sequence[int], open_: Collection[int] = ()) -> tuple[np.ndarray, float]:
        """The group's cost matrix (size, size), from some of its runs, and what these are worth as they are.

        Where the group has others inside it, every pair of its indices counts with those at their best.

        Args:
            open_: groups over whose permutations the runs that are not chosen count on average.
        """
        n = self.groups[group].size
        total = np.zeros((n, n))
        for runs in self.together[group]:
            here = tuple(r for r in runs if r in chosen)
            if here:
                total += self.term(group, here).cpu().numpy()
        for r in set(range(len(self.runs[group]))) - set(chosen) if open_ else ():
            total += self._average(group, r, open_).cpu().numpy()
        worth = float(np.trace(total))
        families: dict[tuple[int, ...], list[Family]] = {}
        for part in (part for r in chosen for part in self.nested[group].get(r, [])):
            families.setdefault(tuple(g for g, _ in part), []).append(part)
        for parts in families.values():
            pairs = sum(self._pairs(part) for part in parts).double().cpu().numpy()  # type: ignore[union-attr]
            for i, j in np.ndindex(n, n):
                total[i, j] += pairs[i, :, j][np.arange(pairs.shape[1]), assign(pairs[i, :, j])].sum()
            worth += float(np.einsum("iaia->", pairs))
        return total, worth

    def _average(self, group: int, r: int, open_: Collection[int]) -> Tensor:
        """A run's part of the cost matrix (size, size), on average over every permutation of open groups.

        Exact, but where one open group moves the same elements along two dimensions, which counts as two would.
        """
        run = self.runs[group][r]
        a, b = self.a[run.tensor], self.b[run.tensor]
        meets = self.meets[run.tensor]
        found = [x for g in open_ if g in self.beside[group][r] for x in self.runs[g] if x.tensor == run.tensor]
        along = sorted((x for x in found if meets[run.number, x.number]), key=lambda x: x.number)
        pairs = itertools.combinations([run, *along], 2)
        shared = any(x.dim == y.dim and meets[x.number, y.number] for x, y in pairs)
        if shared or run.place.within or any(x.place.within for x in along):
            for x in along:
                b = averaged(b, x.place)
            return _rows(a, run) @ _rows(b, run).T
        # Units that may stand anywhere can be summed over first, and there is less to multiply.
        for dim in sorted({x.dim for x in along}):
            here = [x.place.at for x in along if x.dim == dim]
            rest = torch.ones(a.shape[dim], dtype=torch.bool)
            rest[torch.cat([at.reshape(-1) for at in here])] = False
            others = rest.nonzero()[:, 0].to(a.device)
            a = torch.cat([a.index_select(dim, others), *(_parts(a, dim, at).sum(dim) for at in here)], dim)
            b = torch.cat([b.index_select(dim, others), *(_parts(b, dim, at).mean(dim) for at in here)], dim)
        return _rows(a, run) @ _rows(b, run).T

    def _pairs(self, runs: Family) -> Tensor:
        """Rows of A inside each index of a group against rows of B inside each (n, d, n, d)."""
        a = torch.stack([self.rows_of_a(g, k) for g, k in runs])
        b = torch.stack([_rows(self.b[self.runs[g][k].tensor], self.runs[g][k]) for g, k in runs])
        n, d = a.shape[:2]
        return (a.flatten(0, 1) @ b.flatten(0, 1).T).view(n, d, n, d)

    def move(self, group: int, relative: Tensor) -> None:
        """Permute a group of B, from what it is now."""
        self.clock += 1
        self.moved[group] = self.clock
        self.symmetry.turn(self.permutations, group, relative)
        for t in {r.tensor for r in self.runs[group]}:
            self._turn(t, self.groups[group].leaf, relative)
        here = relative.to(self.b[0].device)
        for key, term in self._terms.items():
            if key[0] == group:
                term.value = term.value[:, here]
        if group in self._prices:
            self._prices[group] = self._prices[group][relative.numpy()]

    def _turn(self, tensor: int, leaf: Leaf, relative: Tensor) -> None:
        """Permute a leaf of one of B's tensors."""
        b, along = self.b[tensor], [p for p in self.places[tensor] if p.leaf is leaf]
        if any(p.within for p in along):
            self.b[tensor] = permuted(b, along, {leaf: relative})
            return
        for place in along:
            source = sources(place, relative, b.shape[place.dim])
            moved = (source != torch.arange(len(source))).nonzero()[:, 0]
            if 2 * len(moved) > len(source):
                b = self.b[tensor] = b.index_select(place.dim, source.to(b.device))
            else:
                there, here = source[moved].to(b.device), moved.to(b.device)
                b.index_copy_(place.dim, here, b.index_select(place.dim, there))
            self.order[tensor][place.dim] = self.order[tensor][place.dim][source]

    def solve(self, group: int, chosen: Sequence[int] | None = None, open_: Collection[int] = ()) -> bool:
        """Give a group its best permutation, the others held; whether it moved.

        Args:
            chosen: its runs that count; None: all.
            open_: groups over whose permutations its other runs count on average.
        """
        runs = range(len(self.runs[group])) if chosen is None else chosen
        cost, worth = self.cost(group, runs, open_)
        # By einsum and not by BLAS, whose threads would go on spinning beside torch's.
        small = 1e-7 * (abs(worth) + math.sqrt(float(np.einsum("ij,ij->", cost, cost))) / len(cost) + 1e-30)
        # What was best a while ago is nearly best now, and prices near the right ones leave the solver little to do.
        known = group in self._prices
        prices = self._prices[group] = prices_of(cost, self._prices[group]) if known else np.zeros(len(cost))
        dear = np.subtract(prices, cost, out=cost)  # no copy: of a wide layer this is the largest thing there is
        relative = torch.from_numpy(cheapest(dear))
        gain = float(prices.sum() - dear[np.arange(len(dear)), relative.numpy()].sum()) - worth
        if torch.equal(relative, torch.arange(len(relative))) or gain <= small:
            return chosen is None and self.quadratic[group] and self._swap(group, dear)
        if chosen is None and self.quadratic[group] and self._gain(group, relative) <= small:
            return self._swap(group, dear)
        del cost, dear
        if chosen is not None or not self.nested[group]:
            self.move(group, relative)
            self._solve_inside(group, runs, chosen is None)
            return True
        # What is inside was taken at its best for a part of the network, so that all in all this may have lost.
        before, clock, moved = self.objective(), self.clock, list(self.moved)
        inside = {g for parts in self.nested[group].values() for part in parts for g, _ in part}
        self.move(group, relative)
        placed = {g: self.permutations[g] for g in inside}
        self._solve_inside(group, runs, True)
        if self.objective() >= before - small:
            return True
        for g in inside:
            self.move(g, torch.argsort(self.permutations[g])[placed[g]])
        self.move(group, torch.argsort(relative))
        self.clock, self.moved = clock, moved
        self._terms = {k: term for k, term in self._terms.items() if term.since <= clock}
        return False

    def _solve_inside(self, group: int, runs: Sequence[int], whole: bool) -> None:
        """Give what is inside a group that has moved its best permutation, by all that it touches or by these runs."""
        found: dict[int, list[int]] = {}
        for g, k in (x for r in runs for part in self.nested[group].get(r, []) for x in part):
            found.setdefault(g, []).append(k)
        for g in sorted(found):
            self.solve(g, None if whole else found[g])

    def _gain(self, group: int, relative: Tensor) -> float:
        """By how much the objective would rise."""
        touched = sorted({r.tensor for r in self.runs[group]})
        leaf = {self.groups[group].leaf: relative}
        total = 0.0
        for t in touched:
            there = permuted(self.b[t], self.places[t], leaf)
            total += float(torch.dot(self.a[t].reshape(-1), (there - self.b[t]).reshape(-1)))
        return total

    def _swap(self, group: int, dear: np.ndarray, tries: int = 500) -> bool:
        """Exchange two indices of a group whose cost is quadratic, the most promising pairs first; whether one gained.

        Its cost matrix is a linearisation, whose best assignment may lose.
        """
        n = len(dear)
        i, j = np.triu_indices(n, 1)
        gains = dear[i, i] + dear[j, j] - dear[i, j] - dear[j, i]
        enough = 1e-7 * abs(float(np.diag(dear).sum())) + 1e-30
        for k in np.argsort(-gains)[:tries].tolist():
            exchange = torch.arange(n)
            exchange[[i[k], j[k]]] = exchange[[j[k], i[k]]]
            if self._gain(group, exchange) > enough:
                self.move(group, exchange)
                return True
        return False

    def objective(self) -> float:
        """The inner product of A with B as it is now."""
        moving = zip(self.a, self.b, strict=True)
        return self.constant + sum(float(torch.dot(x.reshape(-1), y.reshape(-1))) for x, y in moving)


def ascend(
    problem: WeightProblem, rng: np.random.Generator, sweeps: int = 100, solved: Sequence[int] | None = None
) -> Iterator[int]:
    """Give every group in turn its best permutation until a sweep moves none; each sweep's number as it ends.

    Groups are taken in random order, those whose neighbours have not moved since are left out.

    Args:
        solved: when each group was given its best permutation, by the problem's clock, or -1.
    """
    solved = [-1] * len(problem.groups) if solved is None else list(solved)
    for sweep in range(sweeps):
        before = problem.clock
        for g in rng.permutation(len(problem.groups)).tolist():
            latest = max((problem.moved[n] for beside in problem.beside[g] for n in beside), default=0)
            if solved[g] >= latest:
                continue
            moved = problem.solve(g)
            # Of a quadratic problem a step is not its solution: it is asked again until it stays.
            solved[g] = -1 if moved and problem.quadratic[g] else problem.clock
        yield sweep
        if problem.clock == before:
            break


def prices_of(cost: np.ndarray, prices: np.ndarray, rounds: int = 3, rows: int = 256) -> np.ndarray:
    """Prices (n,) of columns, near to those at which every row would take the column of its own number.

    They are the dual variables of the assignment problem, which taking them off its columns does not change; the rounds
    are Bellman-Ford's, from other prices on. Where the diagonal is nearly the best assignment they save most of the
    time that one takes.
    """
    own = np.diag(cost)
    for _ in range(rounds):
        ahead = prices - own
        parts = [(cost[k : k + rows] + ahead[k : k + rows, None]).max(0) for k in range(0, len(cost), rows)]
        prices = np.max(parts, axis=0)
    found: np.ndarray = prices - prices.mean()
    return found


def assign(cost: np.ndarray) -> np.ndarray:
    """For each row the column of the assignment with the largest total."""
    return cheapest(-cost)


def cheapest(cost: np.ndarray) -> np.ndarray:
    """For each row the column of the assignment with the smallest total."""
    from scipy.optimize import linear_sum_assignment

    columns: np.ndarray = linear_sum_assignment(cost)[1]
    return columns


def weight_matching(
    symmetry: Symmetry,
    a: Mapping[str, Tensor],
    b: Mapping[str, Tensor],
    parameters: Sequence[str],
    seed: int = 0,
    restarts: int | None = None,
    sweeps: int = 100,
    watch: Callable[[int, int, float], None] = lambda start, sweep, objective: None,
    memory: Memory = Forgetful(),  # noqa: B008 - it has no state
) -> Matching:
    """Match B to A by their weights.

    The first start settles the groups in order of how far the rest determines them: next to inputs, outputs and
    groups that are settled; the others count on average over all that they may be. Later starts shuffle some of the
    groups of the best so far and solve these first. Each is swept until nothing moves, or a later one until it gains
    too little to become the best; the best is kept.

    Args:
        a, b: state_dicts of the traced module.
        parameters: names of the tensors that count; BatchNorm's running statistics and the like do not.
        restarts: further starts; None: 8, or 1 where a group has more than 1024 indices.
        watch: called after every sweep with start, sweep and objective; it may raise to stop.
        memory: what is found is left there after every start.
    """
    begun = memory.begun()
    best = Matching(**begun["best"]) if begun else None
    if restarts is None:
        restarts = default_restarts(symmetry)
    for start in range(begun["starts"] if begun else 0, restarts + 1):
        rng = np.random.default_rng([seed, start])
        problem = WeightProblem(symmetry, a, b, parameters, best.permutations if best else None)
        solved = None
        if best is None:
            before = problem.objective()
            if not problem.groups:
                return Matching([], [before], 0, before, before)
            solved = settle(problem)
        else:
            before = best.before
            _shake(problem, rng)
        objective = [problem.objective()]
        for sweep in ascend(problem, rng, sweeps, solved):
            objective.append(problem.objective())
            watch(start, sweep, objective[-1])
            if best and objective[-1] + HOPE * (objective[-1] - objective[-2]) < best.objective[-1]:
                break
        if best is None or objective[-1] > best.objective[-1]:
            best = Matching(problem.permutations, objective, start, before, objective[-1])
        memory.save({"starts": start + 1, "best": dataclasses.asdict(best)})
    assert best is not None
    return best


def default_restarts(symmetry: Symmetry) -> int:
    """How many further starts weight matching makes when not told; wide layers gain little by them and take long."""
    return 8 if all(g.size <= 1024 for g in symmetry.groups) else 1


def _shake(problem: WeightProblem, rng: np.random.Generator) -> None:
    """Shuffle some of the groups, and give each of these its best permutation before any other is asked again."""
    groups = len(problem.groups)
    some = rng.permutation(groups)[: max(2, round(SHAKEN * groups))]
    for g in some.tolist():
        problem.move(g, torch.from_numpy(rng.permutation(problem.groups[g].size)))
    for g in some.tolist():
        problem.solve(g)


def settle(problem: WeightProblem) -> list[int]:
    """Solve every group once, the most determined by those that are settled next.

    Tensors that others run through too count as they are on average over every permutation of these. Gives when each
    group was solved by all of its tensors, by the problem's clock, or -1.
    """
    settled: set[int] = set()
    solved = [-1] * len(problem.groups)
    symmetry = problem.symmetry
    mass = [float(a.norm()) * float(b.norm()) for a, b in zip(problem.a, problem.b, strict=True)]
    while len(settled) < len(problem.groups):
        shares = {}
        for g in range(len(problem.groups)):
            if g in settled:
                continue
            runs = problem.runs[g]
            free = {m for members in symmetry.inside.get(g, []) for here in members for m in here}
            known = [
                r
                for r in range(len(runs))
                if problem.beside[g][r] - (free if r in problem.nested[g] else set()) <= settled
            ]
            whole = sum(mass[run.tensor] for run in runs)
            shares[g] = (sum(mass[runs[r].tensor] for r in known) / (whole or 1.0), known)
        group = max(shares, key=lambda g: (shares[g][0], -g))
        known = shares[group][1]
        problem.solve(group, known, set(range(len(problem.groups))) - settled - {group})
        settled.add(group)
        if len(known) == len(problem.runs[group]) and not problem.nested[group] and not problem.quadratic[group]:
            solved[group] = problem.clock
    return solved


def _rows(tensor: Tensor, run: _Run) -> Tensor:
    """A tensor as (size, everything else) along a run."""
    place, n = run.place, len(run.place.at)
    for dim, at in place.within:
        tensor = tensor.index_select(dim, at.to(tensor.device))
    if run.first is not None:
        return tensor.narrow(place.dim, run.first, n).movedim(place.dim, 0).reshape(n, -1)
    return tensor.index_select(place.dim, place.at.reshape(-1).to(tensor.device)).movedim(place.dim, 0).reshape(n, -1)


def _parts(tensor: Tensor, dim: int, at: Tensor) -> Tensor:
    """A tensor's positions along a dimension (n, m), as two dimensions there."""
    flat = at.reshape(-1)
    first, n = int(flat[0]), len(flat)
    if torch.equal(flat, torch.arange(first, first + n)):
        return tensor.narrow(dim, first, n).unflatten(dim, at.shape)
    return tensor.index_select(dim, flat.to(tensor.device)).unflatten(dim, at.shape)


def _meetings(found: Sequence[Place], shape: Sequence[int]) -> np.ndarray:
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
