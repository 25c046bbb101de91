"""Matching of many networks against brute force, and permutations that compose."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from symmetric_networks import (
    State,
    inner,
    largest_inner_product,
    shuffled,
    tiny,
    tiny_states,
)
from torch import Tensor, nn

from modeconn_cli.matching import many
from modeconn_cli.matching.many import composed, cycle_consistent, cycle_error, merge_many, pairs_of, undone
from modeconn_cli.models import build as models
from modeconn_cli.symmetry.graph import trace
from modeconn_cli.symmetry.groups import Symmetry


@pytest.mark.parametrize("method", [merge_many, cycle_consistent])
def test_many_are_matched_as_brute_force_would(method: type(merge_many)) -> None:  # type: ignore[valid-type]
    symmetry, _ = tiny(0)
    optimal, cases = 0, 6
    for case in range(cases):
        a, b = tiny_states(case)
        best = largest_inner_product(a, b)
        permutations, objective = method(symmetry, [a, b], list(a), rounds=25, restarts=6)
        assert all(torch.equal(p, torch.arange(4)) for p in permutations[0])
        reached = inner(a, symmetry.permute(b, permutations[1]))
        assert reached == pytest.approx(objective[-1], abs=1e-4)
        optimal += reached > best - 1e-5
    assert optimal >= 0.8 * cases


@pytest.mark.parametrize("method", [merge_many, cycle_consistent])
@pytest.mark.parametrize("family", ["mlp", "vit"])
def test_planted_permutations_of_many_are_undone(method: type(merge_many), family: str) -> None:  # type: ignore[valid-type]
    torch.manual_seed(0)
    options: dict[str, object] = {"mlp": {"width": 24}, "vit": {"dim": 8, "heads": 2, "depth": 1}}[family]
    module = models.build(family, (3, 8, 8), 4, **options)
    symmetry = trace(module, torch.randn(2, 3, 8, 8))
    state = {k: v.detach() + 0.05 * torch.rand_like(v) for k, v in module.named_parameters()}
    states = [state, *(symmetry.permute(state, shuffled(symmetry, seed)) for seed in (1, 2, 3))]
    permutations, objective = method(symmetry, states, list(state), rounds=25, restarts=1)
    for s, p in zip(states, permutations, strict=True):
        back = symmetry.permute(s, p)
        assert all(torch.equal(back[k], state[k]) for k in state)
    assert objective[-1] == pytest.approx(6 * inner(state, state), rel=1e-5)
    assert cycle_error(symmetry, pairs_of(symmetry, permutations), 4) == 0


@given(st.integers(0, 10**6))
@settings(max_examples=15, deadline=None)
def test_permutations_compose_and_are_undone_as_their_actions_are(seed: int) -> None:
    symmetry, state = _vit()
    first, second = shuffled(symmetry, seed), shuffled(symmetry, seed + 1)
    both = symmetry.permute(state, composed(symmetry, first, second))
    one_by_one = symmetry.permute(symmetry.permute(state, first), second)
    assert all(torch.equal(both[k], one_by_one[k]) for k in state)
    back = symmetry.permute(one_by_one, undone(symmetry, symmetry.identity(), second))
    again = symmetry.permute(state, first)
    assert all(torch.equal(back[k], again[k]) for k in state)


_made: list[tuple[Symmetry, State]] = []


def _vit() -> tuple[Symmetry, State]:
    if not _made:
        torch.manual_seed(0)
        module = models.build("vit", (3, 8, 8), 4, dim=12, heads=3, depth=1)
        _made.append((trace(module, torch.randn(2, 3, 8, 8)), {k: v.detach() for k, v in module.named_parameters()}))
    return _made[0]


def test_pairs_matched_apart_need_not_agree() -> None:
    symmetry, _ = tiny(0)
    turn = [torch.tensor([1, 2, 3, 0]), torch.arange(4)]
    same = symmetry.identity()
    assert cycle_error(symmetry, {(0, 1): turn, (1, 2): same, (0, 2): same}, 3) == 0.5
    assert cycle_error(symmetry, {(0, 1): turn, (1, 2): same, (0, 2): turn}, 3) == 0


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_step_of_frank_wolfe_goes_as_far_as_is_best(seed: int) -> None:
    """Two networks of two hidden layers, mixed by hand in float64, along a fine grid of the step's own line."""
    generator = torch.Generator().manual_seed(seed)
    module = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    symmetry = trace(module, torch.randn(2, 3))
    states = [{k: torch.randn(v.shape, generator=generator) for k, v in module.state_dict().items()} for _ in "ab"]

    def worth(soft: list[list[Tensor]]) -> Tensor:
        mixed = []
        for s, (p, q) in zip(states, soft, strict=True):
            w = {k: v.double() for k, v in s.items()}
            into, within, out = p @ w["0.weight"], q @ w["2.weight"] @ p.T, w["4.weight"] @ q.T
            mixed.append([into, p @ w["0.bias"], within, q @ w["2.bias"], out, w["4.bias"]])
        return sum((u * v).sum() for u, v in zip(*mixed, strict=True))  # type: ignore[return-value]

    def stochastic() -> Tensor:
        turns = [torch.eye(4, dtype=torch.float64)[torch.randperm(4, generator=generator)] for _ in range(3)]
        return 0.5 * turns[0] + 0.3 * turns[1] + 0.2 * turns[2]

    begun = [[stochastic() for _ in range(2)] for _ in "ab"]
    free = [[m.clone().requires_grad_() for m in each] for each in begun]
    gradients = torch.autograd.grad(worth(free), [m for each in free for m in each])
    corners = [torch.eye(4, dtype=torch.float64)[linear_sum_assignment(g, maximize=True)[1]] for g in gradients]
    towards = [corners[:2], corners[2:]]
    line = [
        float(
            worth(
                [[torch.lerp(m, v, t) for m, v in zip(*pair, strict=True)] for pair in zip(begun, towards, strict=True)]
            )
        )
        for t in np.linspace(0, 1, 401)
    ]
    _, objective = many._frank_wolfe(
        symmetry,
        states,
        list(states[0]),
        2,
        [[m.float() for m in each] for each in begun],
        lambda step, objective: None,
    )
    assert objective[0] == pytest.approx(line[0], rel=1e-5)
    assert objective[1] == pytest.approx(max(line), rel=1e-4)
