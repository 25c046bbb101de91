"""Coordinate ascent on the inner product of two networks: one group at a time is given its best permutation.

With every other group held, one group's best permutation is a linear assignment problem (Ainsworth et al. 2023,
arXiv:2209.04836, section 3.2), but where the group runs twice through one tensor, or has others inside it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence

import numpy as np
import torch

from modeconn_cli.matching.assignment import assign_cheapest, dual_prices
from modeconn_cli.matching.problem import WeightProblem

ROUNDING = 1e-7  # a gain below this share of what is summed is taken for rounding
MOST_EXCHANGES = 500  # pairs of indices that are tried where no assignment gains


def solve(
    problem: WeightProblem, group: int, chosen: Sequence[int] | None = None, unsettled: Collection[int] = ()
) -> bool:
    """Give a group its best permutation, the others held; whether it moved.

    Args:
        chosen: its occurrences that count; None: all.
        unsettled: groups over whose permutations its other occurrences count on average.
    """
    whole, quadratic = chosen is None, problem.layout.quadratic[group]
    runs = range(len(problem.layout.occurrences[group])) if chosen is None else chosen
    cost, worth = problem.cost(group, runs, unsettled)
    # By einsum and not by BLAS, whose threads would go on spinning beside torch's.
    norm = math.sqrt(float(np.einsum("ij,ij->", cost, cost)))
    minimum_gain = ROUNDING * (abs(worth) + norm / len(cost) + 1e-30)
    # What was best a while ago is nearly best now, and prices near the right ones leave the solver little to do.
    known = group in problem.prices
    prices = problem.prices[group] = dual_prices(cost, problem.prices[group]) if known else np.zeros(len(cost))
    reduced = np.subtract(prices, cost, out=cost)  # no copy: of a wide layer this is the largest thing there is
    relative = torch.from_numpy(assign_cheapest(reduced))
    gain = float(prices.sum() - reduced[np.arange(len(reduced)), relative.numpy()].sum()) - worth
    if torch.equal(relative, torch.arange(len(relative))) or gain <= minimum_gain:
        return whole and quadratic and _exchange(problem, group, reduced)
    if whole and quadratic and problem.gain(group, relative) <= minimum_gain:
        return _exchange(problem, group, reduced)
    del cost, reduced
    if whole and problem.layout.nested[group]:
        return _solve_outer(problem, group, relative, minimum_gain)
    problem.move(group, relative)
    _solve_inside(problem, group, runs, whole)
    return True


def _solve_outer(problem: WeightProblem, group: int, relative: torch.Tensor, minimum_gain: float) -> bool:
    """Move a group and then what is inside it, unless that loses; whether it moved.

    What is inside was taken at its best for a part of the network, so that all in all the move may lose.
    """
    before, clock, moved = problem.objective(), problem.clock, list(problem.moved)
    nested = problem.layout.nested[group]
    inside = {g for parts in nested.values() for part in parts for g, _ in part}
    problem.move(group, relative)
    placed = {g: problem.permutations[g] for g in inside}
    _solve_inside(problem, group, range(len(problem.layout.occurrences[group])), True)
    if problem.objective() >= before - minimum_gain:
        return True
    for g in inside:
        problem.move(g, torch.argsort(problem.permutations[g])[placed[g]])
    problem.move(group, torch.argsort(relative))
    problem.rewind(clock, moved)
    return False


def _solve_inside(problem: WeightProblem, group: int, chosen: Sequence[int], whole: bool) -> None:
    """Give what is inside a group that has moved its best permutation, by all it touches or by these occurrences."""
    found: dict[int, list[int]] = {}
    for g, k in (x for r in chosen for part in problem.layout.nested[group].get(r, []) for x in part):
        found.setdefault(g, []).append(k)
    for g in sorted(found):
        solve(problem, g, None if whole else found[g])


def _exchange(problem: WeightProblem, group: int, reduced: np.ndarray) -> bool:
    """Exchange two indices of a group whose objective is quadratic, promising pairs first; whether one gained.

    Its cost matrix is a linearisation, whose best assignment may lose.

    Args:
        reduced: (size, size) reduced costs.
    """
    n = len(reduced)
    i, j = np.triu_indices(n, 1)
    gains = reduced[i, i] + reduced[j, j] - reduced[i, j] - reduced[j, i]
    minimum_gain = ROUNDING * abs(float(np.diag(reduced).sum())) + 1e-30
    for k in np.argsort(-gains)[:MOST_EXCHANGES].tolist():
        exchange = torch.arange(n)
        exchange[[i[k], j[k]]] = exchange[[j[k], i[k]]]
        if problem.gain(group, exchange) > minimum_gain:
            problem.move(group, exchange)
            return True
    return False


def coordinate_ascent(
    problem: WeightProblem, rng: np.random.Generator, sweeps: int = 100, solved: Sequence[int] | None = None
) -> Iterator[int]:
    """Give every group in turn its best permutation until a sweep moves none; each sweep's number as it ends.

    Groups are taken in random order, those whose neighbours have not moved since are left out.

    Args:
        solved: when each group was given its best permutation, by the problem's clock, or -1.
    """
    layout = problem.layout
    solved = [-1] * len(problem.groups) if solved is None else list(solved)
    for sweep in range(sweeps):
        before = problem.clock
        for g in rng.permutation(len(problem.groups)).tolist():
            latest = max((problem.moved[n] for neighbours in layout.neighbours[g] for n in neighbours), default=0)
            if solved[g] >= latest:
                continue
            moved = solve(problem, g)
            # Of a quadratic problem a step is not its solution: it is asked again until it stays.
            solved[g] = -1 if moved and layout.quadratic[g] else problem.clock
        yield sweep
        if problem.clock == before:
            break


def ascend(problem: WeightProblem, rng: np.random.Generator) -> None:
    """:func:`coordinate_ascent` to its end."""
    for _ in coordinate_ascent(problem, rng):
        pass


def first_pass(problem: WeightProblem) -> list[int]:
    """Solve every group once, the most determined by those that are settled next.

    Tensors that others run through too count as they are on average over every permutation of these. Gives when each
    group was solved by all of its tensors, by the problem's clock, or -1.
    """
    layout = problem.layout
    settled: set[int] = set()
    solved = [-1] * len(problem.groups)
    mass = [float(a.norm()) * float(b.norm()) for a, b in zip(problem.a, problem.b, strict=True)]
    while len(settled) < len(problem.groups):
        shares = {g: _determined(problem, g, settled, mass) for g in range(len(problem.groups)) if g not in settled}
        group = max(shares, key=lambda g: (shares[g][0], -g))
        known = shares[group][1]
        solve(problem, group, known, set(range(len(problem.groups))) - settled - {group})
        settled.add(group)
        if len(known) == len(layout.occurrences[group]) and not layout.nested[group] and not layout.quadratic[group]:
            solved[group] = problem.clock
    return solved


def _determined(
    problem: WeightProblem, group: int, settled: set[int], mass: Sequence[float]
) -> tuple[float, list[int]]:
    """Which share of a group's cost settled groups determine, and by which of its occurrences.

    Args:
        mass: how much each tensor counts.
    """
    layout = problem.layout
    runs, inside = layout.occurrences[group], layout.inside(group)
    known = [
        r
        for r in range(len(runs))
        if layout.neighbours[group][r] - (inside if r in layout.nested[group] else set()) <= settled
    ]
    total = sum(mass[run.tensor] for run in runs)
    return sum(mass[runs[r].tensor] for r in known) / (total or 1.0), known
