"""Sinkhorn normalisation against its explicit rounds, and the matching that it trains."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from symmetric_networks import (
    inner,
    shuffled,
)

from modeconn_cli.matching import sinkhorn as sinkhorn_module
from modeconn_cli.matching.sinkhorn import mix, sinkhorn, sinkhorn_matching
from modeconn_cli.models import build as models
from modeconn_cli.symmetry.graph import trace


@given(st.integers(1, 7), st.integers(0, 10**6), st.floats(0.1, 5))
@settings(max_examples=10, deadline=None)
def test_the_limit_is_doubly_stochastic_and_its_implicit_gradient_that_of_every_round(
    n: int, seed: int, size: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = (size * torch.randn(n, n, dtype=torch.float64, generator=generator)).requires_grad_()
    weight = torch.randn(n, n, dtype=torch.float64, generator=generator)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sinkhorn_module, "MARGIN", 1e-14)
        patch.setattr(sinkhorn_module, "MOST_ROUNDS", 20000)
        columns = torch.randn(1, n, dtype=torch.float64, generator=generator)  # whatever one begins with
        p = sinkhorn(x, columns=columns)
        (implicit,) = torch.autograd.grad((p * weight).sum(), x)
    explicit = sinkhorn(x, unrolled=2000)
    (expected,) = torch.autograd.grad((explicit * weight).sum(), x)
    assert torch.allclose(p.sum(0), torch.ones(n, dtype=torch.float64), atol=1e-9)
    assert torch.allclose(p.sum(1), torch.ones(n, dtype=torch.float64), atol=1e-9)
    assert torch.allclose(p, explicit, atol=1e-7)
    assert torch.allclose(implicit, expected, atol=1e-6)


@pytest.mark.parametrize("unrolled", [None, 20])
def test_trained_matrices_find_a_planted_permutation(unrolled: int | None) -> None:
    torch.manual_seed(0)
    module = models.build("mlp", (16,), 4, width=12, depth=2)
    symmetry = trace(module, torch.randn(2, 16))
    a = {k: v.detach().clone() for k, v in module.named_parameters()}
    b = symmetry.permute(a, shuffled(symmetry, 1))
    found = sinkhorn_matching(symmetry, a, b, None, lambda s: -inner(a, s), steps=100, lr=0.1, unrolled=unrolled)
    back = symmetry.permute(b, found.permutations)
    assert all(torch.equal(back[k], a[k]) for k in a)
    assert found.measure == "midpoint loss"


def test_a_mixture_by_permutation_matrices_permutes() -> None:
    torch.manual_seed(0)
    module = models.build("vit", (3, 8, 8), 4, dim=12, heads=3, depth=1)
    symmetry = trace(module, torch.randn(2, 3, 8, 8))
    state = {k: v.detach().double() for k, v in module.named_parameters()}
    permutations = shuffled(symmetry, 3)
    matrices = {
        g.leaf: torch.eye(g.size, dtype=torch.float64)[p] for g, p in zip(symmetry.groups, permutations, strict=True)
    }
    by_matrix, by_index = mix(symmetry, state, matrices), symmetry.permute(state, permutations)
    assert all(torch.equal(by_matrix[k], by_index[k]) for k in state)
