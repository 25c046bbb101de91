"""Matching of many networks against brute force, and permutations that compose."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from symmetric_networks import (
    State,
    inner,
    largest_inner_product,
    shuffled,
    tiny,
    tiny_states,
)

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
