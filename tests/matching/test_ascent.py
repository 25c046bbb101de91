"""Solving one group: it never loses, and what is inside it follows."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from symmetric_networks import (
    NESTED,
    Attention,
    Tied,
    shuffled,
    stirred,
)
from torch import Tensor

from modeconn_cli.matching.ascent import coordinate_ascent, solve
from modeconn_cli.matching.assignment import assign
from modeconn_cli.matching.problem import WeightProblem
from modeconn_cli.symmetry.graph import trace


@pytest.mark.parametrize("name", NESTED)
def test_a_solved_group_never_loses(name: str) -> None:
    make, shape = NESTED[name]
    torch.manual_seed(0)
    symmetry = trace(make(), torch.randn(2, *shape))
    assert symmetry.inside
    for seed in range(6):
        torch.manual_seed(seed)
        a, b = (dict(stirred(make()).state_dict()) for _ in range(2))
        problem = WeightProblem(symmetry, a, b, list(a), begin=shuffled(symmetry, seed))
        now = problem.objective()
        for g in [*symmetry.inside, *range(len(problem.groups))] * 2:
            solve(problem, g)
            before, now = now, problem.objective()
            assert now >= before - 1e-5 * abs(before)


def test_what_is_inside_follows_all_that_placed_its_group() -> None:
    make, shape = NESTED["vit"]
    torch.manual_seed(0)
    symmetry = trace(make(), torch.randn(2, *shape))
    a, b = (dict(stirred(make()).state_dict()) for _ in range(2))
    problem = WeightProblem(symmetry, a, b, list(a), begin=shuffled(symmetry, 0))
    several = 0
    for outer in symmetry.inside:
        if not solve(problem, outer, list(problem.layout.nested[outer])):
            continue
        runs: dict[int, list[int]] = {}
        for g, k in (x for parts in problem.layout.nested[outer].values() for part in parts for x in part):
            runs.setdefault(g, []).append(k)
        for g, chosen in runs.items():
            several += len(chosen) > 1
            cost, worth = problem.cost(g, chosen)
            assert worth == pytest.approx(cost[np.arange(len(cost)), assign(cost)].sum(), abs=1e-5)
    assert several


def test_packed_heads_are_matched_with_what_is_inside_them() -> None:
    torch.manual_seed(0)
    symmetry = trace(Attention(), torch.randn(2, 5, 4))
    (outer,) = symmetry.inside
    inside = sorted({g for members in symmetry.inside[outer] for here in members for g in here})
    for seed in range(5):
        torch.manual_seed(seed)
        a, b = (dict(stirred(Attention()).state_dict()) for _ in range(2))

        def reached(heads: tuple[int, ...], a: dict[str, Tensor] = a, b: dict[str, Tensor] = b) -> float:
            begin = symmetry.identity()
            symmetry.permute_group(begin, outer, torch.tensor(heads))
            problem = WeightProblem(symmetry, a, b, list(a), begin)
            while any(solve(problem, g) for g in inside):
                pass
            return problem.objective()

        best = max(reached(heads) for heads in itertools.permutations(range(3)))
        problem = WeightProblem(symmetry, a, b, list(a))
        solve(problem, outer)
        while any(solve(problem, g) for g in inside):
            pass
        assert problem.objective() == pytest.approx(best, abs=1e-4)


def test_a_group_on_both_sides_is_asked_until_it_stays() -> None:
    torch.manual_seed(0)
    symmetry = trace(Tied(), torch.randn(3, 4))
    for seed in range(10):
        torch.manual_seed(seed)
        a, b = (dict(Tied().state_dict()) for _ in range(2))
        problem = WeightProblem(symmetry, a, b, list(a))
        for _ in coordinate_ascent(problem, np.random.default_rng(seed)):
            pass
        clock = problem.clock
        assert not any(solve(problem, g) for g in range(len(problem.groups)))
        assert problem.clock == clock  # what was only tried moved nothing
