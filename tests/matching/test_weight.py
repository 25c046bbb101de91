"""Weight matching against planted permutations and brute force."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from symmetric_networks import (
    PLANTED,
    Tied,
    inner,
    largest_inner_product,
    parameters,
    shuffled,
    tiny,
    tiny_states,
)

from modeconn_cli.matching.weight import weight_matching
from modeconn_cli.symmetry.graph import trace


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_permutation_of_a_trained_network_is_recovered_whole(name: str) -> None:
    torch.manual_seed(0)
    module = PLANTED[name]()
    x = torch.randn(64, *((64,) if name == "mlp" else (3, 32, 32)))
    y = torch.randint(0, 10, (64,))
    optimizer = torch.optim.SGD(module.parameters(), 0.02, momentum=0.9)
    for _ in range(5):
        optimizer.zero_grad()
        F.cross_entropy(module(x), y).backward()
        optimizer.step()
    symmetry = trace(module, x[:2])
    a = {k: v.clone() for k, v in module.state_dict().items()}
    b = symmetry.permute(a, shuffled(symmetry, seed=5))
    found = weight_matching(symmetry, a, b, parameters(module), restarts=0)
    back = symmetry.permute(b, found.permutations)
    assert all(torch.equal(back[k], a[k]) for k in a)


def test_tiny_networks_are_matched_as_brute_force_would() -> None:
    symmetry, _ = tiny(0)
    assert [g.size for g in symmetry.groups] == [4, 4]
    optimal, cases = 0, 100
    for case in range(cases):
        a, b = tiny_states(case)
        best = largest_inner_product(a, b)
        found = weight_matching(symmetry, a, b, list(a), seed=case)
        reached = inner(a, symmetry.permute(b, found.permutations), list(a))
        assert reached == pytest.approx(found.objective[-1], abs=1e-5)
        assert reached < best + 1e-5
        optimal += reached > best - 1e-5
    assert optimal >= 0.95 * cases


def test_the_objective_never_falls_and_seeds_repeat() -> None:
    torch.manual_seed(0)
    a, b = (PLANTED["resnet20"]() for _ in range(2))
    symmetry = trace(a, torch.randn(2, 3, 32, 32))
    runs = [
        weight_matching(symmetry, a.state_dict(), b.state_dict(), parameters(a), seed=1, restarts=1) for _ in range(2)
    ]
    steps = runs[0].objective
    assert all(after >= before - 1e-4 * abs(before) for before, after in itertools.pairwise(steps))
    assert all(torch.equal(p, q) for p, q in zip(runs[0].permutations, runs[1].permutations, strict=True))


def test_weights_with_one_group_on_both_sides_are_matched_uphill() -> None:
    torch.manual_seed(0)
    a, b = Tied(), Tied()
    symmetry = trace(a, torch.randn(3, 4))
    names = ["first.weight", "first.bias", "second.weight", "second.bias", "head.weight"]
    every = [torch.tensor(p) for p in itertools.permutations(range(6))]
    sa, sb = dict(a.state_dict()), dict(b.state_dict())
    best = max(inner(sa, symmetry.permute(sb, [p]), names) for p in every)
    found = weight_matching(symmetry, sa, sb, names, restarts=10)
    assert found.objective[0] <= found.objective[-1] <= best + 1e-5
    assert inner(sa, symmetry.permute(sb, found.permutations), names) >= best - 0.1 * abs(best)
