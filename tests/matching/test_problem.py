"""Cost matrices against those formed anew, and means over permutations against all of them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from symmetric_networks import (
    PLANTED,
    parameters,
)
from torch import nn

from modeconn_cli.matching.problem import WeightProblem
from modeconn_cli.symmetry.axes import Axis, Dependent, Leaf, fixed, size
from modeconn_cli.symmetry.equations import (
    concatenation,
    product,
)
from modeconn_cli.symmetry.graph import trace
from modeconn_cli.symmetry.groups import symmetry_of


@pytest.mark.parametrize("name", PLANTED)
def test_what_is_kept_of_a_cost_matrix_is_what_it_would_be_anew(name: str) -> None:
    torch.manual_seed(0)
    a, b = (PLANTED[name]() for _ in range(2))
    symmetry = trace(a, torch.randn(2, *((64,) if name == "mlp" else (3, 32, 32))))
    states, names = [dict(m.state_dict()) for m in (a, b)], parameters(a)
    problem = WeightProblem(symmetry, *states, names)
    every = [range(len(runs)) for runs in problem.layout.occurrences]
    generator = torch.Generator().manual_seed(1)
    for step in range(40):
        g = int(torch.randint(len(problem.groups), (), generator=generator))
        size = problem.groups[g].size
        relative = torch.arange(size)
        some = torch.randperm(size, generator=generator)[: (size if step % 4 == 0 else max(2, size // 8))]
        relative[some] = relative[some.roll(1)]  # all of them, or a few
        problem.move(g, relative)
        asked = (g + step % 3) % len(problem.groups)
        problem.cost(asked, every[asked])
    anew = WeightProblem(symmetry, *states, names, begin=problem.permutations)
    assert all(torch.equal(x, y) for x, y in zip(problem.b, anew.b, strict=True))
    for g in range(len(problem.groups)):
        kept, fresh = problem.cost(g, every[g])[0], anew.cost(g, every[g])[0]
        assert np.abs(kept - fresh).max() <= 2e-5 * np.abs(fresh).max()


class Joined(nn.Module):
    """Two branches of three channels each, flattened and joined, before four hidden units."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(1, 3, 2), nn.Conv2d(1, 3, 2)
        self.after, self.last = nn.Linear(24, 4), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        both = [branch(x).relu().flatten(1) for branch in (self.left, self.right)]
        return self.last(self.after(torch.cat(both, 1)).relu())


def test_what_is_unsettledcounts_as_the_mean_over_its_permutations() -> None:
    torch.manual_seed(0)
    a, b = Joined(), Joined()
    symmetry = trace(a, torch.randn(2, 1, 3, 3))
    states = [dict(m.state_dict()) for m in (a, b)]
    units = next(g for g, group in enumerate(symmetry.groups) if group.size == 4)
    branches = [g for g in range(len(symmetry.groups)) if g != units]
    assert len(branches) == 2
    problem = WeightProblem(symmetry, *states, list(states[0]))
    every = range(len(problem.layout.occurrences[units]))
    for unsettled in ([branches[0]], [branches[1]], branches):
        costs = []
        for drawn in itertools.product(itertools.permutations(range(3)), repeat=len(unsettled)):
            begin = symmetry.identity()
            for g, permutation in zip(unsettled, drawn, strict=True):
                begin[g] = torch.tensor(permutation)
            costs.append(WeightProblem(symmetry, *states, list(states[0]), begin).cost(units, every)[0])
        known = [r for r in every if not problem.layout.neighbours[units][r] & {*unsettled}]
        assert 0 < len(known) < len(every)
        found = problem.cost(units, known, unsettled)[0]
        assert np.abs(found - np.mean(costs, axis=0)).max() < 1e-6
        assert np.ptp(costs, axis=0).max() > 0.1


def _unsettled_cases() -> Iterator[Any]:
    """Axes of one tensor, the group that is solved and those that are open."""
    h, c, p, x = Leaf(3), Leaf(3), Leaf(2), Leaf(4)
    pixels = product([c, fixed(2)])
    for name, group, unsettled in [("h", h, [c]), ("c", c, [h])]:
        yield pytest.param([h, pixels], group, unsettled, id=f"flattened, {name}")
    for name, group, unsettled in [("h", h, [c, p]), ("h, c settled", h, [p]), ("c", c, [p]), ("c, p settled", c, [h])]:
        yield pytest.param([h, product([c, p])], group, unsettled, id=f"product, {name}")
    for name, axes in [
        ("before", [h, concatenation([x, h])]),
        ("after", [h, concatenation([h, x])]),
        ("and pinned", [h, concatenation([h, x, fixed(2)])]),
    ]:
        yield pytest.param(axes, x, [h], id=f"beside itself, {name}")
    yield pytest.param([concatenation([h, x]), concatenation([h, p])], x, [h], id="on both sides, in front")
    yield pytest.param([concatenation([x, h]), concatenation([h, p])], x, [h], id="on both sides, behind")
    yield pytest.param([x, concatenation([h, h])], x, [h], id="twice along a side")
    heads, inner = Leaf(2), [Leaf(3), Leaf(3)]
    attention = [product([heads, Dependent(heads, [*inner])]), c]
    for name, group, unsettled in [
        ("stream", c, [heads, *inner]),
        ("stream, heads settled", c, inner),
        ("stream, heads alone", c, [heads]),
        ("inside", inner[0], [c]),
        ("heads", heads, [c]),
    ]:
        yield pytest.param(attention, group, unsettled, id=f"attention, {name}")
    channels, read = [Leaf(2), Leaf(2)], [Leaf(3), Leaf(3)]
    grouped = [product([heads, Dependent(heads, [*channels])]), Dependent(heads, [*read])]
    yield pytest.param(grouped, read[0], [channels[0]], id="grouped convolution")


@pytest.mark.parametrize(("axes", "group", "unsettled"), [*_unsettled_cases()])
def test_the_mean_over_permutations_is_exact(axes: list[Axis], group: Leaf, unsettled: list[Leaf]) -> None:
    symmetry = symmetry_of({"w": axes})
    number = {g.leaf: i for i, g in enumerate(symmetry.groups)}
    torch.manual_seed(0)
    a, b = ({"w": torch.randn([size(axis) for axis in axes]) + 0.3} for _ in range(2))
    problem = WeightProblem(symmetry, a, b, ["w"])
    for r in range(len(problem.layout.occurrences[number[group]])):
        terms = []
        for drawn in itertools.product(*(itertools.permutations(range(leaf.size)) for leaf in unsettled)):
            begin = symmetry.identity()
            for leaf, permutation in zip(unsettled, drawn, strict=True):
                begin[number[leaf]] = torch.tensor(permutation)
            terms.append(WeightProblem(symmetry, a, b, ["w"], begin).term(number[group], (r,)).numpy())
        found = problem.average(number[group], r, {number[leaf] for leaf in unsettled}).numpy()
        assert np.abs(found - np.mean(terms, axis=0)).max() < 1e-5
